"""Runs each way in a process of its own, one after the other, within a time for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SHOWN_LINES = 12  # of what a failed process wrote


class Deadline:
    """A time by which everything ends; None for no end."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def left_s(self) -> float | None:
        """Seconds that are left, at least 0; None for no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def run_json(
    program: Path, arguments: Sequence[str], deadline: Deadline, folder: Path | None = None
) -> dict[str, Any]:
    """The JSON object that a Python program prints as its last line, and `seconds`.

    What it writes to stderr is passed on. Where it fails, prints no JSON or runs past the deadline,
    the object has an `error` and no more.
    """
    left = deadline.left_s()
    if left is not None and left < 1:
        return {"error": "not run: the time for all of them was used up", "seconds": 0.0}
    command = [sys.executable, str(program), *arguments]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=left
        )
    except subprocess.TimeoutExpired:
        seconds = time.monotonic() - start
        return {"error": f"stopped after {seconds:.0f} s: the time was used up", "seconds": seconds}
    seconds = time.monotonic() - start
    sys.stderr.write(done.stderr)
    result = _last_object(done.stdout) if done.returncode == 0 else None
    if result is None:
        said = "\n".join((done.stderr + done.stdout).strip().splitlines()[-_SHOWN_LINES:])
        return {"error": f"ended with status {done.returncode}: {said}", "seconds": seconds}
    return {**result, "seconds": seconds}


def _last_object(text: str) -> dict[str, Any] | None:
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
