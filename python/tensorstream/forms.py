"""Shapes, strides and types of weights, memory that has them, and who holds it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack

from tensorstream import _native
from tensorstream.exceptions import UnsupportedError


def is_dense(value: torch.Tensor) -> bool:
    """Whether the elements are one behind the other in memory, in whatever order."""
    return bool(_native.is_dense(list(value.shape), list(value.stride())))


def check_memory(value: torch.Tensor, name: str) -> None:
    """Raises UnsupportedError where the bytes of `value` cannot be those of the streamed weight `name`."""
    if value.is_conj() or value.is_neg():  # guard: lazy-value
        raise UnsupportedError(
            f"'{name}' is streamed, and a lazily conjugated value is not in memory as it is seen; give "
            "value.resolve_conj().resolve_neg()"
        )
    if not is_dense(value):
        raise UnsupportedError(
            f"'{name}' is streamed, and a value with strides {value.stride()} has gaps or overlaps in "
            "memory; give a copy (.contiguous()), or call tensorstream.restore(model) first"
        )


def check_kind(
    name: str,
    own: tuple[torch.Size, torch.dtype, torch.device],
    given: tuple[torch.Size, torch.dtype, torch.device],
) -> None:
    """Raises UnsupportedError where a streamed weight is given another shape, type or place than its own."""
    if given != own:
        raise UnsupportedError(
            f"'{name}' is streamed as {tuple(own[0])} {own[1]} on {own[2]}; it cannot become "
            f"{tuple(given[0])} {given[1]} on {given[2]}. Call tensorstream.restore(model) first, or load "
            "the model that way"
        )


def form_of(value: torch.Tensor) -> torch.Tensor:
    """Its shape, strides and type, without memory."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def empty_at(form: torch.Tensor, line_offset: int) -> torch.Tensor:
    """Memory in RAM for a tensor of `form` that begins at that byte of a cache line."""
    if line_offset == 0 or form.numel() == 0:
        return torch.empty_strided(form.shape, form.stride(), dtype=form.dtype, device="cpu")
    line = int(_native.CACHE_LINE_BYTES)
    raw = torch.empty(form.nbytes + line, dtype=torch.uint8, device="cpu")
    start = (line_offset - raw.data_ptr()) % line
    # A storage that begins with the value, as that of any weight; and no view of `raw`, which would count
    # as a holder of its memory.
    bytes_ = from_dlpack(to_dlpack(raw[start : start + form.nbytes]))
    value = torch.empty(0, dtype=form.dtype, device="cpu")
    return value.set_(bytes_.untyped_storage(), 0, form.shape, form.stride())


def line_offset_of(value: torch.Tensor) -> int:
    """The byte of a cache line at which a tensor in RAM begins."""
    return value.data_ptr() % int(_native.CACHE_LINE_BYTES)


def copy_at(value: torch.Tensor, line_offset: int) -> torch.Tensor:
    """A copy in RAM that begins at that byte of a cache line, by which products on the CPU are rounded."""
    form = torch.empty_like(value, device="meta")
    return empty_at(form, line_offset).copy_(value)


def poison_like(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """One loud element, seen with the shape of `like`: NaN, or 0xFF in types that have none."""
    fill = 1 if like.dtype is torch.bool else 0xFF
    raw = torch.full((like.element_size(),), fill, dtype=torch.uint8, device=device)
    return raw.view(like.dtype).reshape(()).expand(like.shape)


class HeldStorage:
    """Memory, and who holds it: tensors, and Python's one object for it, which whoever asks is given."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage

    def is_held(self, tensors: int) -> bool:
        """Whether anything but this object, and that many tensors, has the memory."""
        return self._users() > _NO_USER + tensors

    def _users(self) -> int:
        tensors: int = torch._C._storage_Use_Count(self.storage._cdata)
        return tensors + sys.getrefcount(self.storage)


_ALONE = torch.empty(1, device="cpu")
_NO_USER = HeldStorage(_ALONE.untyped_storage())._users() - 1


def is_shared(tensor: torch.Tensor, views: int = 0) -> bool:
    """Whether anything but this one tensor, and a number of views, has its storage."""
    return HeldStorage(tensor.untyped_storage()).is_held(1 + views)


def given_to_set(
    parameter: torch.Tensor, source: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    """The value that set_() is given for `parameter`: a tensor, or a storage and how it is seen."""
    given = source[0] if source else kwargs.get("source")
    if isinstance(given, torch.Tensor) and len(source) + len(kwargs) == 1:
        return given.detach()
    return torch.empty(0, dtype=parameter.dtype, device=parameter.device).set_(*source, **kwargs)
