"""pack and unpack where something goes wrong beside them: writers, cleaners, terminals, mounts."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tensorstream as ts

Progress = Callable[[int, int], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    made = torch.Generator().manual_seed(3)
    weights = {
        f"w{number}": torch.randn(1200, 1000, generator=made).bfloat16() for number in range(4)
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def half_way(act: Callable[[], object]) -> Progress:
    """Acts once, when half is done."""
    acted: list[object] = []

    def progress(done: int, total: int) -> None:
        if not acted and done > total / 3:
            acted.append(act())

    return progress


def test_a_source_that_is_mapped_for_writing_is_not_packed(source: Path, tmp_path: Path) -> None:
    mapped = np.memmap(source / "model.safetensors", mode="r+", dtype=np.uint8)
    mapped[-1] ^= 1  # its pages are dirty: what is written from now on changes no time of the file
    with pytest.raises(ts.IoError, match=r"model\.safetensors' is open for writing"):
        ts.pack(source, tmp_path / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    del mapped
    ts.pack(source, tmp_path / "packed")


@pytest.mark.parametrize("work", [ts.pack, ts.unpack])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_staging_folder_that_goes_is_an_error(
    work: Callable[..., Any], renamed: bool, source: Path, tmp_path: Path
) -> None:
    start = source
    if work is ts.unpack:
        start = tmp_path / "packed"
        ts.pack(source, start)
    staged = tmp_path / ".target.tensorstream-partial"

    def clean_up() -> None:
        if renamed:
            staged.rename(tmp_path / "moved")
        else:
            shutil.rmtree(staged)

    with pytest.raises(ts.IoError, match="was removed or renamed while the target was written"):
        work(start, tmp_path / "target", progress=half_way(clean_up))
    assert not (tmp_path / "target").exists()
    assert not staged.exists()
    work(start, tmp_path / "target")


def test_another_run_that_began_after_that_is_left_alone(source: Path, tmp_path: Path) -> None:
    staged = tmp_path / ".target.tensorstream-partial"

    def exchange() -> None:
        staged.rename(tmp_path / "moved")
        staged.mkdir()
        (staged / "packed-model.safetensors").write_text("another's")

    with pytest.raises(ts.IoError, match="was removed or renamed"):
        ts.pack(source, tmp_path / "target", progress=half_way(exchange))
    assert [path.read_text() for path in staged.iterdir()] == ["another's"]
    assert not (tmp_path / "target").exists()


class Terminal:
    """A terminal that goes away: at first it is there."""

    def __init__(self, fails: str, error: Exception, after: int = 3) -> None:
        self._fails, self._error, self._left = fails, error, after

    def _called(self, name: str) -> None:
        if name != self._fails:
            return
        self._left -= 1
        if self._left < 0:
            raise self._error

    def isatty(self) -> bool:
        self._called("isatty")
        return True

    def write(self, text: str) -> None:
        self._called("write")

    def flush(self) -> None:
        self._called("flush")


@pytest.mark.parametrize(
    "terminal",
    [
        Terminal("write", OSError(5, "Input/output error")),
        Terminal("flush", OSError(5, "Input/output error")),
        Terminal("write", ValueError("I/O operation on closed file")),
        Terminal("isatty", ValueError("I/O operation on closed file"), after=0),
        object(),
        None,
    ],
)
def test_a_terminal_that_goes_away_does_not_end_the_work(
    terminal: object, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    packed = ts.pack(source, tmp_path / "packed", threads=1)
    monkeypatch.undo()
    assert ts.verify(tmp_path / "packed") == packed


def test_a_terminal_may_be_gone_between_two_lines(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal("", OSError())
    monkeypatch.setattr(sys, "stderr", terminal)
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        sys.stderr = None

    terminal.write = write  # type: ignore[method-assign]
    ts.pack(source, tmp_path / "packed", threads=1)
    assert len(written) == 1


def test_the_working_directory_is_no_target(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for target in (".", here):
        with pytest.raises(ts.ConfigError, match="is the working directory"):
            ts.pack(source, target)
    ts.pack(source, "in it")
    with pytest.raises(ts.ConfigError, match="is not empty"):
        ts.unpack("in it", ".")


def test_an_empty_target_gives_its_rights(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o700)
    ts.pack(source, target)
    status = target.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    if os.geteuid() == 0:
        other = tmp_path / "other"
        other.mkdir()
        os.chown(other, 65534, 65534)
        other.chmod(0o2750)
        ts.unpack(target, other)
        status = other.stat()
        assert (status.st_uid, status.st_gid) == (65534, 65534)
        assert stat.S_IMODE(status.st_mode) == 0o2750
