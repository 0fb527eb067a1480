"""What operations write to, whether versions show it or not: below autograd none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
) | frozenset(("__setitem__",))
_STATISTICS = ("running_mean", "running_var")


def is_in_place(name: str) -> bool:
    """Whether a function of that name writes to its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def written_by(func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> set[int]:
    """The ids of the tensors that `func`, of that name, may write to."""
    written: list[Any] = []
    if (
        "batch_norm" in name or "instance_norm" in name
    ):  # which raise no version, and tell of nothing
        first = 1 if func in (F.batch_norm, F.instance_norm) else 3
        written += [*args[first : first + 2], *(kwargs.get(each) for each in _STATISTICS)]
    elif isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return written_by_schema(func, args, kwargs)
    elif is_in_place(name):
        written += args[:1]
    written.append(kwargs.get("out"))
    return {id(each) for each in pytree.tree_leaves(written)}


def written_by_schema(func: Any, args: Any, kwargs: Any) -> set[int]:
    """The ids of what an operator of torch's dispatcher may write to, by the schemas of its overloads."""
    if isinstance(func, torch._ops.OpOverloadPacket):
        overloads = [getattr(func, each) for each in func.overloads()]
    else:
        overloads = [func] if isinstance(func, torch._ops.OpOverload) else []
    written: list[Any] = []
    for schema in (each._schema for each in overloads):
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written.append(
                    args[position] if position < len(args) else kwargs.get(argument.name)
                )
    return {id(each) for each in pytree.tree_leaves(written)}
