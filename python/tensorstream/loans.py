"""The weights of one model whose true values somebody may still hold."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from tensorstream.exceptions import UnsupportedError

if TYPE_CHECKING:
    from tensorstream.weight import Weight

# How often a thread that waits for operations on weights looks whether it is to give up.
_CHECK_EVERY_S = 0.05


class Alias:
    """A tensor by which somebody gave a weight memory: torch counts what is written to it for itself."""

    def __init__(self, given: torch.Tensor) -> None:
        """A view counts with the tensor that it is one of, which may be kept where it is not."""
        self.address = given.data_ptr()
        self._tensor = weakref.ref(given if given._base is None else given._base)
        self.note()

    def note(self) -> None:
        """What was written until now is known."""
        self._version = self._version_now()

    def is_written(self) -> bool:
        """Whether something was since, and who gave it is there still."""
        now = self._version_now()
        return now is not None and now != self._version

    def _version_now(self) -> int | None:
        tensor = self._tensor()
        return None if tensor is None or tensor.is_inference() else tensor._version


class Loans:
    """The weights of one model whose true values somebody may still hold.

    Attributes:
        lock: Held by each operation on parked weights, and while weights change between parked and plain.
    """

    def __init__(self, end_abandoned: Callable[[], None]) -> None:
        """`end_abandoned` ends a forward of the model that was interrupted, if there is one."""
        self.end_abandoned = end_abandoned
        self.lock = threading.RLock()
        self.weights: set[Weight] = set()
        self.forked = False  # the process is a child of that with the engine

    def check_process(self, name: str) -> None:
        """Raises UnsupportedError in a forked child, for the weight of that name in pinned memory."""
        if self.forked:  # guard: forked-home
            raise UnsupportedError(
                f"the streamed weight '{name}' is in pinned host memory, which a forked process does not "
                "have: read it in the process that offloaded the model"
            )

    def enter_child(self, end_abandoned: Callable[[], None]) -> None:
        """In a forked child: threads of the parent may have held the lock, and are not here."""
        self.end_abandoned = end_abandoned
        self.lock = threading.RLock()
        self.forked = True

    @contextlib.contextmanager
    def kept_still(self, check: Callable[[], None]) -> Iterator[None]:
        """No operation on a parked weight is under way: those that begin wait. `check` may give up before."""
        while not self.lock.acquire(timeout=_CHECK_EVERY_S):
            check()
        try:
            yield
        finally:
            self.lock.release()

    def add(self, weight: Weight) -> None:
        """Says that somebody holds the weight's true value."""
        self.weights.add(weight)

    def discard(self, weight: Weight) -> None:
        """Says that nobody does any more."""
        self.weights.discard(weight)

    def sweep(self) -> None:
        """Settles the loans that nobody holds any more, so that they take no memory."""
        for weight in list(self.weights):
            weight.settle_if_returned()
