"""What the objects of weights are in the plain model: parameters, or buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from tensorstream.exceptions import UnsupportedError

if TYPE_CHECKING:
    from tensorstream.weight import Weight

_WEIGHT, _IS_BUFFER = "_tensorstream_weight", "_tensorstream_is_buffer"


def mark(tensor: torch.Tensor, weight: Weight, *, is_buffer: bool) -> None:
    """Says whose object a parameter or buffer is."""
    setattr(tensor, _WEIGHT, weight)
    if is_buffer:  # guard: buffers-are-no-parameters
        setattr(tensor, _IS_BUFFER, True)


def refuse_swapped(name: str) -> NoReturn:
    """Raises UnsupportedError: another object's tensor was put in the place of a streamed weight's."""
    raise UnsupportedError(
        f"the streamed weight '{name}' was exchanged (torch.utils.swap_tensors?); call "
        "tensorstream.restore(model) before you do that"
    )


def make_plain_class(tensor: torch.Tensor) -> None:
    """Has an object that is a weight's be of the class that it had, and no weight's any more."""
    if tensor.__dict__.get(_WEIGHT) is not None:
        tensor.__class__ = torch.Tensor if tensor.__dict__.get(_IS_BUFFER) else nn.Parameter
        tensor.__dict__.pop(_IS_BUFFER, None)
        del tensor.__dict__[_WEIGHT]


def plain_copy(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What a copy of a weight's object is, with that value."""
    return value if _IS_BUFFER in tensor.__dict__ else nn.Parameter(value, tensor.requires_grad)
