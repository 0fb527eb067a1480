"""Decode steps in turns with native ones, each turn beside what a plan says for the host as it was then.

A host whose processors others share changes within seconds; a plan knows what it was when the plan was
made. What native steps take next to ours tells what it is.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy
import torch

from cuda_runs.llama_passes import Decoding, Step

_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
_LOUD = 2.0  # a host so many times slower
_BOUND = 1.02  # bounds a pass which takes so much longer then
_SAME = 0.1  # of what is predicted, by what native steps take before a turn and after it
_COUNTED = 4  # steps of a turn of either model
_UNCOUNTED = 1  # and before them: caches are the other's, and while native steps run more is loaded
_WAITED = 0.2  # of a native step, at most: else it is the device that bounds it
_SECONDS = 12.0
_LEAST_TURNS = 12

Predictions = Sequence[tuple[float, float]]


def predictions_of(
    predict: Callable[[], float], predict_native: Callable[[], float], device: torch.device
) -> Predictions:
    """What plans say for hosts of other speeds: seconds of a native pass, and of one of ours.

    An empty list where a host that is twice as slow as now changes nothing.
    """
    ours = {factor: _of_host(factor, predict, device) for factor in (1.0, _LOUD)}
    if ours[_LOUD] <= _BOUND * ours[1.0]:
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


@dataclasses.dataclass(frozen=True)
class Turn:
    """Seconds of native steps before it and after it, of ours, and what was predicted, if anything was.

    Nothing is where the host changed so much that predictions differ, or is none that they are for, or
    where native steps wait for the device: then they do not tell of the host.
    """

    before: float
    seconds: float
    after: float
    predicted: float | None


def times_predicted(
    begin_native: Callable[[], Decoding],
    begin_ours: Callable[[], Decoding],
    predictions: Predictions,
) -> dict[str, Any]:
    """How many times the prediction steps took, by turns that something was predicted for.

    What begins anew decodes from the prompt, for as many steps as there is room for.
    """
    turns: list[Turn] = []
    start = time.perf_counter()
    while not turns or time.perf_counter() - start < _SECONDS:
        turns += _turns(begin_native(), begin_ours(), predictions)
    ratios = [turn.seconds / turn.predicted for turn in turns if turn.predicted is not None]
    found = {"turns": len(ratios), "of": [dataclasses.astuple(turn) for turn in turns]}
    if len(ratios) < _LEAST_TURNS:
        return found
    least, first, median, third, most = numpy.quantile(ratios, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {
        "median": median,
        "min": least,
        "quartile_1": first,
        "quartile_3": third,
        "max": most,
        **found,
    }


def _turns(native: Decoding, ours: Decoding, predictions: Predictions) -> list[Turn]:
    """As many as both have room for."""
    each = _UNCOUNTED + _COUNTED
    turns = []
    before = _counted(native)
    while native.room >= each and ours.room >= each:
        own = statistics.median(step.seconds for step in _counted(ours))
        after = _counted(native)
        turns.append(turn_of(before, own, after, predictions))
        before = after
    return turns


def _counted(model: Decoding) -> list[Step]:
    """The next steps that count."""
    return [model.step() for _ in range(_UNCOUNTED + _COUNTED)][_UNCOUNTED:]


def turn_of(
    before: Sequence[Step], seconds: float, after: Sequence[Step], predictions: Predictions
) -> Turn:
    """A step of ours between native ones, beside what is predicted by these."""
    first, last = (statistics.median(step.seconds for step in steps) for steps in (before, after))
    native = (first, last, (first + last) / 2)
    known = predictions[0][0] <= min(native) and max(native) <= predictions[-1][0]
    waited = statistics.median(step.waited_seconds / step.seconds for step in (*before, *after))
    by_first, by_last, predicted = numpy.interp(native, *zip(*predictions, strict=True)).tolist()
    if not known or waited > _WAITED or abs(by_last - by_first) > _SAME * predicted:
        return Turn(first, seconds, last, None)
    return Turn(first, seconds, last, predicted)
