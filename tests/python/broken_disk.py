"""A file system in user space whose reads fail where a test says so.

`python broken_disk.py FOLDER MOUNT BROKEN` shows the files of FOLDER, read-only. While there is a file BROKEN
with two numbers in it, the first and the end of some bytes, a read of any of these bytes of any file is EIO,
as that of a disk's bad sector is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mfusepy


class BrokenDisk(mfusepy.Operations):  # type: ignore[misc]
    """What the kernel asks of it."""

    use_ns = True

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        try:
            found = os.stat(self.folder / path.lstrip("/"))
        except OSError as error:
            raise mfusepy.FuseOSError(error.errno) from error
        times = {
            name: getattr(found, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")
        }
        return times | {
            name: getattr(found, name)
            for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino")
        }

    def readdir(self, path: str, fh: int) -> Iterable[str]:
        return [".", "..", *os.listdir(self.folder / path.lstrip("/"))]

    def open(self, path: str, flags: int) -> int:
        return os.open(self.folder / path.lstrip("/"), os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        begin, end = self.broken()
        if offset < end and begin < offset + size:
            raise mfusepy.FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)

    def broken(self) -> tuple[int, int]:
        """The bytes that cannot be read: the first, and the end."""
        try:
            begin, end = map(int, self.marker.read_text().split())
        except FileNotFoundError:  # also one that went just now
            return 0, 0
        return begin, end

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


if __name__ == "__main__":
    folder, mount, marker = sys.argv[1:]
    mfusepy.FUSE(BrokenDisk(Path(folder), Path(marker)), mount, foreground=True, ro=True)
