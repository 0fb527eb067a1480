"""The values that a weight had, by which graphs know whether it has what they saved."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tensorstream.tracing import version_of


def given_at(version: int) -> int:
    """As which version a forward wrote a weight whose parameter it gave other memory, at `version`.

    What graphs saved of the memory before is none of that.
    """
    return -2 - version


class Generations:
    """Counts the values of one weight.

    Attributes:
        number: That of its value now: raised with each write.
    """

    def __init__(self) -> None:
        self.number = 0
        # The parameter's version, where a forward wrote the last one.
        self._written_at: int | None = None
        # Once it is a plain parameter: that, and what others have of its memory, with their versions then.
        self._left: list[tuple[torch.Tensor, int | None]] | None = None

    def begin_next(self, written_at: int | None = None) -> None:
        """The weight has another value, which the forward that just ended wrote at a version, if one did."""
        self.number += 1
        self._written_at = written_at

    def leave(self, holders: Iterable[torch.Tensor]) -> None:
        """The parameter is a plain one now, and is written to through any of `holders`."""
        self._left = [(holder, version_of(holder)) for holder in holders]

    def is_now(self, number: int, version: int) -> bool:
        """Whether what a graph saved then, while the weight was lent at that version, is its value now.

        What a forward writes is the next generation's once it ends: what it saved after that is of before.
        """
        if self._left is not None:
            written = any(version_of(holder) != then for holder, then in self._left)
            if written:  # guard: written-once-plain
                return False
        if number == self.number:
            return True
        return number + 1 == self.number and version == self._written_at
