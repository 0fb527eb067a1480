"""Threads that wait for each other's forwards, where what they ask meanwhile lets others run."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from tensorstream import _native


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
