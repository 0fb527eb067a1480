"""Weights that stay on the fake GPU coded: models stay as they are, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same
from fake_gpu import FakeGpu, FakeTorchMemory, use_fake_gpu
from model_shapes import make_stack, row_ids
from tensorstream.orchestrator import orchestrator_of

# Three batches of a block's weights, coded.
RING_BYTES = 400 << 10
SHARES = (0.45, 0.6, 0.7, 0.8, 0.9)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeTorchMemory:
    """Every test of this module runs on it, with a link so slow that to decode is worth it."""
    made = FakeTorchMemory()
    use_fake_gpu(monkeypatch, homes=True, memory=made)
    opened = FakeGpu.__init__

    def slow(self: FakeGpu) -> None:
        opened(self)
        self.link_bytes_per_second = 1e6

    monkeypatch.setattr(FakeGpu, "__init__", slow)
    return made


def budget_of(model: Any, share: float) -> int:
    """A share of what everything takes, and the ring that such small models need."""
    return int(ts.estimate_memory(model).everything_fits_bytes * share) + RING_BYTES


def make(layers: int = 12) -> Any:
    return make_stack(layers).to(torch.bfloat16)


def native_plan(model: Any) -> Any:
    return orchestrator_of(model).engine.plan


def check(model: nn.Module, plain: nn.Module, what: str) -> None:
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(row_ids()), plain(row_ids()), what)


def test_outputs_are_bit_identical_at_each_budget() -> None:
    plain = make()
    kept = 0
    for share in SHARES:
        model = make()
        ts.offload(model, ram_budget=budget_of(model, share), compression=1)
        check(model, plain, f"{share}")
        plan, stats = native_plan(model), ts.stats(model)
        assert stats.held_bytes <= stats.budget_bytes
        if plan.kept_bytes:
            kept += 1
            assert stats.kept_bytes
            assert stats.kept_decoded_bytes
        ts.restore(model)
        with torch.no_grad():
            assert_same(model(row_ids()), plain(row_ids()), "restored")
    assert kept > 1


def test_without_compression_nothing_is_kept() -> None:
    plain = make()
    for share in SHARES:
        model = make()
        ts.offload(model, ram_budget=budget_of(model, share), compression="none")
        check(model, plain, f"{share}")
        assert native_plan(model).kept_bytes == 0
        assert ts.stats(model).kept_bytes == ts.stats(model).kept_decoded_bytes == 0


def test_budgets_move_and_weights_are_written() -> None:
    plain, model = make(), make()
    ts.offload(model, ram_budget=budget_of(model, 0.8), compression=1)
    assert native_plan(model).kept_bytes
    for step, share in enumerate((0.6, 0.9, 0.45, 0.7)):
        check(model, plain, f"before {share}")
        ts.set_budget(model, ram_budget=budget_of(plain, share))
        check(model, plain, f"at {share}")
        with torch.no_grad():
            for parameter, other in list(zip(model.parameters(), plain.parameters(), strict=True))[
                step::3
            ]:
                parameter.mul_(1.5)
                other.mul_(1.5)
        check(model, plain, f"written at {share}")
    for (key, value), other in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert_same(value, other, key)


def test_what_is_kept_gives_way_to_torch_and_comes_back(memory: FakeTorchMemory) -> None:
    plain, model = make(), make()
    ts.offload(model, ram_budget=budget_of(model, 0.8), compression=1)
    engine = orchestrator_of(model).engine
    check(model, plain, "kept")
    wanted = 200 << 10

    def ask(*_: Any) -> None:
        if not memory.kept:
            memory.kept.append(memory.malloc(engine.statistics().kept_bytes and wanted))

    handle = model.blocks[1].register_forward_pre_hook(ask)
    for wanted in (200 << 10, 500 << 10):
        check(model, plain, f"{wanted} bytes for torch")
        for segment in memory.kept:
            memory.free(segment)
        memory.kept.clear()
    handle.remove()
    for _ in range(4):
        check(model, plain, "back")
    assert ts.stats(model).held_bytes <= ts.stats(model).budget_bytes


def test_two_models_side_by_side() -> None:
    plain = make()
    models = [make(), make()]
    for model in models:
        ts.offload(model, ram_budget=budget_of(model, 0.75), compression=1)
    for _ in range(2):
        for model in models:
            check(model, plain, "two")


def test_a_plan_says_what_stays_coded() -> None:
    model = make()
    ts.offload(model, ram_budget=budget_of(model, 0.8), compression=1)
    plan = native_plan(model)
    assert plan.kept_bytes < plan.kept_weights_bytes
    names = {ts.report.PLACEMENTS[placement] for placement in plan.placements}
    assert "resident coded" in names
