"""Whose place in the arena memory is."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

from tensorstream.exceptions import UnsupportedError
from tensorstream.proxy import LentParameter

if TYPE_CHECKING:
    from tensorstream.weight import Weight

_OWNER = "_tensorstream_owner"


def mark_place(storage: torch.UntypedStorage, weight: Weight) -> None:
    """Says that `storage` is the place of a weight: its bytes are others' between leases."""
    setattr(storage, _OWNER, weakref.ref(weight))


def owner_of(value: torch.Tensor) -> Weight | None:
    """The weight in whose place `value` lies, if in one."""
    owner = getattr(value.untyped_storage(), _OWNER, None)
    return None if owner is None else owner()


def refuse_place(value: torch.Tensor, name: str) -> None:
    """Checks that `value`, which the streamed weight `name` is given, lies in no place.

    A weight that is lent, and was given other memory itself, has let go of its own: values may be exchanged.

    Raises:
        UnsupportedError: It does, and its bytes will be replaced.
    """
    owner = owner_of(value)
    if owner is not None and not _has_exchanged(owner, value):  # guard: shared-in-forward
        raise UnsupportedError(
            f"'{name}' was given the memory of '{owner.name}', which is streamed too; give it a copy "
            "(.clone()), or call tensorstream.restore(model) first"
        )


def _has_exchanged(owner: Weight, value: torch.Tensor) -> bool:
    """Whether `owner` is lent, and lies elsewhere than `value`, in its place."""
    if not isinstance(owner.parameter, LentParameter):
        return False
    return torch.Tensor.detach(owner.parameter).untyped_storage() is not value.untyped_storage()
