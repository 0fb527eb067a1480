"""Weights of classes of their own that are made of other tensors: quantised ones, with their scales.

What is streamed are their inner tensors, each as a parameter that is parked and lent as any other. The
wrapper stays the model's object. While one of its inner tensors is parked its class is one made of its own
and `ParkedWrapper`, which gives every operation a wrapper with true values; else it is what it was.
"""

from __future__ import annotations

import copy
import functools
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tensorstream.compute_device import is_made_of_parts
from tensorstream.exceptions import UnsupportedError
from tensorstream.flattened import MARK, inner_tensors, levels, plain_class, rebuilt, wrapper_of
from tensorstream.proxy import LentParameter, ParkedParameter, weight_of
from tensorstream.true_values import ParkedWrapper, is_of_apply, parked_class


def reason_to_leave(wrapper: Any) -> str | None:
    """Why a parameter of a class of its own cannot be streamed by its inner tensors; None where it can."""
    kind = type(wrapper)
    what = f"it is a {kind.__name__}"
    if not is_made_of_parts(wrapper) or kind.__module__.partition(".")[0] == "torch":
        return what
    if wrapper.is_inference():
        return f"{what} that was made in torch.inference_mode(), and does not say when it is written to"
    found = list(inner_tensors(wrapper))
    if not found:
        return f"{what} without inner tensors"
    for inner in found:
        if inner.holder.__dict__.get(inner.name) is not inner.tensor:
            return f"{what}, whose '{inner.path}' cannot be exchanged"
        if type(inner.tensor) not in (torch.Tensor, nn.Parameter):
            return f"{what}, whose '{inner.path}' is a {type(inner.tensor).__name__}"
        if inner.tensor.requires_grad:  # guard: trained-inner
            return f"{what}, whose '{inner.path}' is trained"
    try:
        for level in levels(wrapper):
            parked_class(plain_class(level))
    except TypeError as error:
        return f"{what}, of which no class can be derived ({error})"
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
                f"'{self.name}' is streamed as a {plain_class(outer).__name__} of {outer.dtype} on "
                f"{outer.device}; it cannot become {dtype} on {device}. Call tensorstream.restore(model) "
                "first, or load the model that way"
            )

    def end_abandoned(self) -> None:
        """Ends a forward that was interrupted while it had the inner tensors."""
        for part in self.parts.values():
            if isinstance(part, LentParameter):
                weight_of(part)._loans.end_abandoned()

    def check_can_move(self, device: torch.device) -> None:
        """Raises UnsupportedError where it is to be another tensor's memory, and torch cannot exchange it."""
        if self.outer.device != device and weakref.getweakrefs(self.outer):  # guard: weakly-held
            raise UnsupportedError(
                f"somebody holds a weak reference to '{self.name}', which torch cannot move then; let it go"
            )

    def take_apart(self) -> None:
        """Has the wrapper hold the parameters."""
        for level in levels(self.outer):
            _watch(plain_class(level))
        for (holder, name), part in zip(self._held, self.parts.values(), strict=True):
            setattr(holder, name, part)
            setattr(part, MARK, self)
        setattr(self.outer, MARK, self)

    def put_together(self) -> None:
        """Has it hold plain tensors again, those of the parameters."""
        if wrapper_of(self.outer) is not self:  # guard: wrapper-exchanged
            return
        self._put_on(lambda part: part.data if wrapper_of(part) is self else part)
        for inner in inner_tensors(self.outer):
            if wrapper_of(inner.tensor) is self:
                setattr(inner.holder, inner.name, inner.tensor.data)
                inner.tensor.__dict__.pop(MARK)
        for wrapper in levels(self.outer):
            wrapper.__class__ = plain_class(wrapper)
        self.outer.__dict__.pop(MARK, None)

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
        for wrapper in levels(self.outer):
            plain = plain_class(wrapper)
            parts = [inner.tensor for inner in inner_tensors(wrapper)]
            entries.append((wrapper, plain, parked_class(plain), parts))
        return entries

    def _put_on(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Has the wrapper be one that was made on the device of its inner tensors; it stays that object."""
        device = next(iter(self.parts.values())).device
        if self.outer.device == device:
            return
        made = rebuilt(self.outer, change)
        made.requires_grad_(self.outer.requires_grad)
        if self.outer.grad is not None:
            made.grad = self.outer.grad.to(device)
        made.__dict__[MARK] = self
        self.outer.__class__ = plain_class(self.outer)
        torch.utils.swap_tensors(self.outer, made)


def _watch(kind: Any) -> None:
    """Has a class of wrappers ask, in what torch gives no say, whether one's inner tensors are streamed.

    While they are lent a wrapper is of its own class, for which libraries look.
    """
    if "_tensorstream_watched" in kind.__dict__:
        return
    detach, deepcopy, reduce_ex = kind.detach, kind.__deepcopy__, kind.__reduce_ex__
    bare: Any = torch.Tensor.data

    def of_now(self: Any) -> Any:
        """Itself, or where it is lent or settled one whose inner tensors are no parameters."""
        if wrapper_of(self) is None or isinstance(self, ParkedWrapper):
            return self
        made = rebuilt(self, lambda part: part.detach())
        return made.requires_grad_(self.requires_grad)

    def detached(self: Any) -> Any:
        mark = wrapper_of(self)
        if mark is None or isinstance(self, ParkedWrapper):
            return detach(self)
        caller = sys._getframe(1)
        if caller.f_code is nn.Parameter.__new__.__code__ and is_of_apply(caller):
            return self
        mark.end_abandoned()  # guard: wrapper-abandoned
        return torch.Tensor.detach(self) if isinstance(self, ParkedWrapper) else detach(self)

    def data_of(self: Any) -> Any:  # torch's has no version of the wrapper's
        lent = wrapper_of(self) is not None and not isinstance(self, ParkedWrapper)
        return self.detach() if lent else bare.__get__(self)  # guard: wrapper-data

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            plain = of_now(self)
            # One that was made for this goes: the memo is to know nothing of it.
            memo[id(self)] = deepcopy(self, memo) if plain is self else copy.deepcopy(plain)
        return memo[id(self)]

    def reduced(self: Any, protocol: Any) -> Any:
        return reduce_ex(of_now(self), protocol)

    kind.detach = functools.wraps(detach)(detached)
    kind.data = property(data_of, bare.__set__)
    kind.__deepcopy__ = functools.wraps(deepcopy)(copied)
    kind.__reduce_ex__ = functools.wraps(reduce_ex)(reduced)
    kind._tensorstream_watched = True


class Wrappers(list[Wrapper]):
    """Wrappers of a model, in the order of its parameters."""

    @classmethod
    def of(cls, parameters: Iterable[torch.Tensor]) -> Wrappers:
        """Those that parameters are inner tensors of."""
        found = {id(each): each for each in map(wrapper_of, parameters) if each is not None}
        return cls(found.values())

    def take_apart(self, device: torch.device) -> None:
        """Has each hold parameters for its inner tensors, which are to be on `device`."""
        self.check_can_move(device)
        for wrapper in self:
            wrapper.take_apart()

    def put_together(self) -> None:
        """Has each be what it was before."""
        for wrapper in self:
            wrapper.put_together()

    def check_can_move(self, device: torch.device) -> None:
        """Raises UnsupportedError where one that is elsewhere could not follow its inner tensors there."""
        for wrapper in self:
            wrapper.check_can_move(device)

    def follow(self) -> None:
        """Has each be what its inner tensors tell."""
        for wrapper in self:
            wrapper.follow()

    def entries(self) -> list[tuple[Any, type, type, list[torch.Tensor]]]:
        """What `LentParameters` is to know of all of them."""
        return [entry for wrapper in self for entry in wrapper.entries()]
