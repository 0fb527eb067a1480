"""Rounds of one measurement, of which those count while which the host was quietest.

A host whose processors others share is twice as slow in some minutes as in others. A piece of plain
Python that has nothing to do with what is measured says when.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable

from cuda_runs.llama_passes import Timed

_MOST_ROUNDS = 12
_SECONDS = 5.0  # no round begins after these,
_LOUD_SECONDS = 15.0  # or after these, where the host bounds what it was too loud for
_HOST_BOUND = 0.75  # of a step is the thread's own time
_QUIET = 1.15  # times what the probe took at its quickest
_LOOK_SECONDS, _WAIT_SECONDS = 1.0, 6.0
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


class QuietHost:
    """Knows how quick the piece of Python was at its quickest, in this process."""

    def __init__(self) -> None:
        self._quickest = math.inf

    def probe(self) -> float:
        """What it takes now."""
        seconds = host_probe_seconds()
        self._quickest = min(self._quickest, seconds)
        return seconds

    def is_quiet(self, seconds: float) -> bool:
        """Whether that is next to what it took at its quickest."""
        return seconds <= _QUIET * self._quickest

    def wait(self) -> None:
        """Looks for a second, and then waits for a quiet moment, for some seconds."""
        start = time.perf_counter()
        while True:
            now = self.probe()
            waited = time.perf_counter() - start
            if waited > _WAIT_SECONDS or (waited > _LOOK_SECONDS and self.is_quiet(now)):
                return


HOST = QuietHost()


def pooled(rounds: list[Round]) -> Timed:
    """The steps of all rounds in which the host was about as quiet as in the quietest of them."""
    quietest = min(one.host_seconds for one in rounds)
    counted = [one.timed for one in rounds if one.host_seconds <= _QUIET * quietest]
    return dataclasses.replace(
        counted[0],
        seconds=[seconds for timed in counted for seconds in timed.seconds],
        thread_seconds=[seconds for timed in counted for seconds in timed.thread_seconds],
        switches=sum(timed.switches for timed in counted),
    )


def _goes_on(rounds: list[Round], seconds: float) -> bool:
    if seconds < _SECONDS:
        return True
    if seconds >= _LOUD_SECONDS or any(HOST.is_quiet(one.host_seconds) for one in rounds):
        return False
    own = statistics.median(rounds[0].timed.thread_seconds or [0.0])
    return own > _HOST_BOUND * statistics.median(rounds[0].timed.seconds)


def run_rounds(run: Callable[[], Timed], most: int = _MOST_ROUNDS) -> list[Round]:
    """As many rounds as the time allows, the quietest first.

    Raises:
        RuntimeError: Two of them gave different outputs.
    """
    rounds: list[Round] = []
    start = time.perf_counter()
    before = HOST.probe()
    while not rounds or (len(rounds) < most and _goes_on(rounds, time.perf_counter() - start)):
        timed = run()
        after = HOST.probe()
        rounds.append(Round(timed, max(before, after)))
        before = after
        if timed.logits_sha256 != rounds[0].timed.logits_sha256:
            raise RuntimeError("two rounds gave different outputs")
    return sorted(rounds, key=lambda one: one.host_seconds)
