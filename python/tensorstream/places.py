"""Whose place in the arena memory is."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NoReturn

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

    Raises:
        UnsupportedError: It does, and its bytes will be replaced.
    """
    owner = owner_of(value)
    if owner is not None:  # guard: given-place
        _refuse(owner, name)


def refuse_shared(owner: Weight, value: torch.Tensor, name: str) -> None:
    """Checks that `owner`, in whose place `value` lies, was given other memory itself in this forward.

    Raises:
        UnsupportedError: It lies there, too; or somebody has an alias of it, and that is the value's then.
    """
    has_left = isinstance(owner.parameter, LentParameter) and not owner.is_lent_out
    if has_left:
        has_left = (
            torch.Tensor.detach(owner.parameter).untyped_storage() is not value.untyped_storage()
        )
    if not has_left:  # guard: shared-in-forward
        _refuse(owner, name)


def _refuse(owner: Weight, name: str) -> NoReturn:
    raise UnsupportedError(
        f"'{name}' was given the memory of '{owner.name}', which is streamed too; give it a copy (.clone()), "
        "or call tensorstream.restore(model) first"
    )
