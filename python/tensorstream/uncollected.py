"""Times without collections of garbage: frames of other threads can be read in them alone.

Python 3.11 collects as it makes an object, also amid `sys._current_frames()` and `frame.f_back`. What a
collection ends may let the other thread run on; the frame that was looked for is then gone, and what
lies in its place is returned as a frame (python/cpython#106883).
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator


class _Times:
    """Those under way, of all threads: collections are as they were when the last is over."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way = 0
        self.collects = False

    def begin(self) -> None:
        with self.lock:
            if self.under_way == 0:
                self.collects = gc.isenabled()
            gc.disable()  # guard: uncollected
            self.under_way += 1

    def end(self) -> None:
        with self.lock:
            self.under_way -= 1
            if self.under_way == 0 and self.collects:
                gc.enable()

    def end_all(self) -> None:
        """In a forked child: the threads whose times they were are not there."""
        self.lock = threading.Lock()
        if self.under_way > 0:
            self.under_way = 1
            self.end()


_times = _Times()
os.register_at_fork(after_in_child=_times.end_all)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile, on any thread."""
    _times.begin()
    try:
        yield
    finally:
        _times.end()
