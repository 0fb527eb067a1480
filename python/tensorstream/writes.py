"""What operations write to, whether versions show it or not: below autograd none does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
) | frozenset(("__setitem__",))
_STATISTICS = ("running_mean", "running_var")  # which operators write to that tell of nothing
# Whether what runs now is below what raises versions, as in the handler of a dispatch mode.
_is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_VERSIONS = torch._C.DispatchKey.ADInplaceOrView
_NORMS = (F.batch_norm, F.instance_norm)
_TRAINING = {F.batch_norm: (5, "training", False), F.instance_norm: (5, "use_input_stats", True)}


def is_in_place(name: str) -> bool:
    """Whether a function of that name writes to its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def written_by(func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> set[int]:
    """The ids of the tensors that `func`, of that name, may write to, and not be seen to by versions."""
    if _is_excluded(_VERSIONS):  # guard: below-versions
        return {id(each) for each in pytree.tree_leaves((args, kwargs))}
    if func in _NORMS:
        position, keyword, default = _TRAINING[func]
        trains = args[position] if position < len(args) else kwargs.get(keyword, default)
        found = [*args[1:3], *(kwargs.get(each) for each in _STATISTICS)] if trains else []
    else:
        found = _arguments(func, name, args, kwargs)
    return {id(each) for each in pytree.tree_leaves(found)}


@functools.lru_cache(maxsize=4096)
def _written(func: Callable[..., Any], name: str) -> tuple[Sequence[int], Sequence[str]]:
    """The positions and the names of arguments that `func` may write to, by schemas of its overloads."""
    overloads = [func] if isinstance(func, torch._ops.OpOverload) else []
    is_packet = isinstance(func, torch._ops.OpOverloadPacket)
    packet = func if is_packet else getattr(torch.ops.aten, name, None)
    if isinstance(packet, torch._ops.OpOverloadPacket):  # no method of the name space itself
        overloads += [getattr(packet, each) for each in packet.overloads()]
    positions = {0} if is_in_place(name) else set()
    names = {"out"}
    for schema in (each._schema for each in overloads):
        for position, argument in enumerate(schema.arguments):
            is_statistic = argument.name in _STATISTICS and "backward" not in schema.name
            if is_statistic or (argument.alias_info is not None and argument.alias_info.is_write):
                names.add(argument.name)
                if not argument.kwarg_only:
                    positions.add(position)
    return sorted(positions), sorted(names)


def written_by_schema(func: Any, args: Any, kwargs: Any) -> set[int]:
    """The ids of what an operator of torch's dispatcher may write to; of any other function, none."""
    if not isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return set()
    return {id(each) for each in pytree.tree_leaves(_arguments(func, "", args, kwargs))}


def _arguments(func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> list[Any]:
    positions, names = _written(func, name)
    found = [args[each] for each in positions if each < len(args)]
    return found + [kwargs[each] for each in names if each in kwargs]
