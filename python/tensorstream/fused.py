"""Modules of torch that give the weights of all modules inside them to one function.

nn.TransformerEncoderLayer and nn.MultiheadAttention do, where every weight is a plain tensor and, for the
former, no module has hooks; else they compute step by step, which rounds otherwise. So such a module is one
group, and its hooks of ours are not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tensorstream.exceptions import UnsupportedError
from tensorstream.proxy import ParkedParameter

WHOLE = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
COUNTS_HOOKS = nn.TransformerEncoderLayer


def may_pack(module: nn.Module | None) -> bool:
    """Whether a module may leave padding out of what its layers compute."""
    return isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False)


def _may_fuse(module: nn.Module) -> bool:
    """Whether torch may give a module's weights to one function, by all but what they are."""
    if (
        module.training
        or torch.is_autocast_enabled()
        or not torch.backends.mha.get_fastpath_enabled()
    ):
        return False
    return not (torch.is_grad_enabled() and any(each.requires_grad for each in module.parameters()))


def refuse_parked(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Checks that a module of `WHOLE` has got its weights, where torch may give them to one function.

    A group whose place is in use by others has none: weights that are parked are right, and not plain.

    Raises:
        UnsupportedError: It has not.
    """
    parked = any(isinstance(weight, ParkedParameter) for weight in module.parameters())
    if parked and _may_fuse(module):  # guard: whole-without-a-place
        raise UnsupportedError(
            f"a {type(module).__name__} that several modules share is used by one whose own weights have its "
            "place: torch would round otherwise than in the plain model; name it, as the model does, in "
            "keep_resident="
        )


def refuse_packing(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Checks that an nn.TransformerEncoder would not leave padding out of its computation.

    It does so where the first layer's weights are plain tensors before that layer runs, which those of a
    streamed layer are not; and gives other values for the padding.

    Raises:
        UnsupportedError: It would.
    """
    by_position = dict(zip(("src", "mask", "src_key_padding_mask"), args, strict=False))
    padding = {**by_position, **kwargs}.get("src_key_padding_mask")
    assert isinstance(module, nn.TransformerEncoder)
    first = module.layers[0]
    if padding is None or not module.use_nested_tensor:
        return
    if not _may_fuse(first):
        return
    streamed = any(isinstance(weight, ParkedParameter) for weight in first.parameters())
    if streamed:  # guard: packed-padding
        raise UnsupportedError(
            "nn.TransformerEncoder packs padded inputs by looking at its first layer's weights, which are "
            "streamed; set use_nested_tensor = False on it, which computes with the padding"
        )
