"""One model in one process, measured: what the example programs start and what they get back.

The parent starts the same program again with `--run KIND --output FOLDER`. The child measures its
own memory and time, and writes a report and the bytes of its outputs, which the parent compares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_REPORT_FILE = "report.json"
_OUTPUTS_FILE = "outputs.bin"
_SAMPLE_SECONDS = 0.005


@dataclasses.dataclass
class RunReport:
    """What a child says of its run. Sizes in bytes, times in seconds.

    Attributes:
        weights_bytes: All parameters of the model.
        baseline_rss_bytes: Resident size with everything imported and warm, before loading.
        peak_rss_bytes: The highest resident size from then on, file pages included.
        load_seconds: Until the model was ready.
        run_seconds: Of the work itself.
        stats: TensorStream's statistics; empty for a plain model.
        notes: What the program wants to show besides.
        outputs_sha256: Of the outputs' bytes.
    """

    weights_bytes: int
    baseline_rss_bytes: int
    peak_rss_bytes: int
    load_seconds: float
    run_seconds: float
    stats: dict[str, Any]
    notes: dict[str, Any]
    outputs_sha256: str = ""

    @property
    def rss_above_baseline_bytes(self) -> int:
        """What the model added to the process's resident size at the most."""
        return max(0, self.peak_rss_bytes - self.baseline_rss_bytes)

    def write(self, folder: Path, outputs: bytes) -> None:
        """Writes the report and the outputs for the parent."""
        self.outputs_sha256 = hashlib.sha256(outputs).hexdigest()
        (folder / _OUTPUTS_FILE).write_bytes(outputs)
        (folder / _REPORT_FILE).write_text(json.dumps(dataclasses.asdict(self)))


def start_run(program: str, arguments: Sequence[str], folder: Path) -> tuple[RunReport, bytes]:
    """Runs `program` with `arguments` in a process of its own; its report and its outputs.

    Ends this program where the child fails: what it wrote to stderr has been shown.
    """
    folder.mkdir(parents=True)
    command = [sys.executable, program, *arguments, "--output", str(folder)]
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise SystemExit(f"{Path(program).name} {' '.join(arguments)} ended with status {status}")
    report = RunReport(**json.loads((folder / _REPORT_FILE).read_text()))
    outputs = (folder / _OUTPUTS_FILE).read_bytes()
    if hashlib.sha256(outputs).hexdigest() != report.outputs_sha256:
        raise SystemExit(f"the outputs in {folder} are not those that the run reported")
    return report, outputs


class RssWatch:
    """The resident size of this process from now on: at the start and at its highest."""

    def __init__(self) -> None:
        gc.collect()
        self._sampled_bytes = 0
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        except OSError:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        self.baseline_bytes = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The highest resident size so far."""
        if self._sampler is None:
            return _status_bytes("VmHWM")
        self._stop.set()
        self._sampler.join()
        return max(self._sampled_bytes, _status_bytes("VmRSS"))

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sampled_bytes = max(self._sampled_bytes, _status_bytes("VmRSS"))


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start


@contextlib.contextmanager
def new_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder of this process below `parent`, deleted at the end."""
    import shutil

    folder = parent / f"{name}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier process with our id
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def drop_from_page_cache(folder: Path) -> None:
    """Makes the next reader fetch the files below `folder` from the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not written yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
