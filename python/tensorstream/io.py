"""Packed checkpoints: safetensors in which weights are coded without loss."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from tensorstream import _native
from tensorstream.api import PathLike
from tensorstream.config import whole_number
from tensorstream.diffusion import is_pipeline
from tensorstream.exceptions import ConfigError
from tensorstream.hub import path_text, weights_in_config
from tensorstream.report import CheckpointReport, make_checkpoint_report

_HIGHEST_LEVEL = 9
_MOST_THREADS = 65536
# What sys.stderr raises where there is none, it is closed, it went away, or is another's object.
_NO_TERMINAL = (AttributeError, OSError, ValueError)
Progress = Callable[[int, int], None]


def pack(
    source: PathLike,
    target: PathLike,
    *,
    level: int = 4,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CheckpointReport:
    """Packs a checkpoint, or all of a pipeline: bf16 takes two thirds of its bytes, no bit is lost.

    The new folder holds safetensors files with an index, and every other file of the source as it is,
    but for hidden ones. It appears when it is whole; where a run is killed, the same call goes on with the
    files that were finished. Plain loaders find no model in it; `unpack` gives the source's files back.

    Args:
        source: A folder with safetensors files, one file, or an index of several; or a pipeline of diffusers
            (a folder with a model_index.json), whose models are packed each in its folder.
        target: The folder to make. It does not exist, or is empty: its owner and rights stay then.
        level: 1 to 9: from fastest to smallest. 0 codes nothing and only adds checksums.
        threads: How many work; None takes one a processor.
        progress: Called with the bytes done and all bytes; None shows a line on a terminal.

    Returns:
        What was packed, and how small it became.

    Raises:
        ConfigError: The level is none, the source holds no model, its config names other weights than the
            usual, or the target is not empty, a mount point or the working directory.
        FormatError: A file of the source breaks its format.
        IoError: A file cannot be read or written, the disk may be too small (nothing is written then),
            or the source changed meanwhile or is open for writing, or the hidden folder beside the target,
            in which it is made, was removed.
        UnsupportedError: The source is packed already.
    """
    number = whole_number(level)
    if number is None or not 0 <= number <= _HIGHEST_LEVEL:
        raise ConfigError(f"level is {level!r}; give a whole number from 0 to {_HIGHEST_LEVEL}")
    path = path_text(source)
    for folder in (path, *_folders_in_pipeline(path)):
        named = weights_in_config(folder)
        if named is not None:  # guard: pack-named-weights
            raise ConfigError(
                f"the config in '{folder}' has {named!r} for its weights (transformers_weights), which a "
                "packed folder cannot have: give that file the usual name, model.safetensors, and remove "
                "that key"
            )
    summary = _native.pack_checkpoint(
        path, path_text(target), number, _threads(threads), _shown(progress, "packing")
    )
    return make_checkpoint_report(summary)


def _folders_in_pipeline(folder: str) -> list[str]:
    if not is_pipeline(folder):
        return []
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except OSError:  # which the engine says
        return []


def unpack(
    source: PathLike,
    target: PathLike,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CheckpointReport:
    """Makes a folder with the files that were packed, each byte for byte what it was.

    Args:
        source: A packed folder, of one checkpoint or a pipeline, or one packed file.
        target: The folder to make. It does not exist, or is empty: its owner and rights stay then.
        threads: How many work; None takes one a processor.
        progress: Called with the bytes done and all bytes; None shows a line on a terminal.

    Returns:
        What was packed.

    Raises:
        ConfigError: The source is not packed, or the target is not empty, a mount point or the working
            directory.
        FormatError: A packed file is damaged; the message names the file, and the tensor and chunk
            where the damage is in one.
        IoError: A file cannot be read or written, the disk is too small, or the hidden folder beside the
            target, in which it is made, was removed.
    """
    summary = _native.unpack_checkpoint(
        path_text(source), path_text(target), _threads(threads), _shown(progress, "unpacking")
    )
    return make_checkpoint_report(summary)


def verify(
    path: PathLike, *, threads: int | None = None, progress: Progress | None = None
) -> CheckpointReport:
    """Checks a checkpoint: every byte of packed files, headers and index of others.

    Args:
        path: A folder, a safetensors file or an index.
        threads: How many work; None takes one a processor.
        progress: Called with the bytes done and all bytes; None shows a line on a terminal.

    Returns:
        What the checkpoint is made of.

    Raises:
        ConfigError: The folder at `path` holds no model, or several.
        FormatError: A file is damaged or breaks its format; the message names the file, and the tensor
            and chunk where the damage is in one.
        IoError: There is nothing at `path`, or a file cannot be read.
    """
    summary = _native.verify_checkpoint(
        path_text(path), _threads(threads), _shown(progress, "verifying")
    )
    return make_checkpoint_report(summary)


def _threads(threads: int | None) -> int:
    """The engine's number: 0 is one a processor."""
    if threads is None:
        return 0
    number = whole_number(threads)
    if number is None or not 1 <= number <= _MOST_THREADS:
        raise ConfigError(
            f"threads is {threads!r}; give a whole number from 1 to {_MOST_THREADS}, or None"
        )
    return number


def _shown(progress: Progress | None, what: str) -> Progress:
    if progress is not None:
        if not callable(progress):
            raise ConfigError(f"progress is {progress!r}; give a function of two numbers, or None")
        return progress
    return _Line(what) if _is_terminal() else _nothing


def _is_terminal() -> bool:
    with contextlib.suppress(*_NO_TERMINAL):
        return sys.stderr.isatty()
    return False


def _nothing(done_bytes: int, total_bytes: int) -> None:
    """Is called all the same: it is where Ctrl-C is seen."""


class _Line:
    """One line on the terminal, written again at each percent."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._written = ""
        self._gone = False

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        try:
            self._show(done_bytes, total_bytes)
        except _NO_TERMINAL:
            self._gone = True  # the work goes on, whatever becomes of what shows it

    def _show(self, done_bytes: int, total_bytes: int) -> None:
        if self._gone:
            return
        share = done_bytes / total_bytes if total_bytes else 1.0
        text = f"\r{self._what} {_native.format_size(total_bytes)}: {share:4.0%}"
        if text != self._written:
            sys.stderr.write(text)
        self._written = text
        if done_bytes == total_bytes:
            sys.stderr.write("\n")
        sys.stderr.flush()
