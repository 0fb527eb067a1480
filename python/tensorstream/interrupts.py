"""Signals of Python's, such as Ctrl-C, held back while a model is between two states."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from tensorstream import _native

_Handler = Callable[[int, FrameType | None], Any]
# Those under way, of the main thread, the innermost last; and any that an interrupt left here.
_holding: list[HeldBack] = []


class HeldBack:
    """A context in which no handler of a signal runs: those of signals that came run at its end.

    Only the main thread runs handlers; on any other it does nothing.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._restarting: set[int] = set()  # those after which the system goes on with a call
        self._came: list[int] = []
        self._holds = False
        self._thread = threading.get_ident()

    def __enter__(self) -> HeldBack:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._holds = True
        _holding.append(self)
        try:
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    if _native.restarts_calls(number):
                        self._restarting.add(number)
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        except BaseException:  # of a handler that was not held back yet
            self._put_back()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._holds = False
            self.check()  # before another could raise amid the rest
            self._holds = True
        finally:
            self._holds = True
            try:
                self._put_back()
            finally:
                self.check()

    def _put_back(self) -> None:
        """All handlers: those that are back may raise meanwhile, the others take note of their signals."""
        try:
            self._put_back_each(list(self._handlers.items()))
        finally:
            self._holds = False
            _holding[:] = [each for each in _holding if each is not self]

    def _put_back_each(self, left: list[tuple[int, _Handler]]) -> None:
        try:
            while left:
                self._put_back_one(*left[-1])
                left.pop()
        finally:
            if left:
                self._put_back_each(left)

    def _put_back_one(self, number: int, handler: _Handler) -> None:
        signal.signal(number, handler)
        if number in self._restarting:  # signal() takes that off
            signal.siginterrupt(number, False)

    def _enter_child(self) -> None:
        """In a forked child: its thread is another one, which nobody holds signals back for."""
        if threading.get_ident() == self._thread:
            return
        self._came.clear()
        self._holds = False
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:
                self._put_back_one(number, handler)

    def check(self) -> None:
        """Runs handlers of signals that came: where what is under way can be given up."""
        if not self._came:
            return
        number = self._came.pop(0)
        try:
            self._handlers[number](number, None)
        finally:
            self.check()

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Within it handlers run as ever: for what can be given up, such as a wait."""
        held, self._holds = self._holds, False
        try:
            self.check()
            yield
        finally:
            self._holds = held

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._holds:  # guard: held-back
            self._came.append(number)
        else:
            self._handlers[number](number, frame)


def _enter_child() -> None:
    for held in reversed(_holding):
        held._enter_child()


os.register_at_fork(after_in_child=_enter_child)
