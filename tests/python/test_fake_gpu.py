"""Models on a device that is not the host, by the fake driver: with weights at home and without."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly, save
from fake_gpu import FakeDriver, FakeGpu, FakeTorchMemory, use_fake_gpu
from model_shapes import SHAPES, make_stack, row_ids
from parked_pair import make_pair
from tensorstream import _native
from tensorstream.host_rate import seconds_of_a_call
from tensorstream.orchestrator import orchestrator_of
from test_parking_gradients import *  # noqa: F403 - the same tests, on the other device
from test_parking_reads import *  # noqa: F403
from test_parking_views import *  # noqa: F403
from test_parking_writes import *  # noqa: F403
from test_set_budget import *  # noqa: F403

# Memory that a model had before it was moved to a device is no alias of what it has there, and weights
# at home are counted and read otherwise than those in files: see below.
for name in (
    "test_a_tensor_held_since_before_the_offload_stays_an_alias",
    "test_memory_that_is_written_to_its_file_stays_shared",
    "test_rows_of_an_embedding_are_read_without_its_table",
    "test_reads_between_uses_keep_no_memory",
):
    del globals()[name]


@pytest.fixture(autouse=True, params=["home", "no home"])
def homes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test of this module runs on the fake GPU."""
    at_home: bool = request.param == "home"
    use_fake_gpu(monkeypatch, homes=at_home)
    return at_home


def test_a_lease_does_without_what_no_device_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    given = FakeGpu.lease_functions

    def fewest(device: FakeGpu, loans: object) -> _native.LeaseFunctions:
        all_of_them, functions = given(device, loans), _native.LeaseFunctions()
        assert functions.prepare is None
        assert functions.settle is None
        for name in ("stream", "settle", "loans", "autocasts", "clear_casts"):
            setattr(functions, name, getattr(all_of_them, name))
        return functions

    monkeypatch.setattr(FakeGpu, "lease_functions", fewest)
    model, plain = offload_tightly(make_stack(5)), make_stack(5)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
