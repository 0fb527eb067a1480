"""Residents that may give way: leased at each use, on a GPU by the fake driver, parked in their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same
from fake_gpu import FakeTorchMemory, fake_torch_memory
from model_shapes import make_stack, row_ids
from tensorstream.lent import LentGroup
from tensorstream.orchestrator import orchestrator_of
from tensorstream.proxy import ParkedParameter
from test_parking_gradients import *  # noqa: F403 - the same tests, where residents are leased
from test_parking_reads import *  # noqa: F403
from test_parking_views import *  # noqa: F403
from test_parking_writes import *  # noqa: F403

# As in test_fake_gpu.py.
for name in (
    "test_a_tensor_held_since_before_the_offload_stays_an_alias",
    "test_memory_that_is_written_to_its_file_stays_shared",
    "test_rows_of_an_embedding_are_read_without_its_table",
    "test_reads_between_uses_keep_no_memory",
):
    del globals()[name]


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchMemory]:
    """Every test of this module runs on the fake GPU, with torch's allocator under the budget."""
    yield from fake_torch_memory(monkeypatch)


def offload() -> Any:
    """A model of which some groups are resident, after forwards in which residents took their room."""
    model = make_stack(8)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    ts.offload(model, ram_budget=6 * smallest, compression="none")
    for _ in range(12):
        check(model)
    return model


def check(model: Any) -> None:
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(8)(row_ids()))


def residents(model: Any) -> list[LentGroup]:
    return [lent for lent in orchestrator_of(model)._lent.values() if lent.stays]


def bare(parameter: torch.Tensor) -> torch.Tensor:
    """What code sees that slips past the parameter's class."""
    assert isinstance(parameter, ParkedParameter)
    with torch._C.DisableTorchFunctionSubclass():
        return torch.clone(torch.Tensor.detach(parameter))


def test_residents_are_parked_on_their_places() -> None:
    model = offload()
    plain = dict(make_stack(8).named_parameters())
    kept = residents(model)
    assert kept
    for weight in [weight for lent in kept for weight in lent.weights]:
        assert torch.equal(bare(weight.parameter), plain[weight.name])


def test_a_resident_whose_place_went_is_seen_by_nobody(memory: FakeTorchMemory) -> None:
    model = offload()
    kept = residents(model)
    stats = ts.stats(model)
    wanted = stats.budget_bytes - stats.held_bytes + 4096

    def ask(*_: Any) -> None:
        memory.kept.append(memory.malloc(wanted))

    handle = model.blocks[7].register_forward_pre_hook(ask)
    check(model)
    handle.remove()
    moved = [
        lent
        for lent in kept
        if orchestrator_of(model).engine.place_number(lent.group) != lent.place_number
    ]
    assert moved
    for weight in [weight for lent in moved for weight in lent.weights]:
        assert bare(weight.parameter).isnan().all()
    check(model)


def test_a_smaller_budget_takes_the_bytes_of_residents_that_go() -> None:
    model = offload()
    kept = residents(model)
    smallest = ts.estimate_memory(make_stack(8)).smallest_budget_bytes
    ts.set_budget(model, ram_budget=2 * smallest)
    engine = orchestrator_of(model).engine
    gone = [lent for lent in kept if engine.place_number(lent.group) != lent.place_number]
    assert gone
    for weight in [weight for lent in gone for weight in lent.weights]:
        assert bare(weight.parameter).isnan().all()
    check(model)


def test_a_resident_that_is_settled_follows_the_engine() -> None:
    model = offload()
    assert residents(model)
    fits = ts.estimate_memory(make_stack(8)).everything_fits_bytes
    ts.set_budget(model, ram_budget=3 * fits)
    check(model)
    ts.set_budget(model, ram_budget=fits // 2)
    check(model)
    ts.restore(model)
    check(model)


class Exchanging(nn.Module):
    """Exchanges its two weights in its forward, if it is told to."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        made = [torch.randn(64, 64, generator=generator) for _ in range(2)]
        self.first, self.second = (nn.Parameter(value, requires_grad=False) for value in made)
        self.exchanges = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.exchanges:
            torch.utils.swap_tensors(self.first, self.second)
        return torch.tanh(x @ self.first) @ self.second


def test_weights_that_are_exchanged_in_a_forward_are_kept_exchanged() -> None:
    model = nn.Sequential(*(Exchanging(seed) for seed in range(6)))
    plain = nn.Sequential(*(Exchanging(seed) for seed in range(6)))
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    ts.offload(model, ram_budget=4 * smallest)
    x = torch.randn(3, 64)
    for exchanging in (True, False, True, True, False):
        for block in (*model, *plain):
            block.exchanges = exchanging  # type: ignore[assignment]
        assert_same(model(x), plain(x))
    assert all(hasattr(block.first, "_tensorstream_weight") for block in model)
    for ours, theirs in zip(model, plain, strict=True):
        assert torch.equal(ours.first, theirs.first)
        assert torch.equal(ours.second, theirs.second)
