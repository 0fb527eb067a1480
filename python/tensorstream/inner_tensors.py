"""Weights of classes of their own that are made of other tensors: quantised ones, with their scales.

Torch calls them traceable wrapper subclasses, and has a protocol by which they come apart. What is streamed
are their inner tensors, each as a parameter that is parked and lent as any other. The wrapper stays the
model's object. While one of its inner tensors is parked its class is one made of its own and
`ParkedWrapper`, which gives every operation a wrapper with true values; else it is what it was.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tensorstream.compute_device import is_made_of_parts
from tensorstream.exceptions import UnsupportedError
from tensorstream.proxy import (
    ON_THE_OBJECT,
    REFUSED,
    LentParameter,
    ParkedParameter,
    check_in_place,
    in_graph_of,
    name_of,
    refuse,
    use,
    weight_of,
)
from tensorstream.tracing import refuse_capture, refuse_tracing, uncompiled
from tensorstream.weight import Weight

_MARK = "_tensorstream_wrapper"  # of a wrapper, and of the parameters for its inner tensors


class Inner(NamedTuple):
    """A plain tensor that a wrapper is made of: who has it, its name there, its path from the wrapper."""

    holder: Any
    name: str
    path: str
    tensor: torch.Tensor


class ParkedWrapper(torch.Tensor):
    """A wrapper with an inner tensor that is parked. Every operation sees one with true values."""

    @classmethod
    @uncompiled
    def __torch_function__(
        cls, func: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in ON_THE_OBJECT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if args and isinstance(args[0], ParkedWrapper):
            if name in _REFUSED:
                refuse(_name(args[0]), name)
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
        if caller.f_back is None or caller.f_back.f_code is not _APPLY:
            refuse(_name(self), "nn.Parameter")
        return self


_APPLY = inspect.unwrap(nn.Module._apply).__code__
_REFUSED = REFUSED | frozenset(("data.__set__", "set_"))


def _name(wrapper: torch.Tensor) -> str:
    mark = wrapper_of(wrapper)
    return type(wrapper).__name__ if mark is None else mark.name


def wrapper_of(parameter: torch.Tensor) -> Wrapper | None:
    """What is known of a wrapper that is streamed, or of a parameter for an inner tensor of one."""
    found: Wrapper | None = parameter.__dict__.get(_MARK)
    return found


# What a parked wrapper has as its own class does: how it is made, taken apart and looked into.
_OWN = frozenset(
    f"__{name}__"
    for name in "new init del getattr getattribute setattr delattr tensor_flatten".split()
) | frozenset(vars(ParkedWrapper))


@functools.cache
def _parked_class(plain: type) -> type:
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


def _plain_class(wrapper: torch.Tensor) -> Any:
    kind = type(wrapper)
    return kind.__bases__[1] if issubclass(kind, ParkedWrapper) else kind


def inner_tensors(wrapper: Any, prefix: str = "") -> Iterator[Inner]:
    """The plain tensors that a wrapper is made of, directly or through others."""
    names, _ = _plain_class(wrapper).__tensor_flatten__(wrapper)
    for name in names:
        inner = getattr(wrapper, name)
        if is_made_of_parts(inner):
            yield from inner_tensors(inner, f"{prefix}{name}.")
        else:
            yield Inner(wrapper, name, prefix + name, inner)


def _levels(wrapper: Any) -> Iterator[Any]:
    """A wrapper, and those in it."""
    yield wrapper
    names, _ = _plain_class(wrapper).__tensor_flatten__(wrapper)
    for name in names:
        if is_made_of_parts(getattr(wrapper, name)):
            yield from _levels(getattr(wrapper, name))


def flattened(wrapper: Any) -> tuple[list[torch.Tensor], Callable[[Iterator[torch.Tensor]], Any]]:
    """The plain tensors that a wrapper is made of, and what makes one like it of others in their place."""
    kind = _plain_class(wrapper)
    names, context = kind.__tensor_flatten__(wrapper)
    leaves: list[torch.Tensor] = []
    makers: dict[str, Callable[[Iterator[torch.Tensor]], Any]] = {}
    for name in names:
        inner = getattr(wrapper, name)
        own, makers[name] = flattened(inner) if is_made_of_parts(inner) else ([inner], next)
        leaves += own
    with torch._C.DisableTorchFunctionSubclass():
        form = wrapper.size(), wrapper.stride()
    attributes = {name: value for name, value in wrapper.__dict__.items() if name != _MARK}

    def make(values: Iterator[torch.Tensor]) -> Any:
        inner = {name: maker(values) for name, maker in makers.items()}
        made = kind.__tensor_unflatten__(inner, context, *form)
        for name, value in attributes.items():
            made.__dict__.setdefault(name, value)
        return made

    for name in names:
        attributes.pop(name, None)  # they would keep the bytes
    return leaves, make


def rebuilt(wrapper: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A wrapper as `wrapper`, with what `change` gives in the place of each plain tensor in it."""
    leaves, make = flattened(wrapper)
    return make(map(change, leaves))


