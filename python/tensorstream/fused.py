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
    if padding is None or first.training or not module.use_nested_tensor:
        return
    if torch.is_autocast_enabled() or not torch.backends.mha.get_fastpath_enabled():
        return
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in first.parameters()):
        return
    streamed = any(isinstance(weight, ParkedParameter) for weight in first.parameters())
    if streamed:  # guard: packed-padding
        raise UnsupportedError(
            "nn.TransformerEncoder packs padded inputs by looking at its first layer's weights, which are "
            "streamed; set use_nested_tensor = False on it, which computes with the padding"
        )
