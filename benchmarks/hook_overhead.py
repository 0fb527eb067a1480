# Question: what does one use of a streamed block cost in Python and hooks when its weights are on
# the device already, and what does parking a parameter and lending it again cost?
"""Times a block of 9 parameters whose group is loaded, offloaded against plain, in one process."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import tensorstream as ts
from tensorstream.orchestrator import orchestrator_of


class Nothing(nn.Module):
    """A block of 9 parameters whose forward does nothing: what is left is the cost of its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(64, 1024)) for _ in range(9)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def microseconds(call: Callable[[], object], count: int, repeats: int = 9) -> tuple[float, float]:
    """Median time of one call and the spread of the repeats."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(times), max(times) - min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    count = parser.parse_args().count
    torch.manual_seed(0)
    model = nn.Sequential(*(Nothing() for _ in range(6)))
    x = torch.ones(1)
    with torch.no_grad():
        plain, plain_spread = microseconds(lambda: model[0](x), count)
        estimate = ts.estimate_memory(model)
        ts.offload(model, ram_budget=estimate.everything_fits_bytes // 2)
        streamed = next(iter(orchestrator_of(model)._lent.values()))
        block = next(child for child in model if child.weights[0] is streamed.weights[0].parameter)
        block(x)
        hooked, hooked_spread = microseconds(lambda: block(x), count)

        def swap() -> None:
            streamed.lend()
            streamed.park(streamed.changed())

        swapped, swapped_spread = microseconds(swap, count)
    print(f"plain block             {plain:8.2f} us  (spread {plain_spread:.2f})")
    print(f"streamed, loaded block  {hooked:8.2f} us  (spread {hooked_spread:.2f})")
    print(f"lend + park 9 weights   {swapped:8.2f} us  (spread {swapped_spread:.2f})")


if __name__ == "__main__":
    main()
