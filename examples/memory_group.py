"""A memory control group: a ceiling that the kernel holds a process to, page cache included."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A control group of version 1 or 2 below the one that this process is in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        unified = (folder / "memory.max").exists()
        self._limit = folder / ("memory.max" if unified else "memory.limit_in_bytes")
        self._peak = folder / ("memory.peak" if unified else "memory.max_usage_in_bytes")
        self._swap = folder / ("memory.swap.max" if unified else "memory.memsw.limit_in_bytes")
        self._unified = unified

    def enter(self) -> None:
        """Moves this process into the group. What it holds already stays charged where it was."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def limit(self, size_bytes: int) -> None:
        """Holds the group to `size_bytes` from now on, and out of swap where the kernel counts it."""
        self._limit.write_text(str(size_bytes))
        if self._swap.exists():
            # Version 1 counts memory and swap together.
            self._swap.write_text("0" if self._unified else str(size_bytes))

    def peak_bytes(self) -> int:
        """The most that was ever charged to the group; 0 where the kernel does not keep it."""
        return int(self._peak.read_text()) if self._peak.exists() else 0


@contextlib.contextmanager
def new_memory_group(name: str) -> Iterator[Path | None]:
    """The folder of a new, empty group; None where this machine lets us make none."""
    parent = _parent_folder()
    folder = None if parent is None else parent / f"{name}-{os.getpid()}"
    if folder is not None:
        try:
            folder.mkdir()
        except OSError:
            folder = None
    try:
        yield folder
    finally:
        if folder is not None:
            folder.rmdir()


def _parent_folder() -> Path | None:
    """The nearest group around this process in which groups with a memory limit can be made."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        groups[controllers] = group.lstrip("/")
    if "memory" in groups:
        # A container may see its own group as the mount, and a name from outside.
        folder = _MOUNT / "memory" / groups["memory"]
        return folder if folder.is_dir() else _MOUNT / "memory"
    return _unified_parent(_MOUNT / groups[""]) if "" in groups else None


def _unified_parent(folder: Path) -> Path | None:
    """Version 2: a group with processes hands out no controllers, so we may have to go up.

    Not past a group that has a limit itself, which our processes would escape.
    """
    while folder.is_relative_to(_MOUNT):
        handed_out = folder / "cgroup.subtree_control"
        if handed_out.is_file() and "memory" in handed_out.read_text().split():
            return folder
        limit = folder / "memory.max"
        if limit.is_file() and limit.read_text().strip() != "max":
            return None
        folder = folder.parent
    return None
