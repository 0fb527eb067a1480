"""Rounds of one measurement, of which that counts while which the host was quietest.

A host whose processors others share is twice as slow in some minutes as in others. A piece of plain
Python that has nothing to do with what is measured says when.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

from cuda_runs.llama_passes import Timed

_MOST_ROUNDS = 6
_SECONDS = 5.0  # no round begins after these
_TURNS, _PROBES = 10_000, 9


@dataclasses.dataclass
class Round:
    """One measurement, and the seconds that the piece of Python took before it and after."""

    timed: Timed
    host_seconds: float

    def as_json(self) -> dict[str, float]:
        return {
            "seconds_median": statistics.median(self.timed.seconds),
            "host_probe_seconds": self.host_seconds,
        }


def host_probe_seconds() -> float:
    """The median time of a loop of plain Python."""
    times = []
    for _ in range(_PROBES):
        start, total = time.perf_counter(), 0
        for turn in range(_TURNS):
            total += turn
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run_rounds(run: Callable[[], Timed], most: int = _MOST_ROUNDS) -> list[Round]:
    """As many rounds as the time allows, the quietest first.

    Raises:
        RuntimeError: Two of them gave different outputs.
    """
    rounds: list[Round] = []
    start = time.perf_counter()
    before = host_probe_seconds()
    while not rounds or (len(rounds) < most and time.perf_counter() - start < _SECONDS):
        timed = run()
        after = host_probe_seconds()
        rounds.append(Round(timed, max(before, after)))
        before = after
        if timed.logits_sha256 != rounds[0].timed.logits_sha256:
            raise RuntimeError("two rounds gave different outputs")
    return sorted(rounds, key=lambda one: one.host_seconds)
