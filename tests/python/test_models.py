"""Models under every budget give the outputs of the plain model, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, save
from model_shapes import SHAPES, Shape
from tensorstream.orchestrator import orchestrator_of

STEPS = 12
NEW_TOKENS = 3

# Loaded at their use and loaded ahead: both ways give the plain model's outputs.
CASES = [
    (name, layers, how) for name in SHAPES for layers, how in ((3, "adaptive"), (4, "aggressive"))
]


def run(shape: Shape, model: nn.Module) -> Any:
    with torch.no_grad():
        return model(**shape.inputs(), output_hidden_states=True)


def generate(shape: Shape, model: Any) -> Any:
    assert shape.prompt is not None
    with torch.no_grad():
        return model.generate(**shape.prompt(), max_new_tokens=NEW_TOKENS, do_sample=False)


def plans_for(model_or_path: Any, prefetch: str) -> list[ts.Plan]:
    """Plans from the smallest budget that works to the smallest that streams nothing.

    Where their numbers of streamed groups are all odd or all even, one of the other kind is added.
    """
    estimate = ts.estimate_memory(model_or_path)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    assert smallest < fits

    def plan_at(step: int, steps: int) -> ts.Plan:
        budget = smallest + (fits - smallest) * step // (steps - 1)
        return ts.plan(model_or_path, ram_budget=budget, prefetch=prefetch)

    plans = [plan_at(step, STEPS) for step in range(STEPS)]
    parities = {streamed_groups(plan) % 2 for plan in plans if streamed_groups(plan)}
    if len(parities) == 1:
        finer = (plan_at(step, 10 * STEPS) for step in range(10 * STEPS))
        plans.append(next(p for p in finer if streamed_groups(p) % 2 not in parities))
    assert plans[0].budget_bytes == plans[0].smallest_budget_bytes
    assert streamed_groups(plans[0]) > 0
    assert {group.placement for group in plans[STEPS - 1].groups} == {"resident"}
    return plans


def streamed_groups(plan: ts.Plan) -> int:
    return sum(group.placement == "streamed" for group in plan.groups)


class Expected:
    """What the plain model gives."""

    def __init__(self, shape: Shape, plain: nn.Module) -> None:
        self.shape = shape
        self.output = run(shape, plain)
        self.tokens = generate(shape, plain) if shape.prompt else None

    def check(self, model: nn.Module, plan: ts.Plan, with_tokens: bool) -> None:
        what = f"{self.shape.name} at {plan.budget_bytes} of {plan.everything_fits_bytes} bytes"
        assert_same(run(self.shape, model), self.output, f"{what}, first forward")
        assert_same(run(self.shape, model), self.output, f"{what}, second forward")
        if self.tokens is not None and with_tokens:
            assert_same(generate(self.shape, model), self.tokens, f"{what}, generate")
        stats = ts.stats(model)
        assert stats.budget_bytes == plan.budget_bytes
        assert 0 < stats.peak_held_bytes <= plan.budget_bytes, what
        assert stats.held_bytes == plan.resident_bytes + plan.arena_bytes, what
        assert stats.held_bytes <= stats.peak_held_bytes, what
        if plan.streamed_bytes:
            assert stats.streamed_bytes >= plan.streamed_bytes, what
            assert hooks_of(model), what
        else:
            assert stats.streamed_bytes == 0, what
        if plan.budget_bytes == plan.everything_fits_bytes:
            assert {group.placement for group in plan.groups} == {"resident"}, what
            assert hooks_of(model) == [], what
            assert stats.on_demand_bytes == 0, what
            assert stats.acquires == 0, what


@pytest.mark.parametrize(("name", "layers", "prefetch"), CASES)
def test_checkpoint_is_bit_identical_at_every_budget(
    name: str, layers: int, prefetch: str, tmp_path: Path
) -> None:
    shape = SHAPES[name]
    path = save(shape.make(layers), tmp_path / name, shard="1MB" if layers % 2 else "50GB")
    files = sorted(path.glob("*.safetensors"))
    assert (len(files) > 1) == bool(layers % 2)
    model_class = getattr(transformers, type(shape.make(1)).__name__)
    expected = Expected(shape, model_class.from_pretrained(path))
    for step, plan in enumerate(plans_for(path, prefetch)):
        model = ts.from_pretrained(
            path, ram_budget=plan.budget_bytes, self_check=step % 2 == 0, prefetch=prefetch
        )
        assert type(model) is model_class
        assert not orchestrator_of(model).loans.weights, "nobody else holds what was loaded"
        expected.check(model, plan, with_tokens=step % 3 == 0)
        stats = ts.stats(model)
        assert stats.streamed_ram_bytes == 0, "a checkpoint as it stands needs no copy in RAM"
        assert stats.streamed_disk_bytes == stats.streamed_bytes


@pytest.mark.parametrize(("name", "layers", "prefetch"), CASES)
def test_model_in_memory_is_bit_identical_at_every_budget(
    name: str, layers: int, prefetch: str
) -> None:
    shape = SHAPES[name]
    model = shape.make(layers)
    expected = Expected(shape, model)
    for step, plan in enumerate(plans_for(model, prefetch)):
        check = step % 2 == 0
        ts.offload(model, ram_budget=plan.budget_bytes, self_check=check, prefetch=prefetch)
        expected.check(model, plan, with_tokens=step % 5 == 0)
        assert ts.stats(model).streamed_disk_bytes == 0
        ts.restore(model)
    assert_same(run(shape, model), expected.output, "restored")
