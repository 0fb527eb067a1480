"""Memory over time: the device's free memory and this process's anonymous pages, sampled."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

from cuda_runs.accelerator import Accelerator


@dataclasses.dataclass
class Peak:
    """The most that was taken since the baseline. Bytes; None where the driver is not asked."""

    device_bytes: int | None
    host_bytes: int


class MemoryWatch:
    """Samples in a thread of its own, from `start` to the end of the with block.

    The baseline is taken as the block is entered: by then the process has run a model of the same
    widths and given back its memory, so that contexts, loaded kernels and the workspaces of vendor
    libraries are not counted as the model's.
    """

    def __init__(self, accelerator: Accelerator, interval_s: float = 0.01) -> None:
        self._accelerator = accelerator
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._sampling = threading.Lock()  # of the thread, and of who wants it to rest
        self._lock = threading.Lock()
        self._whole = Peak(None, 0)
        self._lap = Peak(None, 0)
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    def __enter__(self) -> MemoryWatch:
        gc.collect()
        self._accelerator.release_cached()
        self.reserved_at_baseline_bytes = self._accelerator.reserved_bytes()
        self._free_bytes = self._accelerator.free_bytes()
        self._host_bytes = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Samples nothing while something is timed, but what is taken at its end.

        To ask a driver for its free memory takes its lock from whoever computes.
        """
        with self._sampling:
            try:
                yield
            finally:
                self._sample()

    def lap(self) -> Peak:
        """The peak since the last lap, or since the start."""
        self._sample()
        with self._lock:
            lap, self._lap = self._lap, Peak(None, 0)
        return lap

    def whole(self) -> Peak:
        """The peak since the start."""
        self._sample()
        with self._lock:
            return dataclasses.replace(self._whole)

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval_s):
            with self._sampling:
                self._sample()

    def _sample(self) -> None:
        free_bytes = self._accelerator.free_bytes()
        taken = None
        if free_bytes is not None and self._free_bytes is not None:
            taken = self._free_bytes - free_bytes
        host = anonymous_bytes() - self._host_bytes
        with self._lock:
            for peak in (self._whole, self._lap):
                peak.host_bytes = max(peak.host_bytes, host)
                if taken is not None:
                    peak.device_bytes = max(peak.device_bytes or 0, taken)


def anonymous_bytes() -> int:
    """Memory of this process that is no file's and in RAM, registered pages included."""
    kinds = ("RssAnon:", "RssShmem:")
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))