def reason_to_leave(wrapper: Any) -> str | None:
    """Why a parameter of a class of its own cannot be streamed by its inner tensors; None where it can."""
    kind = type(wrapper)
    what = f"it is a {kind.__name__}"
    if not is_made_of_parts(wrapper) or kind.__module__.partition(".")[0] == "torch":
        return what
    if wrapper.is_inference():
        return f"{what} that was made in torch.inference_mode(), and does not say when it is written to"
    for inner in inner_tensors(wrapper):
        if inner.holder.__dict__.get(inner.name) is not inner.tensor:
            return f"{what}, whose '{inner.path}' cannot be exchanged"
        if type(inner.tensor) is not torch.Tensor:
            return f"{what}, whose '{inner.path}' is a {type(inner.tensor).__name__}"
    return None


class Wrapper:
    """A parameter that is made of others, which are streamed.

    Attributes:
        outer: The model's object.
        names: Every dotted name that it has in the model.
        parts: The parameters for its inner tensors, by their paths from it.
    """

    def __init__(self, outer: nn.Parameter, names: list[str]) -> None:
        """Makes the parameters; the wrapper is not touched."""
        self.outer = outer
        self.names = names
        found = list(inner_tensors(outer))
        self._held = [(inner.holder, inner.name) for inner in found]
        self.parts = {
            inner.path: nn.Parameter(inner.tensor, requires_grad=False) for inner in found
        }

    @property
    def name(self) -> str:
        """Its first name in the model."""
        return self.names[0]

    @property
    def is_streamed(self) -> bool:
        """Whether an inner tensor of it is parked or lent."""
        return any(
            isinstance(part, ParkedParameter | LentParameter) for part in self.parts.values()
        )

    def check_kind(self, dtype: torch.dtype, device: torch.device) -> None:
        """Raises UnsupportedError where it is of another type, or elsewhere."""
        outer = self.outer
        if (dtype, device) != (outer.dtype, outer.device):
            raise UnsupportedError(
                f"'{self.name}' is streamed as a {_plain_class(outer).__name__} of {outer.dtype} on "
                f"{outer.device}; it cannot become {dtype} on {device}. Call tensorstream.restore(model) "
                "first, or load the model that way"
            )

    def __reduce__(self) -> Any:
        """None: what is copied of a wrapper, or sent, is no streamed one."""
        return type(None), ()

    def take_apart(self) -> None:
        """Has the wrapper hold the parameters."""
        for (holder, name), part in zip(self._held, self.parts.values(), strict=True):
            setattr(holder, name, part)
            setattr(part, _MARK, self)
        setattr(self.outer, _MARK, self)

    def put_together(self) -> None:
        """Has it hold plain tensors again, those of the parameters."""
        if wrapper_of(self.outer) is not self:  # guard: wrapper-exchanged
            return
        self._put_on(lambda part: part.data if wrapper_of(part) is self else part)
        for inner in inner_tensors(self.outer):
            if wrapper_of(inner.tensor) is self:
                setattr(inner.holder, inner.name, inner.tensor.data)
        for wrapper in _levels(self.outer):
            wrapper.__class__ = _plain_class(wrapper)
        self.outer.__dict__.pop(_MARK, None)

    def follow(self) -> None:
        """Has the wrapper be of the class, and on the device, that its inner tensors tell."""
        if wrapper_of(self.outer) is not self:
            return
        self._put_on(lambda part: part)
        for wrapper, lent, parked, parts in self.entries():
            is_parked = any(isinstance(part, ParkedParameter) for part in parts)
            wrapper.__class__ = parked if is_parked else lent

    def entries(self) -> list[tuple[Any, type, type, list[torch.Tensor]]]:
        """What `LentParameters` is to know: it and those in it, their two classes, and inner tensors."""
        entries = []
        for wrapper in _levels(self.outer):
            plain = _plain_class(wrapper)
            parts = [inner.tensor for inner in inner_tensors(wrapper)]
            entries.append((wrapper, plain, _parked_class(plain), parts))
        return entries

    def _put_on(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Has the wrapper be one that was made on the device of its inner tensors; it stays that object."""
        device = next(iter(self.parts.values())).device
        if self.outer.device == device:
            return
        made = rebuilt(self.outer, change)
        made.__dict__[_MARK] = self
        self.outer.__class__ = _plain_class(self.outer)
        torch.utils.swap_tensors(self.outer, made)


class Wrappers(list[Wrapper]):
    """Wrappers of a model, in the order of its parameters."""

    @classmethod
    def of(cls, parameters: Iterable[torch.Tensor]) -> Wrappers:
        """Those that parameters are inner tensors of."""
        found = {id(each): each for each in map(wrapper_of, parameters) if each is not None}
        return cls(found.values())

    def take_apart(self) -> None:
        """Has each hold parameters for its inner tensors."""
        for wrapper in self:
            wrapper.take_apart()

    def put_together(self) -> None:
        """Has each be what it was before."""
        for wrapper in self:
            wrapper.put_together()

    def follow(self) -> None:
        """Has each be what its inner tensors tell."""
        for wrapper in self:
            wrapper.follow()

    def entries(self) -> list[tuple[Any, type, type, list[torch.Tensor]]]:
        """What `LentParameters` is to know of all of them."""
        return [entry for wrapper in self for entry in wrapper.entries()]


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
                return _on_values(func, leaves, structure)
    return _on_values(func, leaves, structure)  # nothing is parked any more


def _on_values(func: Callable[..., Any], leaves: list[Any], structure: pytree.TreeSpec) -> Any:
    true = _TrueValues(as_leaves=name_of(func) in _OF_LEAVES)
    originals = {id(leaf): leaf for leaf in leaves if isinstance(leaf, _PARKED)}
    given = {key: true.of(leaf) for key, leaf in originals.items()}
    args, kwargs = pytree.tree_unflatten([given.get(id(leaf), leaf) for leaf in leaves], structure)
    before = _inner_of(given)
    result = func(*args, **kwargs)
    exchanged = any(one is not other for one, other in zip(before, _inner_of(given), strict=True))
    written = _written_by(func, args, kwargs)
    changed = [each for each in given.values() if id(each) in written or each._version]
    true.note_written(changed)  # guard: wrapper-written
    returned = {id(value): originals[key] for key, value in given.items()}
    if leaves and _converts_nothing(func, leaves[0], result, kwargs):
        result = leaves[0]
    result = pytree.tree_map(functools.partial(_original, returned), result)
    del args, kwargs, returned, given, before, changed
    true.after_use()
    if exchanged:  # guard: wrapper-inner-exchanged
        refuse(
            _name(next(each for each in leaves if isinstance(each, ParkedWrapper))), name_of(func)
        )
    return result


def _original(returned: dict[int, Any], leaf: Any) -> Any:
    return returned.get(id(leaf), leaf)


def _converts_nothing(func: Any, wrapper: Any, result: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a conversion gave the wrapper's equal, where torch gives a tensor itself."""
    if not isinstance(wrapper, ParkedWrapper) or name_of(func) not in _CONVERSIONS:
        return False
    if type(result) is not _plain_class(wrapper) or kwargs.get("copy"):
        return False
    return _kinds(result) == _kinds(wrapper)


def _kinds(wrapper: torch.Tensor) -> list[tuple[torch.dtype, torch.device]]:
    tensors = [wrapper, *(inner.tensor for inner in inner_tensors(wrapper))]
    return [(tensor.dtype, tensor.device) for tensor in tensors]


_CONVERSIONS = frozenset("to type cpu cuda float double half bfloat16".split())
_PARKED = (ParkedWrapper, ParkedParameter)
# What makes of a parameter another, or text: it is to be one itself, not of its graph.
_OF_LEAVES = frozenset(("__deepcopy__", "__reduce_ex__", "__repr__", "__format__"))


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
            made = in_graph_of(leaf, made)
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
        for weight, value, version in uses:
            weight.after_use(value, version)


def _written_by(func: Any, args: Any, kwargs: Any) -> set[int]:
    """The ids of what an operator of torch's dispatcher writes to, by its schema."""
    if not isinstance(func, torch._ops.OpOverload) or not func._schema.is_mutable:
        return set()
    written: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            at = args[position] if position < len(args) else kwargs.get(argument.name)
            written += pytree.tree_leaves(at)
    return {id(each) for each in written}


def _inner_of(given: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    wrappers = [each for each in given.values() if is_made_of_parts(each)]
    return [inner.tensor for each in wrappers for inner in inner_tensors(each)]
