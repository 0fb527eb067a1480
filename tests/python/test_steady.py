"""Checkpoints that somebody writes to while a model is loaded of them: refused, also where loading casts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorstream as ts
from conftest import save
from model_shapes import SHAPES
from tensorstream import steady


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
def test_a_file_that_is_written_while_it_is_cast_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = small_llama(tmp_path)
    other = {name: value + 1 for name, value in load_file(path).items()}

    def rewrite() -> None:
        content = path.with_name("other")
        save_file(other, content, metadata={"format": "pt"})
        with path.open("r+b") as file:
            file.write(content.read_bytes())
        content.unlink()

    original = steady.SteadyFiles.add_checkpoint

    def add_checkpoint(self: steady.SteadyFiles, checkpoint: Any) -> None:
        if when == "before":
            rewrite()
        original(self, checkpoint)
        if when == "after":
            rewrite()

    monkeypatch.setattr(steady.SteadyFiles, "add_checkpoint", add_checkpoint)
    with pytest.raises(ts.IoError, match="changed") as raised:
        ts.from_pretrained(tmp_path, dtype=torch.float64, ram_budget="1GiB")
    assert raised.value.filename == str(path)
    monkeypatch.undo()
    model = ts.from_pretrained(tmp_path, dtype=torch.float64, ram_budget="1GiB")
    name = next(iter(other))
    assert torch.equal(model.state_dict()[name], other[name].double())


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_llama(tmp_path)

    def refused(folder: str) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(ts.IoError, match="cannot be read: Permission denied") as raised:
        ts.from_pretrained(tmp_path, ram_budget="1GiB")
    assert (raised.value.errno, raised.value.filename) == (13, str(tmp_path))
