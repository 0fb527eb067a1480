"""Signals of Python's, such as Ctrl-C, held back while a model is between two states."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]


class HeldBack:
    """A context in which no handler of a signal runs: those of signals that came run at its end.

    Only the main thread runs handlers; on any other it does nothing.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._came: list[int] = []
        self._holds = False

    def __enter__(self) -> HeldBack:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._holds = True
        try:
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
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
        self._put_back()
        self.check()

    def _put_back(self) -> None:
        self._holds = False  # a handler that raises below leaves others that pass signals on
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

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
