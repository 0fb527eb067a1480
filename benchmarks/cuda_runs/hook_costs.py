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
_TIMINGS = 9


class Nothing(nn.Module):
    """A block whose forward does nothing: what is left is the cost of its hooks."""

    def __init__(self, side: int) -> None:
        super().__init__()
        made = [
            nn.Parameter(torch.ones(side, side), requires_grad=False) for _ in range(PARAMETERS)
        ]
        self.weights = nn.ParameterList(made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Blocks(nn.Sequential):
    """Blocks of which one is called again and again within one forward, as in a model's."""

    def forward(self, x: torch.Tensor, chosen: int = 0, count: int = 1) -> torch.Tensor:
        block = self[chosen]
        for _ in range(count):
            x = block(x)
        return x


def microseconds(
    model: Blocks, chosen: int, x: torch.Tensor, count: int, accelerator: Accelerator
) -> Any:
    """Microseconds of one call of a block: the median of some forwards of `count`, and their ends."""
    times = []
    for _ in range(_TIMINGS):
        model(x, chosen)
        accelerator.synchronize()
        start = time.perf_counter()
        model(x, chosen, count)
        times.append((time.perf_counter() - start) / count * 1e6)
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def blocks_by_place(model: Blocks) -> dict[str, list[int]]:
    """The blocks whose weights are where they are for themselves, and those that share a place."""
    from tensorstream.orchestrator import orchestrator_of

    by_weight = {id(block.weights[0]): number for number, block in enumerate(model)}
    found: dict[str, list[int]] = {"resident": [], "streamed": []}
    for lent in orchestrator_of(model)._lent.values():
        number = by_weight.get(id(lent.weights[0].parameter))
        if number is not None:
            found["resident" if lent.stays else "streamed"].append(number)
    return {kind: sorted(numbers) for kind, numbers in found.items()}


def measure_hooks(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """A call of a resident block and of a streamed one that is loaded, each less a plain call."""
    import tensorstream as ts

    model = Blocks(*(Nothing(options.hook_side) for _ in range(options.hook_blocks)))
    x = torch.ones(1, device=accelerator.device)
    budget = budget_bytes(options.budget, weights_bytes(model))
    place = budget_options(str(accelerator.device), budget)
    with torch.no_grad():
        plain = microseconds(model, 0, x, options.hook_calls, accelerator)
        ts.offload(model, **place)
        for block in range(len(model)):  # residents take the room that these leave
            model(x, block)
        named = blocks_by_place(model)
        costs = {}
        for kind, blocks in named.items():
            if blocks:
                chosen = blocks[len(blocks) // 2]
                costs[kind] = microseconds(model, chosen, x, options.hook_calls, accelerator)
    return {
        "how": f"blocks of {PARAMETERS} parameters of {options.hook_side} squared, whose forward is empty",
        "budget_bytes": budget,
        "weights_bytes": weights_bytes(model),
        "groups": {kind: len(blocks) for kind, blocks in named.items()},
        "plain_call_us": plain,
        "call_us": costs,
        "acquire_release_us": {
            kind: cost["median"] - plain["median"] for kind, cost in costs.items()
        },
    }
