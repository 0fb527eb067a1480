"""One forward at a time: who runs a model now, and whether that forward is still alive."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType

from tensorstream.exceptions import ConfigError

# How often a thread that waits for a model looks whether the forward it waits for was abandoned: a thread
# that ends inside a forward (Ctrl-C skips post-hooks) wakes nobody.
_ABANDONED_CHECK_SECONDS = 0.05


class Session:
    """The right to run a model. Threads wait for each other; one thread may enter again.

    A forward is known by the frame that calls its hooks: when that frame is on no stack any more, the
    forward is over, whether its post-hooks ran or not.
    """

    def __init__(self, reclaim: Callable[[], None]) -> None:
        """`reclaim` gives back everything that an abandoned forward held."""
        self._reclaim = reclaim
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._owner: int | None = None
        self._frames: list[FrameType] = []
        self._left_open = False

    def enter(self, frame: FrameType) -> None:
        """Waits until no other thread runs the model, and takes it for the forward that `frame` runs."""
        with self._lock:
            self._wait(frame)
            self._owner = threading.get_ident()
            self._frames.append(frame)

    def enter_alone(self, frame: FrameType) -> None:
        """As enter(), for what cannot be done in the midst of a forward.

        Raises:
            ConfigError: This thread runs one.
        """
        with self._lock:
            self._wait(frame)
            if self._owner is not None:  # guard: amidst-forward
                raise ConfigError(
                    "this thread is in a forward of the model: set its budget before or after it"
                )
            self._owner = threading.get_ident()
            self._frames.append(frame)

    def _wait(self, frame: FrameType) -> None:
        """Waits until nobody, or this thread, runs the model."""
        me = threading.get_ident()
        while (other := self._owner) is not None and other != me:
            if not self._end_if_abandoned(sys._current_frames().get(other)):
                self._changed.wait(_ABANDONED_CHECK_SECONDS)
        if self._owner == me:
            self._end_if_abandoned(frame)

    def is_outermost(self, frame: FrameType) -> bool:
        """Whether this thread runs the model, and `frame` is the forward that all others are in."""
        mine = self._owner == threading.get_ident()
        return mine and bool(self._frames) and self._frames[0] is frame

    def leave(self, frame: FrameType) -> bool:
        """Ends the forward that entered with `frame`. False where it was given up before."""
        with self._lock:
            if self._owner != threading.get_ident() or frame not in self._frames:
                return False
            while self._frames.pop() is not frame:
                self._left_open = True  # an interrupt ended it, and its caller went on
            if not self._frames:
                self._end(reclaim=self._left_open)
            return True

    def _end_if_abandoned(self, running: FrameType | None) -> bool:
        """Gives the session up where its outermost forward is not on the stack of `running`."""
        outermost, innermost = self._frames[0], self._frames[-1]
        while running is not None and running is not innermost and running is not outermost:
            running = running.f_back  # whoever is in the innermost one is in all others
        if running is not None:
            return False
        self._end(reclaim=True)
        return True

    def _end(self, reclaim: bool) -> None:
        if reclaim:  # guard: abandoned-forward
            self._reclaim()
        self._frames.clear()
        self._left_open = False
        self._owner = None
        self._changed.notify_all()
