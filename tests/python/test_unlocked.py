"""Calls of the extension that can wait for a disk: other threads run meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tensorstream as ts
from model_shapes import make_stack
from tensorstream import _native

VALUE = torch.zeros(4096)


@pytest.fixture
def nothing_is_taken_away() -> Iterator[None]:
    """A thread that runs Python lets another run only where it waits for something."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", ["find_file_backing", "open_packed_reader"])
def test_other_threads_run_meanwhile(
    name: str, tmp_path: Path, nothing_is_taken_away: None
) -> None:
    save_file(make_stack(2).state_dict(), tmp_path / "model.safetensors")
    ts.pack(tmp_path / "model.safetensors", tmp_path / "packed")
    packed = _native.Checkpoint.open(str(tmp_path / "packed")).files[0]
    calls: dict[str, Callable[[], Any]] = {
        "find_file_backing": lambda: _native.find_file_backing(VALUE.data_ptr(), VALUE.nbytes),
        "open_packed_reader": lambda: _native.open_packed_reader(packed),
    }
    call = calls[name]
    begin, ran = threading.Event(), []

    def other() -> None:
        begin.wait()
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    time.sleep(0.05)  # until it waits
    begin.set()
    ran_before = list(ran)
    for _ in range(5000):
        call()
        if ran:
            break
    ran_within = list(ran)
    thread.join()
    assert not ran_before
    assert ran_within
