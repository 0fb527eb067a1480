"""Code that runs within an operation on a streamed weight sees the true values of all others.

The handler of a signal that saves the model, as clusters send before they take a machine away, runs
wherever the thread is; hooks for saved tensors and modes run within torch's operations.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tensorstream
from conftest import assert_same
from model_shapes import Stack, row_ids
from parked_pair import Pair, make_pair

_PACKAGE = os.path.dirname(tensorstream.__file__)


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """The same model twice."""
    return make_pair(request.param, tmp_path)


def assert_all_true(pair: Pair, what: str) -> None:
    """What is read of the streamed model is what the plain one has."""
    seen = {name: value.clone() for name, value in pair.streamed.state_dict().items()}
    for name, value in pair.plain.state_dict().items():
        assert_same(seen[name], value, f"{name} {what}")


def test_hooks_for_saved_tensors_see_true_values(pair: Pair) -> None:
    packed = []

    def pack(saved: torch.Tensor) -> torch.Tensor:
        assert_all_true(pair, "while a tensor is packed")
        packed.append(saved)
        return saved

    def product(model: Stack) -> torch.Tensor:
        return (model.blocks[1].up.weight @ model.blocks[2].down.weight).sum()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        streamed = product(pair.streamed)
    assert packed, "nothing was saved"
    assert_same(streamed, product(pair.plain), "product")


@pytest.fixture
def checkpoint_on_signal(pair: Pair) -> Iterator[list[str]]:
    """SIGUSR1 reads the whole model; what went wrong."""
    faults: list[str] = []

    def handle(_signal: int, _frame: FrameType | None) -> None:
        try:
            assert_all_true(pair, "in a handler")
        except AssertionError as error:
            faults.append(str(error))

    before = signal.signal(signal.SIGUSR1, handle)
    yield faults
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("use", ["sum", "matmul", "embedding", "copy", "foreach", "rows"])
def test_handlers_of_signals_within_an_operation_see_true_values(
    pair: Pair, checkpoint_on_signal: list[str], use: str
) -> None:
    class Raises(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return func(*args, **(kwargs or {}))

    weight = pair.streamed.blocks[1].up.weight
    ids = row_ids()
    uses: dict[str, Any] = {
        "sum": weight.sum,
        "matmul": lambda: torch.nn.functional.linear(torch.ones(2, weight.shape[1]), weight),
        "embedding": lambda: pair.streamed.table(ids),
        "copy": lambda: weight.detach().clone(),
        "foreach": lambda: torch._foreach_norm(list(pair.streamed.parameters())),
        "rows": lambda: weight[:2].mul(2),
    }
    with Raises():
        uses[use]()
    assert not checkpoint_on_signal, checkpoint_on_signal[0]


class ReadsAtLines:
    """Reads all weights at every n-th line that the thread runs of the package."""

    def __init__(self, model: nn.Module, every: int) -> None:
        self._model, self._every = model, every
        self._lines = self.reads = 0
        self.faults: list[str] = []

    def __enter__(self) -> ReadsAtLines:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        self._lines += event == "line"
        if event == "line" and self._lines % self._every == 0:
            sys.settrace(None)
            self._read(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
            sys.settrace(self._trace)
        return self._trace

    def _read(self, line: str) -> None:
        self.reads += 1
        for name, value in self._model.state_dict().items():
            if not value.clone().isfinite().all():
                self.faults.append(f"{name} at {line}")


@pytest.mark.parametrize("every", [17, 41])
def test_weights_are_true_wherever_a_step_of_training_is(pair: Pair, every: int) -> None:
    model = pair.streamed
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with ReadsAtLines(model, every) as reads:
        for _ in range(2):
            optimizer.zero_grad()
            model(row_ids()).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert reads.reads > 100
    assert not reads.faults, f"{len(reads.faults)} of {reads.reads}, the first: {reads.faults[0]}"
