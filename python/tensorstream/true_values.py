"""Wrappers with an inner tensor that is parked: every operation and method sees one with true values."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tensorstream.compute_device import is_made_of_parts
from tensorstream.flattened import inner_tensors, name_of_wrapper, plain_class, rebuilt
from tensorstream.graph_nodes import in_graph_of
from tensorstream.proxy import (
    ON_THE_OBJECT,
    REFUSED,
    ParkedParameter,
    check_in_place,
    grad,
    name_of,
    refuse,
    use,
    weight_of,
)
from tensorstream.tracing import as_plain, refuse_capture, refuse_tracing, uncompiled
from tensorstream.weight import Weight
from tensorstream.writes import written_by_schema


class ParkedWrapper(torch.Tensor):
    """A wrapper with an inner tensor that is parked. Every operation sees one with true values."""

    is_parked = True

    @classmethod
    @uncompiled
    def __torch_function__(
        cls, func: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if func is torch.autograd.grad:  # guard: wrapper-differentiated
            return grad(*args, **kwargs)
        if name in ON_THE_OBJECT or func is torch.Tensor.backward:
            return as_plain(func, *args, **kwargs)
        if args and isinstance(args[0], ParkedWrapper):
            if name in _REFUSED:
                refuse(name_of_wrapper(args[0]), name)
            check_in_place(func, name, args[0])
        return _on_true_wrappers(func, args, kwargs)

    @classmethod
    @uncompiled
    def __torch_dispatch__(
        cls, func: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _on_true_wrappers(func, args, kwargs or {})  # guard: wrapper-past-functions

    def detach(self) -> torch.Tensor:
        """One with the true values; itself where Module.to() makes a parameter of what nothing converted.

        Raises:
            UnsupportedError: Other code makes a parameter of it.
        """
        caller = sys._getframe(1)
        if caller.f_code is not nn.Parameter.__new__.__code__:
            return super().detach()
        if not is_of_apply(caller):
            refuse(name_of_wrapper(self), "nn.Parameter")
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = _on_true_wrappers(_deepcopy, (self,), {})
        return memo[id(self)]


def _deepcopy(wrapper: torch.Tensor) -> Any:
    return copy.deepcopy(wrapper)


def is_of_apply(caller: types.FrameType) -> bool:
    """Whether nn.Parameter() was called by Module.to() or its like."""
    return caller.f_back is not None and caller.f_back.f_code is _APPLY


_APPLY = inspect.unwrap(nn.Module._apply).__code__
_REFUSED = REFUSED | frozenset(("data.__set__", "set_"))


# What a parked wrapper has as its own class does: how it is made, taken apart and looked into.
_OWN = frozenset(
    f"__{name}__"
    for name in "new init del getattr getattribute setattr delattr tensor_flatten hash eq".split()
) | frozenset(vars(ParkedWrapper))


@functools.cache
def parked_class(plain: type) -> type:
    """The class of wrappers of class `plain` while they are parked: its methods run on true ones."""
    members: dict[str, Any] = {"__module__": __name__}
    for base in reversed(plain.__mro__[: plain.__mro__.index(torch.Tensor)]):
        for name, member in vars(base).items():
            if name in _OWN:
                continue
            if isinstance(member, types.FunctionType):
                members[name] = _on_true_one(member)
            elif isinstance(member, property) and member.fget is not None:
                members[name] = property(_on_true_one(member.fget), member.fset, member.fdel)
    return type(f"Parked{plain.__name__}", (ParkedWrapper, plain), members)


def _on_true_one(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that runs on a wrapper with true values, which would else make others of what is parked."""

    @functools.wraps(method)
    def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _on_true_wrappers(method, (self, *args), kwargs)

    return call


