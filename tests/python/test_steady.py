"""Checkpoints that somebody writes to while a model is loaded of them: refused, also where loading casts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorstream as ts
from conftest import save
from model_shapes import SHAPES
from tensorstream import _native, steady


def small_llama(folder: Path) -> Path:
    """A folder whose model is in one file; which."""
    save(SHAPES["llama"].make(2), folder, "1GB")
    return folder / "model.safetensors"


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_file_that_is_open_for_writing_is_refused(tmp_path: Path, dtype: str | None) -> None:
    path = small_llama(tmp_path)
    options = {} if dtype is None else {"dtype": dtype}
    with path.open("r+b"), pytest.raises(ts.IoError, match="open for writing"):
        ts.from_pretrained(tmp_path, ram_budget="1GiB", **options)
    ts.from_pretrained(tmp_path, ram_budget="1GiB", **options)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_is_written_or_replaced_while_it_is_cast_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = small_llama(tmp_path)
    other = {name: value + 1 for name, value in load_file(path).items()}

    def write_another() -> Path:
        content = path.with_name("other")
        save_file(other, content, metadata={"format": "pt"})
        return content

    original = steady.SteadyFiles.add_checkpoint

    def add_checkpoint(self: steady.SteadyFiles, checkpoint: Any) -> None:
        if when == "before":
            content = write_another()
            with path.open("r+b") as file:
                file.write(content.read_bytes())
            content.unlink()
        original(self, checkpoint)
        if when == "after":
            write_another().replace(path)

    monkeypatch.setattr(steady.SteadyFiles, "add_checkpoint", add_checkpoint)
    with pytest.raises(ts.IoError, match="changed") as raised:
        ts.from_pretrained(tmp_path, dtype=torch.float64, ram_budget="1GiB")
    assert raised.value.filename == str(path)
    monkeypatch.undo()
    model = ts.from_pretrained(tmp_path, dtype=torch.float64, ram_budget="1GiB")
    name = next(iter(other))
    assert torch.equal(model.state_dict()[name], other[name].double())


def test_a_file_that_is_written_before_it_is_leased_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    hold = _native.HeldFile

    def held(name: str) -> Any:
        result = hold(name)
        result.let_go()  # as where there are no leases
        path.write_bytes(b"another")
        return result

    monkeypatch.setattr(_native, "HeldFile", held)
    with steady.SteadyFiles() as files, pytest.raises(ts.IoError, match="changed"):
        files.add(str(path))


def test_writers_wait_while_a_file_is_held_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    with pytest.raises(KeyError), steady.SteadyFiles() as files:
        files.add(str(path))
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        raise KeyError  # whatever ends the load
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


_TRUNCATED = """
import os, sys, threading
from pathlib import Path
import tensorstream as ts
from transformers import LlamaForCausalLM

folder = Path(sys.argv[1])
path = folder / "model.safetensors"
truncated = threading.Event()


def truncate():
    os.truncate(path, 4096)
    truncated.set()


class Slow(LlamaForCausalLM):
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model, info = LlamaForCausalLM.from_pretrained(*args, **kwargs)
        threading.Thread(target=truncate).start()
        truncated.wait(1)
        sum(parameter.sum() for parameter in model.parameters())  # as what casts does
        return model, info


try:
    ts.from_pretrained(folder, model_class=Slow, ram_budget="1GiB")
except ts.IoError as error:
    print(error)
truncated.wait(10)
print(path.stat().st_size)
"""


def test_a_file_that_is_truncated_while_it_is_loaded_does_not_end_the_process(
    tmp_path: Path,
) -> None:
    small_llama(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", _TRUNCATED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, (run.returncode, run.stderr)
    assert "open for writing" in run.stdout
    assert run.stdout.split()[-1] == "4096"  # it went on then


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_llama(tmp_path)

    def refused(folder: str) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(ts.IoError, match="cannot be read: Permission denied") as raised:
        ts.from_pretrained(tmp_path, ram_budget="1GiB")
    assert (raised.value.errno, raised.value.filename) == (13, str(tmp_path))
