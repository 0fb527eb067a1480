"""Files that libraries read while a model is loaded, which must be of one state until it is bound to them."""

from __future__ import annotations

import contextlib
import logging

from tensorstream import _native
from tensorstream.hub import check_same_file

logger = logging.getLogger("tensorstream")


class SteadyFiles(contextlib.ExitStack):
    """Sees that nobody writes to some files from before a library reads them until check().

    What a library casts is its own copy: the engine never looks at the file that it came from. And what a
    library has mapped ends the process where somebody truncates it: until the context is left, whoever
    opens a file to write, or truncates it, waits, where the kernel gives leases.
    """

    def __init__(self) -> None:
        super().__init__()
        self._opener = _native.FileOpener(_native.FileBackend.PREAD)
        self._before: dict[str, _native.Reader] = {}

    def add(self, path: str) -> _native.Reader:
        """Begins with a file.

        Raises:
            IoError: Somebody has it open for writing.
        """
        held = _native.HeldFile(path)
        self.callback(held.let_go)
        if not held.is_leased:
            logger.info(
                "'%s' cannot be leased (it is another user's, or its file system has no leases): do not "
                "truncate it while the model is loaded",
                path,
            )
        reader = self._before[path] = self._opener.open(path)
        check_same_file(held.is_read_by(reader), reader)  # guard: held-before-it-is-looked-at
        return reader

    def add_checkpoint(self, checkpoint: _native.Checkpoint) -> None:
        """Begins with the files of a checkpoint, as they were when their headers were read.

        Raises:
            IoError: Somebody has one open for writing, or has written to it since.
        """
        for number, path in enumerate(checkpoint.files):
            reader = self.add(path)
            check_same_file(checkpoint.is_read_by(number, reader), reader)

    def check(self) -> None:
        """The model is bound.

        Raises:
            IoError: One was written to or replaced meanwhile, or is being written to, or is waited for by who
                wants to.
        """
        for path, reader in self._before.items():
            now = self._opener.open(path)
            check_same_file(reader.is_of_file_of(now), now)  # guard: loaded-of-one-state
