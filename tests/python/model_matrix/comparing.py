"""Outputs of models as lists of tensors, and their comparison as bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch


def tensors_of(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Every tensor in an output: containers, dataclasses, caches and their layers."""
    if depth > 12:
        return
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item, depth + 1)
    elif dataclasses.is_dataclass(value) or _is_of_a_library(value):
        yield from tensors_of(vars(value), depth + 1)


def _is_of_a_library(value: Any) -> bool:
    """Whether a value may have tensors in it that it does not show: a cache, a distribution."""
    return type(value).__module__.partition(".")[0] in ("transformers", "diffusers")


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's own bytes."""
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    return dense.reshape(-1).view(torch.uint8)


def difference(actual: Any, expected: Any) -> str | None:
    """In which way two outputs differ; None where every byte is the same."""
    left, right = list(tensors_of(actual)), list(tensors_of(expected))
    if len(left) != len(right):
        return f"{len(left)} tensors instead of {len(right)}"
    for position, (one, other) in enumerate(zip(left, right, strict=True)):
        if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            return f"tensor {position} of {len(left)} has another shape, type or device"
        if not torch.equal(raw(one), raw(other)):
            return f"tensor {position} of {len(left)} has other bytes"
    return None
