"""Threads that wait for each other's forwards, where what they ask meanwhile lets others run."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same
from tensorstream import _native
from tensorstream.proxy import LentParameter


class Owner:
    """A thread that runs the model, until it is told to leave it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._entered = threading.Event()
        self._may_leave = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._entered.wait(10)

    def leave(self) -> None:
        self._may_leave.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        frame = sys._getframe()
        self._session.enter(frame)
        self._entered.set()
        self._may_leave.wait(10)
        self._session.leave(frame)


def test_who_runs_the_model_leaves_it_while_another_looks_whether_to_wait() -> None:
    reclaimed: list[None] = []

    def waits_for_caller() -> bool:
        owner.leave()
        return False

    session = _native.Session(lambda: reclaimed.append(None), waits_for_caller)
    owner = Owner(session)
    frame = sys._getframe()
    assert session.enter(frame), "it is the outermost"
    assert session.is_outermost(frame)
    assert session.leave(frame)
    assert not reclaimed, "nothing was abandoned"


def test_another_takes_the_model_meanwhile() -> None:
    owners: list[Owner] = []
    reclaimed: list[None] = []

    def waits_for_caller() -> bool:
        owners[-1].leave()
        if len(owners) < 3:
            owners.append(Owner(session))
        return False

    session = _native.Session(lambda: reclaimed.append(None), waits_for_caller)
    owners.append(Owner(session))
    frame = sys._getframe()
    assert session.enter(frame)
    assert len(owners) == 3, "it waited for each of them"
    assert session.leave(frame)
    assert not reclaimed


def test_an_answer_that_is_none_is_raised() -> None:
    class Answer:
        def __bool__(self) -> bool:
            raise RuntimeError("neither")

    session = _native.Session(lambda: None, Answer)
    owner = Owner(session)
    with pytest.raises(RuntimeError, match="neither"):
        session.enter(sys._getframe())
    owner.leave()
    assert session.enter(sys._getframe())


def test_a_model_whose_forward_was_abandoned_is_waited_for_by_nobody_for_long() -> None:
    """Its thread goes on to a model that who waits for it runs: that is no ring."""
    abandoned, other = (_native.Session(lambda: None, lambda: False) for _ in range(2))
    runs_other = threading.Event()
    frames: list[Any] = []

    def run_other() -> None:
        frame = sys._getframe()
        other.enter(frame)
        runs_other.set()
        abandoned.enter(frame)
        frames.append(frame)
        abandoned.leave(frame)
        other.leave(frame)

    thread = threading.Thread(target=run_other)

    def run_abandoned() -> None:
        abandoned.enter(sys._getframe())
        thread.start()
        assert runs_other.wait(10)
        time.sleep(0.12)  # it waits by now
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_abandoned()
    frame = sys._getframe()
    assert other.enter(frame)
    assert other.leave(frame)
    thread.join(10)
    assert len(frames) == 1


class Calls(nn.Module):
    """A model whose forward calls another one between its layers, once a partner came as far."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(300, 300), nn.Linear(300, 300)
        self.others: list[nn.Module] = []  # none of its modules
        self.met: threading.Barrier | None = None

    def forward(self, x: torch.Tensor, *, deep: bool = True) -> torch.Tensor:
        x = self.first(x)
        if deep and self.met is not None:
            self.met.wait(10)
        for other in self.others if deep else []:
            x = x + other(x, deep=False)
        last: torch.Tensor = self.last(x)
        return last


@pytest.mark.parametrize("count", [2, 3])
def test_models_that_call_each_other_in_opposite_order_do_not_wait_for_ever(count: int) -> None:
    """Each of `count` threads runs a model that calls the next: a ring. One is told, the others go on."""
    models = [Calls(seed) for seed in range(count)]
    for model, other in zip(models, models[1:] + models[:1], strict=True):
        model.others.append(other)
    x = torch.ones(2, 300)
    expected = [model(x) for model in models]
    for model in models:
        ts.offload(model, ram_budget=ts.estimate_memory(model).smallest_budget_bytes)
    barrier = threading.Barrier(count)
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        models[number].met = barrier
        try:
            results[number] = models[number](x)
        except ts.TensorStreamError as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == count, "some still wait"
    told = [each for each in results.values() if isinstance(each, ts.UnsupportedError)]
    assert len(told) == 1
    assert "models that call each other" in str(told[0])
    for number, model in enumerate(models):
        model.met = None
        if not isinstance(results[number], Exception):
            assert_same(results[number], expected[number], "one that went on")
        assert_same(model(x), expected[number], "one after the other")


class Slow(nn.Linear):
    """In another thread than the main one it computes once it is told to, and notes its weight's type."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.types: list[type] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            self.begun.set()
            assert self.may_go_on.wait(30)
            self.types.append(type(self.weight))
        return super().forward(x)


def test_who_is_stopped_as_it_waits_gives_back_nothing_of_who_runs_the_model() -> None:
    """Torch calls a module's post-hook where its pre-hook failed, too."""
    model = nn.Sequential(nn.Linear(64, 64), Slow(), nn.Linear(64, 64))
    x = torch.ones(2, 64)
    with torch.no_grad():
        expected = model(x)
    ts.offload(model, ram_budget=ts.estimate_memory(model).smallest_budget_bytes)
    slow = model[1]
    results: list[torch.Tensor] = []

    def run() -> None:
        with torch.no_grad():
            results.append(model(x))

    def stop(*_: Any) -> None:
        raise TimeoutError("the deadline")

    thread = threading.Thread(target=run)
    thread.start()
    assert slow.begun.wait(30)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeoutError, match="deadline"):
            slow(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        slow.may_go_on.set()
        thread.join(30)
    assert slow.types == [LentParameter]
    assert_same(results[0], expected, "who ran the model")
    with torch.no_grad():
        assert_same(model(x), expected, "and later")
