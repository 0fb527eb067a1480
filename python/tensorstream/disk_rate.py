"""How fast a disk is: measured once by reading a part of a file, and remembered for its file system."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from tensorstream import _native
from tensorstream.exceptions import IoError

_VALID_SECONDS = 7 * 24 * 3600.0


def disk_bytes_per_second(path: str) -> float | None:
    """The rate at which the file at `path` is read past the page cache.

    Measuring takes half a second. What was measured is kept for a week in the user's cache
    folder, by machine and file system. None where the file is too small to tell, or cannot be read so.

    Raises:
        IoError: The file cannot be read.
    """
    cache = _cache_file()
    key = f"{platform.node()}:{_file_system(path)}"
    known = _read(cache) if cache is not None else {}
    entry = known.get(key)
    if entry is not None and 0 <= time.time() - entry["measured_at"] < _VALID_SECONDS:
        return float(entry["bytes_per_second"])
    rate = _native.measure_disk(path)
    if rate is not None and cache is not None:
        known[key] = {"bytes_per_second": rate, "measured_at": time.time()}
        with contextlib.suppress(OSError):  # it is measured again the next time
            _write(cache, known)
    return rate


def _file_system(path: str) -> str:
    try:
        return f"{os.statvfs(path).f_fsid:x}:{os.stat(path).st_dev:x}"
    except OSError as error:
        failed = IoError(
            f"'{path}' cannot be looked at: {error.strerror}; see that the checkpoint is there"
        )
        failed.errno, failed.filename = error.errno, path
        raise failed from error


def _cache_file() -> Path | None:
    """None where the user has no folder for it: no HOME, and no entry among the users."""
    for named in (os.environ.get("XDG_CACHE_HOME", ""), os.path.join("~", ".cache")):
        folder = os.path.expanduser(named)
        if os.path.isabs(folder):  # others would be made in the working directory
            return Path(folder) / "tensorstream" / "disk_rates.json"
    return None


def _read(cache: Path) -> dict[str, Any]:
    """What is known; nothing where the file is not there, or not ours."""
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError, RecursionError):  # the last of lists in lists without end
        return {}
    return (
        {key: entry for key, entry in known.items() if _is_entry(entry)}
        if isinstance(known, dict)
        else {}
    )


def _is_entry(entry: object) -> bool:
    numbers = ("bytes_per_second", "measured_at")
    return isinstance(entry, dict) and all(
        type(entry.get(name)) is float and entry[name] > 0 and math.isfinite(entry[name])
        for name in numbers
    )


def _write(cache: Path, known: dict[str, Any]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=cache.parent)
    try:
        with open(number, "w") as file:
            json.dump(known, file, indent=1)
        os.replace(name, cache)
    except OSError:
        os.unlink(name)
        raise
