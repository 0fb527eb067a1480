"""One model type: built, run plain, run offloaded, compared."""

from __future__ import annotations

import copy
import dataclasses
import random
from typing import Any

import numpy as np
import torch
from torch import nn

import tensorstream as ts
from model_matrix import comparing, places
from model_matrix.sources import Arguments, Inputs, Size, Source

# A model beyond this is not small, and is not run.
MOST_PARAMETERS = 300_000_000


@dataclasses.dataclass
class Row:
    """What became of a type.

    Attributes:
        state: "identical", or what stood in the way: "not built", "not run", "unsteady" (two plain runs
            differ), "all resident", "refused", "failed" (an error that is none of ours), "differs", and of a
            worker "crashed" or "late".
        model_class: The class that was run.
        reason: Why it is not "identical".
        parameters: How many the model has.
        streamed: The share of its weights' bytes that a pass streamed, after the first.
        tried: What stood in the way of each class at each level.
    """

    model_type: str
    state: str
    model_class: str = ""
    reason: str = ""
    parameters: int = 0
    streamed: float = 0.0
    tried: list[str] = dataclasses.field(default_factory=list)


class _Failed(Exception):
    """The model was not built, or does not run plain."""


def _text(error: BaseException) -> str:
    first = " ".join(str(error).split()) or "no text"
    return f"{type(error).__name__}: {first}"[:200]


def build(source: Source, model_type: str, class_name: str, level: Size) -> nn.Module:
    """A model with random weights, the same ones each time, in eval mode."""
    with torch.device("meta"):
        model = source.make(model_type, class_name, level)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise _Failed(f"it has {count / 1e6:.0f} million parameters")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1234)
    model = source.make(model_type, class_name, level)
    with torch.no_grad():
        for parameter in model.parameters():
            # Initial biases of 0 and norms of 1 would hide a weight that is taken for another.
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def run(model: nn.Module, inputs: Arguments, device: str = "cpu") -> Any:
    """A forward on copies of `inputs`, from the same random state."""
    torch.manual_seed(99)
    with torch.no_grad():
        return model(**places.moved(copy.deepcopy(inputs), device))


def _first_inputs(model: nn.Module, maker: Inputs) -> tuple[Arguments, Any]:
    """The first set of arguments that the model runs with, and what it gives."""
    failures: list[str] = []
    waiting = maker.attempts()
    repaired: list[Arguments] = []
    while (inputs := repaired.pop() if repaired else next(waiting, None)) is not None:
        try:
            output = run(model, inputs)
        except Exception as error:  # noqa: BLE001  whatever a model raises, another set is tried
            failures.append(_text(error))
            better = maker.repaired(inputs, error)
            repaired += [] if better is None else [better]
            continue
        if not any(tensor.numel() for tensor in comparing.tensors_of(output)):
            failures.append("no number in the output")
            continue
        return inputs, output
    raise _Failed(
        " | ".join(dict.fromkeys(failures))
        if failures
        else "no arguments are known for its forward"
    )


_PASSES = ("first", "second", "third")


def _compare(row: Row, model: Any, inputs: Arguments, expected: Any, device: str) -> float:
    """Runs the model, which is offloaded; returns the bytes that a pass after the first streamed."""
    before = 0
    for count in _PASSES:
        found = comparing.difference(run(model, inputs, device), expected)
        if found is not None:
            row.state, row.reason = "differs", f"{count} forward: {found}"
            return 0
        if count == _PASSES[0]:
            before = ts.stats(model).streamed_bytes
    streamed = ts.stats(model).streamed_bytes - before
    row.state = "identical"
    if streamed == 0:
        row.state, row.reason = "all resident", "nothing of it was streamed"
    return streamed / (len(_PASSES) - 1)


def _offload_and_compare(
    row: Row, model: Any, inputs: Arguments, expected: Any, device: str, *, smallest: bool = False
) -> None:
    try:
        weights = ts.estimate_memory(model).weights_bytes
        places.offload(model, device, smallest)
    except Exception as error:  # noqa: BLE001  every type gets its row
        row.state, row.reason = "refused", _text(error)
        return
    try:
        row.streamed = _compare(row, model, inputs, expected, device) / max(1, weights)
    except ts.TensorStreamError as error:
        row.state, row.reason = "refused", _text(error)
    except Exception as error:  # noqa: BLE001  wrong weights may end so, too
        row.state, row.reason = "failed", _text(error)


def _run_plain(model: nn.Module, inputs: Arguments, device: str) -> tuple[Any, Any]:
    """What a model gives on a device, twice."""
    try:
        model.to(device)
        return run(model, inputs, device), run(model, inputs, device)
    except Exception as error:
        raise _Failed(_text(error)) from error


def _try_class(source: Source, model_type: str, class_name: str, level: Size, device: str) -> Row:
    """Each use has a model built for it: what one keeps of a run, beside its weights, helps no other."""
    row = Row(model_type, "not built", class_name)

    def made() -> nn.Module:
        return build(source, model_type, class_name, level)

    try:
        model = made()
    except Exception as error:  # noqa: BLE001  every type gets its row
        row.reason = _text(error)
        return row
    row.parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        # On the CPU first: there what a model does not take is an exception and no lost context.
        inputs, _ = _first_inputs(model, source.inputs(model_type, model))
        expected, again = _run_plain(made(), inputs, device)
    except _Failed as error:
        row.state, row.reason = "not run", str(error)
        return row
    unsteady = comparing.difference(again, expected)
    if unsteady is not None:
        row.state, row.reason = "unsteady", f"two plain runs: {unsteady}"
        return row
    _offload_and_compare(row, made(), inputs, expected, device)
    if row.state == "all resident" and device != "cpu":
        row.reason = ""  # the forward uses none of what was streamed: less is resident now
        _offload_and_compare(row, made(), inputs, expected, device, smallest=True)
    return row


_FAILURES = ("not built", "not run", "unsteady")


def try_type(source: Source, model_type: str, device: str = "cpu") -> Row:
    """The row of a type: of the first of its classes, at the first level, that runs plain."""
    places.prepare(device)
    best = Row(model_type, "not built", reason=f"{source.package} has no model for it")
    try:
        names = source.classes(model_type)
    except Exception as error:  # noqa: BLE001
        return dataclasses.replace(best, reason=_text(error))
    for level in source.levels:
        for name in names:
            row = _try_class(source, model_type, name, level, device)
            best.tried.append(f"{name}, {level.name}: {row.reason}")
            if row.state not in _FAILURES:
                return row
            if not best.model_class or _FAILURES.index(row.state) > _FAILURES.index(best.state):
                row.tried = best.tried
                best = row
    return best
