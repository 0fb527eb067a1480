"""How fast this process has a GPU work: what a plan predicts forwards by that keep the host busy."""

from __future__ import annotations

import functools
import statistics
import time

import torch

_CALLS = 50  # of one round: few enough for a driver's queue
_LOOPS, _TURNS = 5, 200  # of plain Python beside each: on a quiet host three quarters of it
_ROUNDS = 5


@functools.cache
def seconds_of_a_call(device: torch.device) -> float:
    """What this thread takes for an operation of torch's with next to no work on `device`, and some Python.

    The median of some rounds, measured once; another minute of the same machine may take twice as long.
    """
    number = torch.zeros(1, device=device)
    with torch.inference_mode():
        seconds_of_one(number)
        return statistics.median(seconds_of_one(number) for _ in range(_ROUNDS))


def seconds_of_one(number: torch.Tensor) -> float:
    """The same by a single round, on `number`, of one element."""
    if number.is_cuda:
        torch.cuda.synchronize(number.device)
    start = time.perf_counter()
    for _ in range(_CALLS):
        number.add_(1)
        for _ in range(_LOOPS):
            total = 0
            for turn in range(_TURNS):
                total += turn
    return (time.perf_counter() - start) / _CALLS
