"""Where the types are run: on the CPU, or on a GPU that has half of their bytes."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

import tensorstream as ts

# A GPU's budget counts what torch takes beside weights, which is more than most of these models are:
# torch's share is let go beyond it, once every resident has given way.
_GPU_PRESSURE = "lenient"


def describe(device: str) -> str:
    """How the document says where it was, and how it was offloaded."""
    if device == "cpu":
        return "on the CPU: in its smallest budget, in checking mode"
    name = torch.cuda.get_device_name(torch.device(device))
    return (
        f"on one {name}, on which kernels were told to be deterministic:\nin a budget that has half of the "
        "weights' bytes streamed, or all where torch needs the room or the forward uses none of that half,\n"
        "in checking mode"
    )


def prepare(device: str) -> None:
    """Has this process compute alike each time, before it begins."""
    torch.set_num_threads(1)
    if device == "cpu":
        return
    # Kernels that add up in any order give no two plain runs that are alike.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def moved(value: Any, device: str) -> Any:
    """Arguments of a forward with their tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(moved(item, device) for item in value)
    return value


def offload(model: nn.Module, device: str, smallest: bool = False) -> None:
    """Offloads a model that is on the CPU so that much of it is streamed, in checking mode.

    On a GPU in the smallest budget only where that is asked for.
    """
    if device == "cpu":
        budget = ts.estimate_memory(model).smallest_budget_bytes
        ts.offload(model, ram_budget=budget, self_check=True)
        return
    if smallest:
        budget = ts.plan(model, device=device, vram_budget="50%").smallest_budget_bytes
    else:
        budget = budget_of_half(model, device)
    ts.offload(model, device=device, vram_budget=budget, pressure=_GPU_PRESSURE, self_check=True)


def budget_of_half(model: nn.Module, device: str) -> int:
    """The largest budget that streams half of the weights' bytes or more; the smallest where none does."""
    whole = ts.plan(model, device=device, vram_budget="50%")
    low, high = whole.smallest_budget_bytes, whole.everything_fits_bytes
    half = ts.estimate_memory(model).weights_bytes / 2
    while high - low > (1 << 20):
        middle = (low + high) // 2
        streams_half = ts.plan(model, device=device, vram_budget=middle).streamed_bytes >= half
        low, high = (middle, high) if streams_half else (low, middle)
    return low
