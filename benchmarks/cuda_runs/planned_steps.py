"""Decode steps in turns with native ones, each turn beside what a plan says for the host as it was then.

A host whose processors others share changes within seconds; a plan knows what it was when the plan was
made. What native steps take next to ours tells what it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy
import torch

from cuda_runs.llama_passes import Decoding

_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
_LOUD, _BOUND = 2.0, 1.02  # a host so much slower may bound a pass, which takes so much longer then
_SAME = 0.1  # of what is predicted, by what native steps take before a turn and after it
_NATIVE = 2  # steps before and after each turn
_OURS, _UNCOUNTED = 4, 1  # of a turn; while native steps run, more is loaded ahead than usual
_SECONDS = 10.0
_LEAST_TURNS = 12

Predictions = Sequence[tuple[float, float]]


def predictions_of(
    predict: Callable[[], float], predict_native: Callable[[], float], device: torch.device
) -> Predictions:
    """What plans say for hosts of other speeds: seconds of a native pass, and of one of ours.

    None where a host that is twice as slow as now changes nothing.
    """
    if _of_host(_LOUD, predict, device) <= _BOUND * predict():
        return []
    return [
        (_of_host(factor, predict_native, device), _of_host(factor, predict, device))
        for factor in _FACTORS
    ]


def _of_host(factor: float, predict: Callable[[], float], device: torch.device) -> float:
    """What is predicted for a host on which everything takes so many times as long as it was measured."""
    from tensorstream import compute_device, host_rate

    seconds = factor * host_rate.seconds_of_a_call(device)
    with mock.patch.object(compute_device, "seconds_of_a_call", lambda _: seconds):
        return predict()


def times_predicted(
    begin_native: Callable[[], Decoding],
    begin_ours: Callable[[], Decoding],
    predictions: Predictions,
) -> dict[str, Any]:
    """How many times the prediction steps took, by turns before and after which the host was the same.

    What begins anew decodes from the prompt, for as many steps as there is room for.
    """
    ratios: list[float] = []
    turns = 0
    start = time.perf_counter()
    while not turns or time.perf_counter() - start < _SECONDS:
        native, ours = begin_native(), begin_ours()
        before = _seconds_of(native, _NATIVE)
        while native.room >= _NATIVE and ours.room >= _UNCOUNTED + _OURS:
            _seconds_of(ours, _UNCOUNTED)
            took = _seconds_of(ours, _OURS)
            after = _seconds_of(native, _NATIVE)
            ratios += ratio_of(took, before, after, predictions)
            turns += 1
            before = after
    if len(ratios) < _LEAST_TURNS:
        return {"turns": len(ratios), "of": turns}
    least, first, median, third, most = numpy.quantile(ratios, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {
        "median": median,
        "min": least,
        "quartile_1": first,
        "quartile_3": third,
        "max": most,
        "turns": len(ratios),
        "of": turns,
    }


def _seconds_of(model: Decoding, steps: int) -> float:
    """The median of so many."""
    return statistics.median(model.step().seconds for _ in range(steps))


def ratio_of(
    seconds: float, before: float, after: float, predictions: Predictions
) -> tuple[float, ...]:
    """Of a step, with what native ones took before and after.

    None where what is predicted by these differs, or the host is none that was predicted for.
    """
    native = [before, after, (before + after) / 2]
    if min(native) < predictions[0][0] or max(native) > predictions[-1][0]:
        return ()
    first, last, predicted = numpy.interp(native, *zip(*predictions, strict=True)).tolist()
    return (seconds / predicted,) if abs(last - first) <= _SAME * predicted else ()