def _on_true_wrappers(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Runs `func` on wrappers with true values; what it writes is kept, what it hands out is tracked."""
    refuse_tracing()
    refuse_capture()
    leaves, structure = pytree.tree_flatten((args, kwargs))
    for first in (leaf for leaf in leaves if isinstance(leaf, ParkedWrapper)):
        parked = [
            inner.tensor
            for inner in inner_tensors(first)
            if isinstance(inner.tensor, ParkedParameter)
        ]
        if parked:
            loans = weight_of(parked[0])._loans
            with loans.lock:
                loans.sweep()
                return on_values(func, leaves, structure)
    return on_values(func, leaves, structure)  # nothing is parked any more


def on_values(func: Callable[..., Any], leaves: list[Any], structure: pytree.TreeSpec) -> Any:
    """Runs `func`, an operation, on true wrappers in the place of parked ones."""
    true = _TrueValues(as_leaves=name_of(func) in _OF_LEAVES)
    try:
        result, exchanged = _with_values(func, leaves, structure, true)
    finally:  # what it wrote before it raised is written
        true.after_use()
    if exchanged:  # guard: wrapper-inner-exchanged
        refuse(
            name_of_wrapper(next(each for each in leaves if isinstance(each, ParkedWrapper))),
            name_of(func),
        )
    return result


def _with_values(
    func: Callable[..., Any], leaves: list[Any], structure: pytree.TreeSpec, true: _TrueValues
) -> tuple[Any, bool]:
    """What `func` gives for true values, and whether it exchanged an inner tensor of one."""
    originals = {id(leaf): leaf for leaf in leaves if isinstance(leaf, _PARKED)}
    given = {key: true.of(leaf) for key, leaf in originals.items()}
    args, kwargs = pytree.tree_unflatten([given.get(id(leaf), leaf) for leaf in leaves], structure)
    before = _inner_of(given)
    result = func(*args, **kwargs)
    exchanged = any(one is not other for one, other in zip(before, _inner_of(given), strict=True))
    written = written_by_schema(func, args, kwargs)
    changed = [each for each in given.values() if id(each) in written or each._version]
    true.note_written(changed)  # guard: wrapper-written
    returned = {id(value): originals[key] for key, value in given.items()}
    for key, value in given.items():
        if isinstance(originals[key], ParkedWrapper):
            _take_attributes(originals[key], value)
    if leaves and _converts_nothing(func, leaves[0], result, args, kwargs):
        result = leaves[0]
    return pytree.tree_map(functools.partial(_original, returned), result), exchanged


def _original(returned: dict[int, Any], leaf: Any) -> Any:
    return returned.get(id(leaf), leaf)


def _take_attributes(wrapper: torch.Tensor, of: torch.Tensor) -> None:
    """Has a wrapper have the attributes of another, which methods may have set, but for inner tensors."""
    inner, _ = plain_class(of).__tensor_flatten__(of)
    wrapper.__dict__.update(
        (name, value) for name, value in of.__dict__.items() if name not in inner
    )


def _converts_nothing(
    func: Any, wrapper: Any, result: Any, args: Any, kwargs: dict[str, Any]
) -> bool:
    """Whether a conversion gave the wrapper's equal, where torch gives a tensor itself."""
    if not isinstance(wrapper, ParkedWrapper) or name_of(func) not in _CONVERSIONS:
        return False
    flags = [each for each in args if isinstance(each, bool)]  # non_blocking, copy
    if type(result) is not plain_class(wrapper) or kwargs.get("copy", flags[1:] == [True]):
        return False
    return _kinds(result) == _kinds(wrapper)


def _kinds(wrapper: torch.Tensor) -> list[tuple[torch.dtype, torch.device]]:
    tensors = [wrapper, *(inner.tensor for inner in inner_tensors(wrapper))]
    return [(tensor.dtype, tensor.device) for tensor in tensors]


_CONVERSIONS = frozenset("to type cpu cuda float double half bfloat16".split())
_PARKED = (ParkedWrapper, ParkedParameter)
# What makes of a parameter another, or text: it is to be one itself, not of its graph.
_OF_LEAVES = frozenset(("_deepcopy", "__reduce_ex__", "__repr__", "__format__"))


class _TrueValues:
    """True values for one operation, and what is to be done with them after it."""

    def __init__(self, *, as_leaves: bool) -> None:
        """`as_leaves` says that what wrappers become is of no graph, and is trained where they are."""
        self._as_leaves = as_leaves
        self._uses: list[tuple[Weight, torch.Tensor, int]] = []
        self._used_by: dict[int, range] = {}  # by the ids of what was given

    def of(self, leaf: torch.Tensor) -> Any:
        """A true one in the place of a parked parameter or wrapper."""
        if not isinstance(leaf, ParkedWrapper):
            return self._of_part(leaf)
        first = len(self._uses)
        with torch.inference_mode(False):  # what is made in it has no version
            made = rebuilt(leaf, self._of_part)
        if self._as_leaves:
            made.requires_grad_(leaf.requires_grad)
        elif torch.is_grad_enabled() and leaf.requires_grad:
            made, bare = in_graph_of(leaf, made), made
            _take_attributes(made, bare)  # guard: attributes-in-graph
        self._used_by[id(made)] = range(first, len(self._uses))
        return made

    def _of_part(self, part: torch.Tensor) -> torch.Tensor:
        if not isinstance(part, ParkedParameter):
            return part.detach() if isinstance(part, nn.Parameter) else part
        weight, value, alias, version = use(part)
        self._uses.append((weight, value, version))
        return alias

    def note_written(self, wrappers: Iterable[torch.Tensor]) -> None:
        """These were written to, which does not show in the versions of their inner tensors."""
        for wrapper in wrappers:
            for position in self._used_by.get(id(wrapper), ()):
                weight, value, _ = self._uses[position]
                self._uses[position] = weight, value, -1

    def after_use(self) -> None:
        """Keeps what was written, and tracks what was handed out. Nobody else has what was given any more."""
        uses, self._uses = self._uses, []
        with contextlib.ExitStack() as ended:  # all of them, also where one cannot be kept
            for weight, value, version in uses:
                ended.callback(weight.after_use, value, version)


def _inner_of(given: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    wrappers = [each for each in given.values() if is_made_of_parts(each)]
    return [inner.tensor for each in wrappers for inner in inner_tensors(each)]
