"""How fast this process has a GPU work: what a plan predicts forwards by that keep the host busy."""

from __future__ import annotations

import functools
import statistics
import time

import torch

_CALLS = 100  # of one round: few enough for a driver's queue
_ROUNDS = 5


@functools.cache
def seconds_of_a_call(device: torch.device) -> float:
    """What this thread takes for an operation of torch's with next to no work on `device`.

    The median of some rounds, measured once; another minute of the same machine may take twice as long.
    """
    number = torch.zeros(1, device=device)
    with torch.inference_mode():
        _round(number)
        return statistics.median(_round(number) for _ in range(_ROUNDS))


def _round(number: torch.Tensor) -> float:
    if number.is_cuda:
        torch.cuda.synchronize(number.device)
    start = time.perf_counter()
    for _ in range(_CALLS):
        number.add_(1)
    return (time.perf_counter() - start) / _CALLS
