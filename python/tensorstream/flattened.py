"""How tensors of classes of their own come apart that are made of other tensors, by torch's protocol.

Torch calls them traceable wrapper subclasses: `__tensor_flatten__` names their inner tensors, and
`__tensor_unflatten__` makes one of such. An inner tensor may be a wrapper, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tensorstream.compute_device import is_made_of_parts
from tensorstream.tracing import as_plain

if TYPE_CHECKING:
    from tensorstream.inner_tensors import Wrapper

MARK = "_tensorstream_wrapper"  # of a wrapper, and of the parameters for its inner tensors


class Inner(NamedTuple):
    """A plain tensor that a wrapper is made of: who has it, its name there, its path from the wrapper."""

    holder: Any
    name: str
    path: str
    tensor: torch.Tensor


def wrapper_of(parameter: torch.Tensor) -> Wrapper | None:
    """What is known of a wrapper that is streamed, or of a parameter for an inner tensor of one."""
    found: Wrapper | None = parameter.__dict__.get(MARK)
    return found


def name_of_wrapper(wrapper: torch.Tensor) -> str:
    """Its first name in the model, for messages."""
    mark = wrapper_of(wrapper)
    return type(wrapper).__name__ if mark is None else mark.name


def plain_class(wrapper: torch.Tensor) -> Any:
    """The class of a wrapper while it is not parked."""
    kind = type(wrapper)
    return kind.__bases__[1] if getattr(kind, "is_parked", False) else kind


def inner_tensors(wrapper: Any, prefix: str = "") -> Iterator[Inner]:
    """The plain tensors that a wrapper is made of, directly or through others."""
    names, _ = plain_class(wrapper).__tensor_flatten__(wrapper)
    for name in names:
        inner = getattr(wrapper, name)
        if is_made_of_parts(inner):
            yield from inner_tensors(inner, f"{prefix}{name}.")
        else:
            yield Inner(wrapper, name, prefix + name, inner)


def levels(wrapper: Any) -> Iterator[Any]:
    """A wrapper, and those in it."""
    yield wrapper
    names, _ = plain_class(wrapper).__tensor_flatten__(wrapper)
    for name in names:
        if is_made_of_parts(getattr(wrapper, name)):
            yield from levels(getattr(wrapper, name))


def flattened(wrapper: Any) -> tuple[list[torch.Tensor], Callable[[Iterator[torch.Tensor]], Any]]:
    """The plain tensors that a wrapper is made of, and what makes one like it of others in their place."""
    kind = plain_class(wrapper)
    names, context = kind.__tensor_flatten__(wrapper)
    leaves: list[torch.Tensor] = []
    makers: dict[str, Callable[[Iterator[torch.Tensor]], Any]] = {}
    for name in names:
        inner = getattr(wrapper, name)
        own, makers[name] = flattened(inner) if is_made_of_parts(inner) else ([inner], next)
        leaves += own
    form = as_plain(torch.Tensor.size, wrapper), as_plain(torch.Tensor.stride, wrapper)
    attributes = {name: value for name, value in wrapper.__dict__.items() if name != MARK}

    def make(values: Iterator[torch.Tensor]) -> Any:
        inner = {name: maker(values) for name, maker in makers.items()}
        made = kind.__tensor_unflatten__(inner, context, *form)
        made.__dict__.update(attributes)
        return made

    for name in names:
        attributes.pop(name, None)  # they would keep the bytes
    return leaves, make


def rebuilt(wrapper: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A wrapper as `wrapper`, with what `change` gives in the place of each plain tensor in it."""
    leaves, make = flattened(wrapper)
    return make(map(change, leaves))
