"""Conversions of a model's type or device: refused before torch has converted a part of it.

`Module.half()`, `to()` and their like go through the modules one by one. What they had converted of a model
before they reached a streamed weight, which cannot follow, would stay so.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tensorstream.proxy import ParkedParameter, weight_of

_apply: Any = nn.Module._apply
_under_way = threading.local()


def _check(module: nn.Module, convert: Callable[[torch.Tensor], Any]) -> None:
    """Checks that a conversion leaves the streamed weights of a module what they are.

    Raises:
        UnsupportedError: It gives another type or device.
    """
    parked = [each for each in module.parameters() if isinstance(each, ParkedParameter)]
    for parameter in {(each.dtype, each.device): each for each in parked}.values():
        try:
            made = convert(torch.empty(0, dtype=parameter.dtype, device=parameter.device))
        except Exception:  # noqa: BLE001 - of a function that wants more: it is torch's to call it
            continue
        if isinstance(made, torch.Tensor):
            weight_of(parameter).check_kind(made.dtype, made.device)


@functools.wraps(_apply)
def _apply_to_all(
    module: nn.Module, fn: Callable[[torch.Tensor], Any], *args: Any, **kwargs: Any
) -> nn.Module:
    """`Module._apply`, of a whole or of a part in it."""
    outer = getattr(_under_way, "fn", None)
    if outer is not fn:
        _check(module, fn)  # guard: whole-conversion
    _under_way.fn = fn
    try:
        converted: nn.Module = _apply(module, fn, *args, **kwargs)
    finally:
        _under_way.fn = outer
    return converted


def watch() -> None:
    """Has torch's modules ask before they convert anything, from now on; plain ones go on as ever."""
    nn.Module._apply = _apply_to_all  # type: ignore[method-assign, assignment]
