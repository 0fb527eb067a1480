"""Torch's allocations under a model's budget: a stand-in for its allocator, the engine on the fake GPU."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of
from fake_gpu import FakeTorchMemory, fake_torch_memory
from model_shapes import make_stack, row_ids
from tensorstream import torch_pool
from tensorstream.exceptions import CudaBudgetError
from tensorstream.orchestrator import orchestrator_of
from tensorstream.torch_pool import Scopes, TorchPool

MIB = 1 << 20


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchMemory]:
    yield from fake_torch_memory(monkeypatch)


class Activations:
    """What a forward of a model allocates: a hook on its second block asks for it, and keeps it cached."""

    def __init__(self, model: Any, memory: FakeTorchMemory) -> None:
        self.bytes = 0
        self.memory = memory
        self.handle = model.blocks[1].register_forward_pre_hook(self.ask)

    def ask(self, *_: Any) -> None:
        if self.bytes and len(self.memory.kept) == 0:
            self.memory.kept.append(self.memory.malloc(self.bytes))


def offload(room: float, **options: Any) -> tuple[Any, int]:
    """A model whose budget is `room` times the smallest, and that budget."""
    model = make_stack(8)
    budget = int(ts.estimate_memory(model).smallest_budget_bytes * room)
    return ts.offload(model, **{"ram_budget": budget, "compression": "none", **options}), budget


def check(model: nn.Module) -> None:
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(8)(row_ids()))


def resident_bytes(model: Any) -> int:
    return ts.stats(model).held_bytes


def test_long_then_short(memory: FakeTorchMemory) -> None:
    model, budget = offload(6)
    for _ in range(12):  # residents take what forwards leave
        check(model)
    held = resident_bytes(model)
    activations = Activations(model, memory)
    activations.bytes = budget - held + 4096  # a long sequence
    for _ in range(3):
        check(model)
        stats = ts.stats(model)
        assert stats.given_way_bytes > 0
        assert stats.held_bytes + stats.torch_bytes <= budget
    gone = ts.stats(model).gave_way
    activations.bytes = 0  # short ones: torch keeps what it has until it is asked to let go
    assert len(memory.pools) == 1
    for _ in range(20):  # twice as long as before: they had come back for a short while
        check(model)
        stats = ts.stats(model)
        assert stats.held_bytes + stats.torch_bytes <= budget
    assert len(memory.pools) == 2
    stats = ts.stats(model)
    assert stats.torch_bytes == 0
    assert stats.held_bytes == held
    assert stats.gave_way == gone
    check(model)


def test_what_cannot_fit_is_an_error_with_the_numbers_and_the_model_goes_on(
    memory: FakeTorchMemory,
) -> None:
    model, budget = offload(3)
    activations = Activations(model, memory)
    activations.bytes = 64 * MIB
    for _ in range(2):
        with pytest.raises(ts.BudgetError, match=r"^CUDA out of memory") as raised:
            check(model)
        error = raised.value
        assert isinstance(error, torch.OutOfMemoryError)
        assert isinstance(error, MemoryError)
        assert type(error) is CudaBudgetError
        assert error.budget_bytes == budget
        assert error.needed_bytes > 64 * MIB
        assert "the caller's to reset" in str(error)
        assert isinstance(error.__cause__, torch.OutOfMemoryError)
    activations.bytes = 1000
    check(model)
    check(model)


def test_what_a_smaller_arena_fits_works_from_the_next_forward_on(
    memory: FakeTorchMemory,
) -> None:
    model, budget = offload(5)
    plan = orchestrator_of(model).engine.plan
    smallest = plan.smallest_budget_bytes
    assert smallest < plan.arena_bytes
    activations = Activations(model, memory)
    activations.bytes = budget - (smallest + plan.arena_bytes) // 2
    with pytest.raises(ts.BudgetError):
        check(model)
    for _ in range(3):
        check(model)
        stats = ts.stats(model)
        assert stats.held_bytes + stats.torch_bytes <= budget
    pressed = ts.stats(model).held_bytes
    activations.bytes = 0
    for _ in range(12):
        check(model)
    assert ts.stats(model).torch_bytes == 0
    assert ts.stats(model).held_bytes > pressed


def test_after_a_refused_forward_torch_begins_anew_and_with_whole_blocks(
    memory: FakeTorchMemory,
) -> None:
    model, budget = offload(4)
    activations = Activations(model, memory)
    check(model)
    assert not memory.keeps_whole
    assert len(memory.pools) == 1
    activations.bytes = 2 * budget
    with pytest.raises(ts.BudgetError):
        check(model)
    assert memory.keeps_whole
    assert len(memory.pools) == 2
    released = memory.releases
    activations.bytes = 0
    check(model)
    assert memory.releases > released  # what the exception held is gone by then
    assert len(memory.pools) == 2


@pytest.mark.parametrize("given", ["", "expandable_segments:True", "max_split_size_mb:64"])
def test_torch_is_told_to_keep_blocks_whole_beside_what_it_was_told(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [given]
    monkeypatch.setattr(torch_pool, "_allocator_settings", lambda: told[-1])
    monkeypatch.setattr(torch_pool, "_set_allocator_settings", told.append)
    torch_pool.TorchMemory().keep_large_blocks_whole()
    if "max_split" in given:
        assert told == [given]
    else:
        assert told[1:] == [",".join(filter(None, (given, "max_split_size_mb:21")))]
    torch_pool.TorchMemory().keep_large_blocks_whole()
    assert len(told) <= 2


def test_room_is_left_for_small_segments_where_blocks_stay_whole(memory: FakeTorchMemory) -> None:
    asked = []
    ceiling: Any = SimpleNamespace(keep_for_small_segments=lambda: asked.append(True))
    pool = TorchPool(ceiling, 0, memory, (1, 1))
    assert asked == []
    pool.keep_whole()  # of a forward that was refused
    assert asked == []
    pool.prepare_training()
    assert asked == [True]
    assert memory.keeps_whole


def test_a_forward_that_catches_it_goes_on(memory: FakeTorchMemory) -> None:
    model, _ = offload(2)

    def ask(*_: Any) -> None:
        with pytest.raises(torch.OutOfMemoryError):
            memory.malloc(64 * MIB)

    model.blocks[2].register_forward_pre_hook(ask)
    check(model)
    try:
        raise torch.OutOfMemoryError("another one, handled while the model runs")
    except torch.OutOfMemoryError as error:
        check(model)
        assert str(error).startswith("another")


def test_other_errors_are_left_as_they_are(memory: FakeTorchMemory) -> None:
    model, _ = offload(2)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("not ours")

    model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="not ours") as raised:
        check(model)
    assert type(raised.value) is torch.OutOfMemoryError


def test_strict_refuses_and_moves_nothing(memory: FakeTorchMemory) -> None:
    model, budget = offload(3, pressure="strict")
    held = resident_bytes(model)
    activations = Activations(model, memory)
    activations.bytes = budget - held + 1
    with pytest.raises(ts.BudgetError):
        check(model)
    stats = ts.stats(model)
    assert (stats.gave_way, stats.held_bytes, stats.refusals) == (0, held, 1)
    activations.bytes = budget - held - budget // 32  # the rest is calling code's
    check(model)


def test_strict_holds_where_everything_fits_too(memory: FakeTorchMemory) -> None:
    model, budget = offload(40, pressure="strict")
    assert len(hooks_of(model)) == 2
    activations = Activations(model, memory)
    activations.bytes = budget
    with pytest.raises(ts.BudgetError):
        check(model)


def test_lenient_passes_the_budget_with_one_warning(
    memory: FakeTorchMemory, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = offload(2, pressure="lenient")
    activations = Activations(model, memory)
    activations.bytes = 64 * MIB
    for _ in range(3):
        check(model)
        memory.free(memory.kept.pop())
    stats = ts.stats(model)
    assert stats.beyond_bytes == 3 * 64 * MIB
    assert stats.refusals == 0
    assert sum("beyond the budget" in record.message for record in caplog.records) == 1


def test_a_model_that_fits_with_room_has_no_hooks(memory: FakeTorchMemory) -> None:
    model, _ = offload(40)
    assert hooks_of(model) == []
    check(model)


def test_the_pool_is_used_from_the_outermost_forward_to_its_end(memory: FakeTorchMemory) -> None:
    model, _ = offload(2)
    seen: list[int] = []
    model.blocks[1].register_forward_pre_hook(lambda *_: seen.append(len(memory.active)))

    def nested(*_: Any) -> None:
        if len(seen) == 1:
            check(model)

    model.blocks[2].register_forward_pre_hook(nested)
    check(model)
    assert seen == [1, 1]
    assert memory.active == []

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.blocks[3].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        check(model)
    handle.remove()
    check(model)
    assert memory.active == []


def test_a_forward_that_a_thread_abandoned_leaves_the_pool(memory: FakeTorchMemory) -> None:
    model, _ = offload(2)

    def end(*_: Any) -> None:
        raise SystemExit

    handle = model.blocks[3].register_forward_pre_hook(end)

    def run() -> None:
        with contextlib.suppress(SystemExit):
            check(model)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    handle.remove()
    check(model)
    assert memory.active == []


def test_two_models_are_each_under_their_own_budget(memory: FakeTorchMemory) -> None:
    outer, _ = offload(3)
    inner, _ = offload(2)
    taken: list[int] = []

    def ask(*_: Any) -> None:
        taken.append(memory.malloc(4096))

    def run_inner(*_: Any) -> None:
        check(inner)

    inner.blocks[0].register_forward_pre_hook(ask)
    outer.blocks[0].register_forward_pre_hook(run_inner)
    outer.blocks[1].register_forward_pre_hook(ask)
    check(outer)
    assert ts.stats(inner).torch_bytes == 4096
    assert ts.stats(outer).torch_bytes == 4096
    for data in taken:
        memory.free(data)
    assert ts.stats(inner).torch_bytes == ts.stats(outer).torch_bytes == 0


def test_what_tensors_hold_outlives_the_model(memory: FakeTorchMemory) -> None:
    model, _ = offload(2)
    held: list[int] = []
    model.blocks[1].register_forward_pre_hook(lambda *_: held.append(memory.malloc(4096)))
    check(model)
    ts.restore(model)
    memory.free(held[0])
    with torch.no_grad(), pytest.raises(AssertionError, match="outside a pool"):
        model(row_ids())


def test_the_budget_moves_under_pressure(memory: FakeTorchMemory) -> None:
    model, budget = offload(8)
    activations = Activations(model, memory)
    activations.bytes = budget - resident_bytes(model) + 1
    check(model)
    assert ts.stats(model).given_way_bytes > 0
    torch_bytes = ts.stats(model).torch_bytes
    for room in (4.0, 2.4, 8.0):
        ts.set_budget(model, ram_budget=int(budget * room / 8) + torch_bytes)
        stats = ts.stats(model)
        assert stats.held_bytes + stats.torch_bytes <= stats.budget_bytes
        check(model)


def test_a_torch_without_pools_is_capped_for_the_process(
    memory: FakeTorchMemory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.has_pools = False
    model, _ = offload(2)
    assert 0 < memory.caps[0] < 1
    assert any("capped for the whole process" in record.message for record in caplog.records)
    check(model)


def test_a_pressure_that_is_none() -> None:
    with pytest.raises(ts.ConfigError, match=r"pressure is 'relaxed'.*adaptive, strict, lenient"):
        ts.Config(pressure="relaxed")


class OneUse:
    """Stands for a forward that allocates from a pool."""


def test_what_a_pool_keeps_is_given_back_while_none_is_in_use() -> None:
    memory, scopes = FakeTorchMemory(), Scopes()
    first, second = OneUse(), OneUse()
    scopes.open(first)
    scopes.open(second)
    scopes.retire([1], memory, 0)
    scopes.close(first)
    assert memory.gone == [1]
    assert memory.releases == 0
    scopes.close(second)
    assert memory.releases == 1
    scopes.open(first)
    scopes.close(first)
    assert memory.releases == 1
    scopes.retire([2], memory, 0)
    assert memory.releases == 2


def test_what_a_pool_keeps_is_given_back_after_a_capture() -> None:
    memory, scopes = FakeTorchMemory(), Scopes()
    memory.captures = True
    scopes.retire([1], memory, 0)
    use = OneUse()
    scopes.open(use)
    scopes.close(use)
    assert memory.releases == 0
    memory.captures = False
    scopes.open(use)
    scopes.close(use)
    assert memory.releases == 1


@pytest.mark.parametrize("moment", ["opened", "entered", "made"])
def test_an_interrupt_as_a_forward_begins_leaves_no_pool_in_use(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, scopes = FakeTorchMemory(), Scopes()
    monkeypatch.setattr(torch_pool, "_scopes", scopes)
    left: list[str] = []

    class InterruptedCeiling:
        def enter(self) -> None:
            if moment == "entered":
                raise KeyboardInterrupt

        def leave(self) -> None:
            left.append(moment)

    def open_and_interrupt(use: object) -> None:
        Scopes.open(scopes, use)
        if moment == "opened":
            raise KeyboardInterrupt

    def begin() -> None:
        torch_pool._Use(
            threading.RLock(), cast(Any, InterruptedCeiling()), contextlib.nullcontext()
        )
        raise KeyboardInterrupt  # before anybody holds it

    monkeypatch.setattr(scopes, "open", open_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        begin()
    gc.collect()
    scopes.release_free(memory)
    assert memory.releases == 1
    assert left == ([moment] if moment == "entered" else [])


def test_what_is_retired_while_torch_gives_back_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, scopes = FakeTorchMemory(), Scopes()
    release = memory.release_free

    def collecting() -> bool:
        monkeypatch.undo()
        scopes.retire([2], memory, 0)
        return release()

    monkeypatch.setattr(memory, "release_free", collecting)
    scopes.retire([1], memory, 0)
    assert (memory.gone, memory.releases) == ([1, 2], 2)


def test_the_pool_of_a_model_that_is_collected_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, scopes = FakeTorchMemory(), Scopes()
    monkeypatch.setattr(torch_pool, "_scopes", scopes)
    pool = TorchPool(cast(Any, None), 0, memory, (1, 1))
    other = OneUse()
    scopes.open(other)
    del pool
    gc.collect()
    assert (memory.gone, memory.releases) == ([0], 0)
    scopes.close(other)
    assert memory.releases == 1


def test_torchs_pools_are_never_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The destructor of a real one ends the process where another thread captures."""

    class Pool:
        id = (0, 7)

        def __init__(self, allocator: Any) -> None:
            del allocator

    let_go: list[Any] = []
    monkeypatch.setattr(torch_pool, "_allocator", lambda: SimpleNamespace(allocator=lambda: None))
    monkeypatch.setattr(torch.cuda, "MemPool", Pool)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda.memory, "_cuda_releasePool", lambda *of: let_go.append(of))
    pool = torch_pool.TorchMemory().make_pool(0)
    torch_pool.TorchMemory().let_go(pool, 0)
    assert let_go == [(0, (0, 7))]
    lives = weakref.ref(pool)
    del pool
    gc.collect()
    assert lives() is not None


def test_torch_gives_nothing_back_beside_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "empty_cache", refused)
    memory = torch_pool.TorchMemory()
    assert not memory.release_free()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert memory.release_free()
    capturing[0] = True
    assert not memory.release_free()
