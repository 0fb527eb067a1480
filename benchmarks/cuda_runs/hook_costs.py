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
BLOCK_SECONDS = 2e-4
# Sides and time as multiples in a second run: after long blocks a processor has forgotten more of the hooks.
LONG_SIDE, LONG_TIME = 4, 5


class Busy(nn.Module):
    """A block that only takes time, and knows when it began to and ended; without weights it gets no hook."""

    def __init__(self, weights: list[nn.Parameter], seconds: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.seconds = seconds
        self.entered = self.left = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.entered = self.left = time.perf_counter()
        while self.left < self.entered + self.seconds:
            self.left = time.perf_counter()
        return x


class Blocks(nn.Sequential):
    """Blocks one after the other, each followed by one without weights; what calls took beside their blocks.

    Attributes:
        around: By block, in seconds: its own call, and that of the one that follows it.
    """

    def __init__(self, count: int, side: int, seconds: float) -> None:
        def weight() -> nn.Parameter:
            return nn.Parameter(torch.ones(side, side), requires_grad=False)

        weights = [[weight() for _ in range(PARAMETERS)] for _ in range(count)]
        super().__init__(*(Busy(some, seconds) for of_block in weights for some in (of_block, [])))
        self.around = [(0.0, 0.0)] * count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = []
        for block in self:
            start = time.perf_counter()
            x = block(x)
            end = time.perf_counter()
            around.append((block.entered - start) + (end - block.left))
        self.around = list(zip(around[::2], around[1::2], strict=True))
        return x


def microseconds(blocks: list[int], passes: list[list[float]]) -> dict[str, float]:
    """Of one call of one of the blocks: the median of all passes, and the least and most of a pass."""
    of_passes = [statistics.median(around[block] for block in blocks) * 1e6 for around in passes]
    return {
        "median": statistics.median(of_passes),
        "min": min(of_passes),
        "max": max(of_passes),
    }


def run_passes(model: Blocks, x: torch.Tensor, count: int) -> list[list[tuple[float, float]]]:
    """What the calls took beside the blocks, by pass and block, once the model is warm."""
    passes = []
    for _ in range(3 + count):
        model(x)
        passes.append(model.around)
    return passes[3:]


def blocks_by_place(model: Blocks) -> dict[str, list[int]]:
    """The blocks whose weights are where they are for themselves, and those that share a place."""
    from tensorstream.orchestrator import orchestrator_of

    by_weight = {id(block.weights[0]): number for number, block in enumerate(list(model)[::2])}
    found: dict[str, list[int]] = {"resident": [], "streamed": []}
    for lent in orchestrator_of(model)._lent.values():
        number = by_weight.get(id(lent.weights[0].parameter))
        if number is not None:
            found["resident" if lent.stays else "streamed"].append(number)
    return {kind: sorted(numbers) for kind, numbers in found.items() if numbers}


def measure_hooks(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """A call of a resident block and of a streamed one, less a plain call: of short blocks, and long ones."""
    short = measure_blocks(options, accelerator, options.hook_side, BLOCK_SECONDS)
    long = measure_blocks(
        options, accelerator, LONG_SIDE * options.hook_side, LONG_TIME * BLOCK_SECONDS
    )
    return {**short, "long_blocks": long}


def measure_blocks(
    options: argparse.Namespace, accelerator: Accelerator, side: int, seconds: float
) -> dict[str, Any]:
    """The same for blocks of parameters of `side` squared that take so many seconds each."""
    import tensorstream as ts

    model = Blocks(options.hook_blocks, side, seconds)
    x = torch.ones(1, device=accelerator.device)
    budget = budget_bytes(options.budget, weights_bytes(model))
    ts.offload(model, **budget_options(str(accelerator.device), budget))
    with torch.no_grad():
        passes = run_passes(model, x, options.hook_passes)
    named = blocks_by_place(model)
    calls = [[own for own, _ in around] for around in passes]
    beside = [[own - plain for own, plain in around] for around in passes]
    costs = {kind: microseconds(blocks, beside) for kind, blocks in named.items()}
    stats = ts.stats(model)
    return {
        "how": (
            f"blocks of {PARAMETERS} parameters of {side} squared, in their order, each of "
            f"{seconds * 1e3:g} ms on the host and followed by one of the same without parameters, "
            "whose call is taken off"
        ),
        "budget_bytes": budget,
        "weights_bytes": weights_bytes(model),
        "groups": {kind: len(blocks) for kind, blocks in named.items()},
        "plain_call_us": microseconds(
            list(range(options.hook_blocks)),
            [[plain for _, plain in around] for around in passes],
        ),
        "call_us": {kind: microseconds(blocks, calls) for kind, blocks in named.items()},
        "acquire_release_us": {kind: cost["median"] for kind, cost in costs.items()},
        "acquire_release_spread_us": costs,
        "acquires": {"all": stats.acquires, "hits": stats.hits, "misses": stats.misses},
    }