@pytest.mark.parametrize("source", ["file", "memory"])
def test_models_are_bit_identical(name: str, source: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    plain: Any = shape.make(4)
    path = save(plain, tmp_path / name)
    model: nn.Module = type(plain).from_pretrained(path) if source == "file" else shape.make(4)
    estimate = ts.estimate_memory(model)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    with torch.no_grad():
        expected = plain(**shape.inputs())
    for step in range(5):
        ts.offload(model, ram_budget=smallest + (fits - smallest) * step // 4)
        with torch.no_grad():
            for round_ in range(2):
                assert_same(model(**shape.inputs()), expected, f"budget {step}, forward {round_}")
        ts.restore(model)
        with torch.no_grad():
            assert_same(model(**shape.inputs()), expected, f"restored after budget {step}")


def test_what_is_at_home_is_pinned_and_let_go_by_its_source(homes: bool) -> None:
    model = offload_tightly(make_stack(4))
    streamed = [p for p in model.parameters() if hasattr(p, "_tensorstream_weight")]
    pinned = orchestrator_of(model).engine.statistics().pinned_bytes
    assert pinned >= sum(p.nbytes for p in streamed) if homes else pinned == 0


def test_rows_of_a_table_at_home_need_no_copy_of_it(homes: bool, tmp_path: Path) -> None:
    pair = make_pair("file", tmp_path)
    for ids in (row_ids(), torch.tensor(3), torch.zeros(0, dtype=torch.int64)):
        before = ts.stats(pair.streamed).on_demand_bytes
        with torch.no_grad():
            assert_same(pair.streamed.table(ids), pair.plain.table(ids))
        read = ts.stats(pair.streamed).on_demand_bytes - before
        assert read == (0 if homes else ids.numel() * 256 * 4)


def test_values_that_nobody_holds_take_no_memory(tmp_path: Path) -> None:
    pair = make_pair("file", tmp_path)
    loans = orchestrator_of(pair.streamed).loans
    held = pair.weights[0].detach()
    assert loans.weights, "a value that somebody holds is watched"
    del held
    pair.streamed.blocks[0].up.weight.sum()
    assert not loans.weights
    values = pair.streamed.state_dict()
    del values
    pair.check_forward()
    assert not loans.weights


def test_host_memory_that_is_too_small_is_a_warning(
    homes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    offload_tightly(make_stack(4))
    warned = any("holds only a part of the weights" in r.message for r in caplog.records)
    assert warned != homes


def test_a_plan_goes_by_what_a_call_takes_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {}
    for call in (None, 1e-3, 2e-3):
        monkeypatch.setattr(FakeGpu, "host_call_seconds", call)
        model = make_stack(4)
        offload_tightly(model)
        seconds[call] = ts.stats(model).predicted_seconds
        assert seconds[call] == orchestrator_of(model).engine.plan.predicted_seconds
        parameters = len(list(model.parameters()))
        assert call is None or seconds[call] > 2.75 * call * parameters
    assert seconds[None] < seconds[1e-3] < seconds[2e-3]


def test_a_call_takes_time() -> None:
    assert 0 < seconds_of_a_call(torch.device("cpu")) < 1e-3


def test_forwards_say_what_the_host_takes_for_them() -> None:
    model = make_stack(4)
    offload_tightly(model)
    handle = model.blocks[1].register_forward_hook(lambda *_: time.sleep(0.05))
    with torch.no_grad():
        for _ in range(4):
            model.blocks[0](torch.zeros(1, 256))
        assert ts.stats(model).host_seconds == 0, "none of these was a whole one"
        expected = ts.stats(model).predicted_seconds
        assert expected == orchestrator_of(model).engine.plan.predicted_seconds > 0
        for _ in range(3):
            model(row_ids())
    handle.remove()
    stats = ts.stats(model)
    assert stats.host_seconds > 0.04
    assert stats.predicted_seconds > max(expected, stats.host_seconds)


def test_the_budget_that_an_error_names_works(monkeypatch: pytest.MonkeyPatch, homes: bool) -> None:
    memory = FakeTorchMemory()
    use_fake_gpu(monkeypatch, homes=homes, memory=memory, link_bytes_per_second=25e6)
    model, plain = make_stack(8), make_stack(8)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    ts.offload(model, ram_budget=9 * smallest, compression="none", pressure="lenient")
    kept: list[int] = []
    handle = model.blocks[1].register_forward_pre_hook(
        lambda *_: kept.append(memory.malloc(8 * smallest))
    )
    with torch.no_grad():
        model(row_ids())
        handle.remove()
        with pytest.raises(ts.BudgetError) as refused:
            ts.set_budget(model, ram_budget=smallest)
        ts.set_budget(model, ram_budget=refused.value.needed_bytes)
        assert ts.stats(model).budget_bytes == refused.value.needed_bytes
        assert_same(model(row_ids()), plain(row_ids()))
    for segment in kept:
        memory.free(segment)


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8])
def test_a_use_whose_end_is_not_recorded_is_over_all_the_same(nth: int) -> None:
    model, plain = make_stack(5), make_stack(5)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    ts.offload(model, ram_budget=2 * smallest)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        FakeDriver().fail("cuEventRecord", nth, 1)
        with contextlib.suppress(ts.CudaError):
            model(row_ids())
        FakeDriver().fail("cuEventRecord", 0, 0)
        assert_same(model(row_ids()), plain(row_ids()), "after the failure")
        for either in (model, plain):
            for parameter in either.parameters():
                parameter.mul_(2)
        assert_same(model(row_ids()), plain(row_ids()), "after a write")
        ts.set_budget(model, ram_budget=3 * smallest)
        assert_same(model(row_ids()), plain(row_ids()), "after the budget moved")
