"""Conversions of a model's type or device: refused before torch has converted a part of it.

`Module.half()`, `to()` and their like go through the modules one by one. What they had converted of a model
before they reached a streamed weight, which cannot follow, would stay so.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tensorstream.flattened import wrapper_of
from tensorstream.parts import parts_of
from tensorstream.proxy import LentParameter, ParkedParameter, refuse, weight_of
from tensorstream.registry import orchestrators

_under_way = threading.local()


def watch() -> None:
    """Has modules and pipelines ask before they convert anything, from now on; plain ones go on as ever."""
    _watch_modules()
    _watch_pipelines()


def _watch_modules() -> None:
    if not getattr(nn.Module._apply, "watches_streamed_weights", False):
        plain: Any = nn.Module._apply

        @functools.wraps(plain)
        def apply(
            module: nn.Module, fn: Callable[..., Any], *args: Any, **kwargs: Any
        ) -> nn.Module:
            outer = getattr(_under_way, "fn", None)
            if outer is not fn and orchestrators():
                _check(module, fn)  # guard: whole-conversion
            _under_way.fn = fn
            try:
                converted: nn.Module = plain(module, fn, *args, **kwargs)
            finally:
                _under_way.fn = outer
            return converted

        apply.watches_streamed_weights = True  # type: ignore[attr-defined]
        nn.Module._apply = apply  # type: ignore[method-assign, assignment]


def _watch_pipelines() -> None:
    """Those of diffusers convert their models one by one. Where nobody has them, they are not imported."""
    module = sys.modules.get("diffusers.pipelines.pipeline_utils")
    kind: Any = getattr(module, "DiffusionPipeline", None)
    if kind is None or getattr(kind.to, "watches_streamed_weights", False):
        return
    plain = kind.to

    @functools.wraps(plain)
    def to(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        parts = parts_of(pipeline)
        if parts is not None and orchestrators():
            _check(parts, _conversion(args, kwargs))  # guard: whole-pipeline
        return plain(pipeline, *args, **kwargs)

    to.watches_streamed_weights = True  # type: ignore[attr-defined]
    kind.to = to


def _conversion(args: Any, kwargs: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `to` does with these arguments to one tensor; nothing where it refuses them itself."""
    named = {name: kwargs[name] for name in ("device", "dtype") if kwargs.get(name) is not None}
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    with contextlib.suppress(RuntimeError, TypeError):
        device, dtype, *_ = torch._C._nn._parse_to(*args, **named)

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.to(tensor.device if device is None else device, wanted)

    return convert


def _streamed(module: nn.Module) -> Iterator[torch.Tensor]:
    """The streamed weights below a module, by what torch goes through, and no method of its own."""
    for held in (*module._parameters.values(), *module._buffers.values()):
        if isinstance(held, ParkedParameter | LentParameter):
            yield held
        wrapper = None if held is None else wrapper_of(held)
        if wrapper is not None and wrapper.is_streamed:
            yield wrapper.outer
    for part in module._modules.values():
        if part is not None:
            yield from _streamed(part)


def _check(module: nn.Module, convert: Callable[[torch.Tensor], Any]) -> None:
    """Checks that a conversion leaves the streamed weights of a module what they are.

    It is tried on an empty tensor of each kind that they have.

    Raises:
        UnsupportedError: It gives another type, device or kind of memory.
    """
    kinds = {(each.dtype, each.device, type(each)): each for each in _streamed(module)}
    for (dtype, device, _), weight in kinds.items():
        try:
            made = convert(torch.empty(0, dtype=dtype, device=device))
        except Exception:  # noqa: BLE001 - of a function that wants more: it is torch's to call it
            continue
        if not isinstance(made, torch.Tensor):
            continue
        streamed = wrapper_of(weight) or weight_of(weight)
        streamed.check_kind(made.dtype, made.device)
        if made.device.type == "cpu" and made.is_shared():
            refuse(streamed.name, "share_memory_")
