"""Writes to streamed weights, and leases of them, while another thread moves or restores the model."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from model_shapes import make_stack, row_ids
from tensorstream import orchestrator
from tensorstream.orchestrator import Orchestrator, orchestrator_of
from test_gate import PATIENCE_S, in_thread


class Holding:
    """Calls something else, and returns once it is let go."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self._call = call

    def __call__(self, *args: Any) -> Any:
        result = self._call(*args)
        self.inside.set()
        assert self.go_on.wait(PATIENCE_S)
        return result


class HoldingEngine:
    """An engine that has moved its groups, and does not return yet."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.set_budget = Holding(engine.set_budget)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def multiply(weight: nn.Parameter) -> None:
    weight.mul_(3)


def multiply_data(weight: nn.Parameter) -> None:
    weight.data.mul_(3)


def exchange(weight: nn.Parameter) -> None:
    weight.data = torch.full_like(weight, 0.25, device="cpu")


def copy_to(weight: nn.Parameter) -> None:
    nn.Parameter.copy_(weight, torch.full(tuple(weight.shape), 0.25))


WRITES = [multiply, multiply_data, exchange, copy_to]


def streamed(device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    if device == "gpu":
        use_fake_gpu(monkeypatch, homes=True)
    return offload_tightly(make_stack(4))


def written(write: Callable[[nn.Parameter], None]) -> Any:
    plain = make_stack(4)
    with torch.no_grad():
        write(plain.blocks[1].up.weight)
    return plain


def check_that_a_write_waits(
    model: Any, write: Callable[[nn.Parameter], None], held: Holding, moving: threading.Thread
) -> None:
    """Writes while `held` is in the midst of moving the model, and lets it go on."""
    assert held.inside.wait(PATIENCE_S)
    writing, wrote = in_thread(lambda: write(model.blocks[1].up.weight))
    writing.join(0.2)
    assert writing.is_alive(), wrote
    held.go_on.set()
    for thread in (moving, writing):
        thread.join(PATIENCE_S)
    assert wrote == [None]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_write_waits_for_a_budget_that_moves(
    write: Callable[[nn.Parameter], None], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = streamed(device, monkeypatch)
    mine = orchestrator_of(model)
    engine: Any = HoldingEngine(mine.engine)
    monkeypatch.setattr(mine, "engine", engine)
    moving, moved = in_thread(lambda: ts.set_budget(model, ram_budget="1GiB"))
    check_that_a_write_waits(model, write, engine.set_budget, moving)
    assert moved == [model]
    plain = written(write)
    assert_same(model.blocks[1].up.weight, plain.blocks[1].up.weight)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
    ts.restore(model)
    assert_same(list(model.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_write_waits_for_a_model_that_is_restored(
    write: Callable[[nn.Parameter], None], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = streamed(device, monkeypatch)
    taken = Holding(orchestrator.values_in_ram)
    monkeypatch.setattr(orchestrator, "values_in_ram", taken)
    restoring, restored = in_thread(lambda: ts.restore(model))
    check_that_a_write_waits(model, write, taken, restoring)
    assert restored == [model]
    assert_same(list(model.parameters()), list(written(write).parameters()))


class Leased:
    """A group that another thread has, as a backward of which it takes a weight."""

    def __init__(self, model: nn.Module) -> None:
        self._engine = orchestrator_of(model).engine
        self._group = next(group for group in range(9) if self._engine.acquire(group))

    def end(self) -> None:
        self._engine.release(self._group)

    def end_later(self) -> threading.Timer:
        timer = threading.Timer(0.3, self.end)
        timer.start()
        return timer


def test_a_lease_of_another_thread_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = offload_tightly(make_stack(4))
    attempts: list[Any] = []
    leave = Orchestrator._leave

    def counted(self: Any, *args: Any) -> None:
        attempts.append(args)
        leave(self, *args)

    monkeypatch.setattr(Orchestrator, "_leave", counted)
    timer = Leased(model).end_later()
    ts.set_budget(model, ram_budget="1GiB")
    timer.join()
    assert len(attempts) == 1, "weights were parked and taken back again and again"
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))


def test_an_interrupt_ends_the_wait_for_a_lease() -> None:
    model: Any = offload_tightly(make_stack(4))
    before = ts.stats(model).budget_bytes
    leased = Leased(model)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ts.set_budget(model, ram_budget="1GiB")
        assert time.monotonic() - began < 5
    finally:
        timer.join()
        signal.signal(signal.SIGINT, handler)
    leased.end()
    assert ts.stats(model).budget_bytes == before
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))
    ts.set_budget(model, ram_budget="1GiB")
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))
