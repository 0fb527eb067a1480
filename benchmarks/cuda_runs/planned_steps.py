"""Decode steps that a host bounds, each beside what a plan says for the host as it was then.

A host whose processors others share changes from one step to the next; a plan knows what it was when
the plan was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy
import torch

from cuda_runs.llama_passes import Timed

_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
_SAME = 0.1  # of what the host takes, before a step and after it
_SECONDS = 8.0
_LEAST_STEPS = 24

Predictions = list[tuple[float, float]]


def predictions_of(predict: Callable[[], float], device: torch.device) -> Predictions:
    """What a plan says for hosts of other speeds: seconds of a call, as plans measure it, and of a pass."""
    from tensorstream import compute_device
    from tensorstream.host_rate import seconds_of_a_call

    made = []
    for seconds in (factor * seconds_of_a_call(device) for factor in _FACTORS):
        with mock.patch.object(compute_device, "seconds_of_a_call", lambda _, call=seconds: call):
            made.append((seconds, predict()))
    return made


def times_predicted(
    run: Callable[[Callable[[], None]], Timed], predictions: Predictions, device: torch.device
) -> dict[str, Any]:
    """How many times the prediction steps took, of those before and after which the host was the same.

    `run` decodes, and calls what it is given between steps.
    """
    from tensorstream.host_rate import seconds_of_one

    number = torch.zeros(1, device=device)
    ratios: list[float] = []
    steps = 0
    start = time.perf_counter()
    calls: list[float] = []
    while not steps or time.perf_counter() - start < _SECONDS:
        calls.clear()
        timed = run(lambda: calls.append(seconds_of_one(number)))
        steps += len(timed.seconds)
        ratios += ratios_of(timed.seconds, calls, predictions)
    if len(ratios) < _LEAST_STEPS:
        return {"steps": len(ratios), "of": steps}
    least, first, median, third, most = numpy.quantile(ratios, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {
        "median": median,
        "min": least,
        "quartile_1": first,
        "quartile_3": third,
        "max": most,
        "steps": len(ratios),
        "of": steps,
    }


def ratios_of(
    seconds: Sequence[float], calls: Sequence[float], predictions: Predictions
) -> list[float]:
    """Of steps, with what a call took before each and after the last; of hosts that were predicted for."""
    ratios = []
    for step, before, after in zip(seconds, calls, calls[1:], strict=False):
        call = (before + after) / 2
        known = predictions[0][0] <= call <= predictions[-1][0]
        if known and abs(after - before) <= _SAME * call:
            ratios.append(step / float(numpy.interp(call, *zip(*predictions, strict=True))))
    return ratios
