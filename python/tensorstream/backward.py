"""Backward, as the calling thread sees it: whether it runs one, where one begins, and when it is over.

Torch computes gradients on threads of its own, one a device, and tells nobody. What a forward gave is
watched for the moment at which a backward reaches it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

_running: Callable[[], int] = torch._C._current_graph_task_id
_autograd: Any = torch.autograd.Variable._execution_engine


def in_backward() -> bool:
    """Whether the calling thread computes gradients now; what it recomputes for them counts."""
    return _running() != -1


class _Mark:
    """A forward of a thread. Torch's threads that compute gradients for it have it, too."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.is_over = False


# What a thread stashes so is stashed on each thread that computes gradients which it asked for.
_MARKS = "tensorstream"


def _marks() -> tuple[_Mark, ...]:
    marks: tuple[_Mark, ...] = (
        torch._C._get_obj_in_tls(_MARKS) if torch._C._is_key_in_tls(_MARKS) else ()
    )
    return marks


class OutermostForward:
    """The outermost forward of one model, and who computes gradients for it while it waits for them."""

    def __init__(self) -> None:
        self._mark: _Mark | None = None

    def begin(self) -> None:
        """The calling thread begins it."""
        self.end()
        self._mark = _Mark()
        torch._C._stash_obj_in_tls(_MARKS, (*_those_under_way(), self._mark))

    def end(self) -> None:
        """It ended, or was abandoned: from any thread."""
        mark, self._mark = self._mark, None
        if mark is None:
            return
        mark.is_over = True
        if mark.thread == threading.get_ident():
            torch._C._stash_obj_in_tls(_MARKS, _those_under_way())

    def waits_for_caller(self) -> bool:
        """Whether it waits for gradients that the calling thread, which is another one, computes."""
        mark = self._mark
        if mark is None or not in_backward() or mark.thread == threading.get_ident():
            return False
        return mark in _marks()  # guard: recomputed-elsewhere


def _those_under_way() -> tuple[_Mark, ...]:
    return tuple(mark for mark in _marks() if not mark.is_over)


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
