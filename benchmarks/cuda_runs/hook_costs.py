"""What acquiring and releasing a group costs in Python, hooks included."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import nn

from cuda_runs.accelerator import Accelerator
from cuda_runs.budgets import budget_bytes, budget_options
from cuda_runs.llama_model import weights_bytes

PARAMETERS = 9
# What a block takes for itself: more than to bring one, so that those which follow are there in time.
BLOCK_SECONDS = 1e-3


class Busy(nn.Module):
    """A block that only takes time, and knows when it began to and ended."""

    def __init__(self, side: int) -> None:
        super().__init__()
        made = [
            nn.Parameter(torch.ones(side, side), requires_grad=False) for _ in range(PARAMETERS)
        ]
        self.weights = nn.ParameterList(made)
        self.entered = self.left = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.entered = self.left = time.perf_counter()
        while self.left < self.entered + BLOCK_SECONDS:
            self.left = time.perf_counter()
        return x


class Blocks(nn.Sequential):
    """Blocks one after the other; what each call took beside the block's own time, in seconds."""

    def __init__(self, *blocks: Busy) -> None:
        super().__init__(*blocks)
        self.around = [0.0] * len(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self):
            start = time.perf_counter()
            x = block(x)
            end = time.perf_counter()
            self.around[number] = (block.entered - start) + (end - block.left)
        return x


def microseconds(blocks: list[int], passes: list[list[float]]) -> dict[str, float]:
    """Of one call of one of the blocks: the median of all passes, and the least and most of a pass."""
    of_passes = [statistics.median(around[block] for block in blocks) * 1e6 for around in passes]
    each = [around[block] * 1e6 for around in passes for block in blocks]
    return {"median": statistics.median(each), "min": min(of_passes), "max": max(of_passes)}


def run_passes(model: Blocks, x: torch.Tensor, count: int) -> list[list[float]]:
    """What the calls took beside the blocks, by pass and block, once the model is warm."""
    passes = []
    for _ in range(3 + count):
        model(x)
        passes.append(list(model.around))
    return passes[3:]


def blocks_by_place(model: Blocks) -> dict[str, list[int]]:
    """The blocks whose weights are where they are for themselves, and those that share a place."""
    from tensorstream.orchestrator import orchestrator_of

    by_weight = {id(block.weights[0]): number for number, block in enumerate(model)}
    found: dict[str, list[int]] = {"resident": [], "streamed": []}
    for lent in orchestrator_of(model)._lent.values():
        number = by_weight.get(id(lent.weights[0].parameter))
        if number is not None:
            found["resident" if lent.stays else "streamed"].append(number)
    return {kind: sorted(numbers) for kind, numbers in found.items() if numbers}


def measure_hooks(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """A call of a resident block and of a streamed one, as a pass makes them, each less a plain call."""
    import tensorstream as ts

    model = Blocks(*(Busy(options.hook_side) for _ in range(options.hook_blocks)))
    x = torch.ones(1, device=accelerator.device)
    budget = budget_bytes(options.budget, weights_bytes(model))
    place = budget_options(str(accelerator.device), budget)
    with torch.no_grad():
        plain = microseconds(list(range(len(model))), run_passes(model, x, options.hook_passes))
        ts.offload(model, **place)
        passes = run_passes(model, x, options.hook_passes)
    named = blocks_by_place(model)
    costs = {kind: microseconds(blocks, passes) for kind, blocks in named.items()}
    stats = ts.stats(model)
    return {
        "how": (
            f"blocks of {PARAMETERS} parameters of {options.hook_side} squared, in their order, each of "
            f"{BLOCK_SECONDS * 1e3:g} ms on the host"
        ),
        "budget_bytes": budget,
        "weights_bytes": weights_bytes(model),
        "groups": {kind: len(blocks) for kind, blocks in named.items()},
        "plain_call_us": plain,
        "call_us": costs,
        "acquire_release_us": {
            kind: cost["median"] - plain["median"] for kind, cost in costs.items()
        },
        "acquires": {"all": stats.acquires, "hits": stats.hits, "misses": stats.misses},
    }
