"""Backward, as the calling thread sees it: whether it runs one, where one begins, and when it is over.

Torch computes gradients on threads of its own, one a device, and tells nobody. What a forward gave is
watched for the moment at which a backward reaches it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

_running: Callable[[], int] = torch._C._current_graph_task_id
_autograd: Any = torch.autograd.Variable._execution_engine


def in_backward() -> bool:
    """Whether the calling thread computes gradients now; what it recomputes for them counts."""
    return _running() != -1


class _Asker:
    """A thread; also to those of torch's that compute the gradients which it asked for, and waits for."""


# What a thread stashes so is stashed on each thread that computes gradients for it, meanwhile.
_ASKER = "tensorstream"
# The system's numbers of threads that have stashed something, by Python's.
_stashing: dict[int, int] = {}
_MOST_SECONDS_AT_EXIT = 2.0


def _wait_for_ending_threads() -> None:
    """Lets threads that Python has counted as ended end, before the interpreter goes.

    Torch lets go of what a thread stashed when the thread is about to be gone, and takes the interpreter's
    lock for that; a process whose interpreter goes meanwhile is ended by SIGABRT.
    """
    deadline = time.monotonic() + _MOST_SECONDS_AT_EXIT
    # Daemons are, and end natively as badly.
    alive = {thread.ident for thread in threading.enumerate()}
    for ident, native_id in list(_stashing.items()):
        task = f"/proc/self/task/{native_id}"
        while ident not in alive and os.path.exists(task):
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)


atexit.register(_wait_for_ending_threads)  # guard: threads-end-first


def _asker() -> _Asker:
    """That of the calling thread, which is another's where it computes gradients for that."""
    if torch._C._is_key_in_tls(_ASKER):
        found: _Asker = torch._C._get_obj_in_tls(_ASKER)
        return found
    made = _Asker()
    # Torch up to 2.11 at least takes over a reference that it was not given: one a thread is never let go.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    torch._C._stash_obj_in_tls(_ASKER, made)
    if not in_backward():  # what is stashed within one, torch takes back at the end of it
        _stashing[threading.get_ident()] = threading.get_native_id()
    return made


class OutermostForward:
    """The outermost forward of one model, and who computes gradients for it while it waits for them."""

    def __init__(self) -> None:
        self._asker: _Asker | None = None
        self._thread = 0

    def begin(self) -> None:
        """The calling thread begins it."""
        self._asker, self._thread = _asker(), threading.get_ident()

    def end(self) -> None:
        """It ended, or was abandoned: from any thread."""
        self._asker = None

    def waits_for_caller(self) -> bool:
        """Whether it waits for gradients that the calling thread, which is another one, computes."""
        asker = self._asker
        if asker is None or not in_backward() or self._thread == threading.get_ident():
            return False
        return asker is _asker()  # guard: recomputed-elsewhere


class _AtEnd:
    """Calls a function once, with whether the backward that it was given to came to its end.

    After an error torch does not call it, but lets it go, and raises the error then.
    """

    def __init__(self, then: Callable[[bool], None]) -> None:
        self._then = [then]

    def __call__(self) -> None:
        self._run(True)

    def __del__(self) -> None:
        self._run(False)  # guard: failed-backward

    def _run(self, whole: bool) -> None:
        try:
            then = self._then.pop()  # which no two threads do
        except IndexError:
            return
        then(whole)


def at_end(then: Callable[[bool], None]) -> None:
    """Has `then` called, from any thread, when the backward that the calling thread runs is over.

    It is given whether no error ended it.

    Raises:
        RuntimeError: The thread runs none.
    """
    _autograd.queue_callback(_AtEnd(then))


def watch(output: Any, enter: Callable[..., None]) -> bool:
    """Calls `enter` whenever a backward reaches what a forward gave; whether any can."""
    if not torch.is_grad_enabled():
        return False
    nodes = {
        leaf.grad_fn
        for leaf in pytree.tree_leaves(output)
        if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None
    }
    for node in nodes:
        node.register_prehook(enter)  # guard: backward-enters
    return bool(nodes)
