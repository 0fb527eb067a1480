"""Files of a checkpoint that somebody replaces, or may write to, while a model is made of them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorstream as ts
from conftest import assert_same, offload_tightly, smallest_budget
from model_shapes import make_stack, row_ids
from tensorstream import _native, packed, sources


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(make_stack(4).state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def replacing(checkpoint: Path, step: Callable[..., Any]) -> Callable[..., Any]:
    """`step`, after which another file of the same tensors is there."""

    def replaced(*arguments: Any, **named: Any) -> Any:
        result = step(*arguments, **named)
        other = checkpoint.with_name("other")
        save_file(make_stack(4, seed=99).state_dict(), other)
        other.replace(checkpoint)
        return result

    return replaced


def test_one_that_is_replaced_once_its_header_was_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "open_checkpoint", replacing(checkpoint, sources.open_checkpoint))
    model = make_stack(4)
    with pytest.raises(ts.IoError, match="changed while it was opened") as raised:
        offload_tightly(model, checkpoint=checkpoint)
    assert raised.value.filename == str(checkpoint)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))


def test_one_that_gets_a_link_meanwhile_is_the_same(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a backup by hard links makes one."""
    open_it = sources.open_checkpoint

    def linked(*arguments: Any) -> Any:
        result = open_it(*arguments)
        os.link(checkpoint, tmp_path / "backup")
        return result

    monkeypatch.setattr(sources, "open_checkpoint", linked)
    model = offload_tightly(make_stack(4), checkpoint=checkpoint)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))


def test_one_that_is_replaced_once_it_was_found_in_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_stack(4)
    model.load_state_dict(load_file(checkpoint), assign=True)
    find = replacing(checkpoint, _native.find_file_backing)
    monkeypatch.setattr(_native, "find_file_backing", find)
    with pytest.raises(ts.IoError, match="changed while it was opened"):
        ts.offload(model, ram_budget="1GiB")


def test_a_packed_one_that_is_replaced_once_its_header_was_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    ts.pack(checkpoint, tmp_path / "one")
    save_file(make_stack(4, seed=99).state_dict(), tmp_path / "model.safetensors")
    ts.pack(checkpoint, tmp_path / "two")
    opened = _native.Checkpoint.open(str(tmp_path / "one"))
    os.replace(_native.Checkpoint.open(str(tmp_path / "two")).files[0], opened.files[0])
    with pytest.raises(ts.IoError, match="changed while it was opened"):
        packed.stored_tensors(opened)


@pytest.mark.parametrize("how", ["file", "mapping"])
@pytest.mark.parametrize("kind", ["plain", "packed", "in memory"])
def test_one_that_somebody_may_write_to_is_refused(
    kind: str, how: str, checkpoint: Path, tmp_path: Path
) -> None:
    """What is in the midst of a write shows in no time of the file."""
    model, path = make_stack(4), checkpoint
    if kind == "packed":
        ts.pack(checkpoint, tmp_path / "packed")
        path = Path(_native.Checkpoint.open(str(tmp_path / "packed")).files[0])
    options: dict[str, Any] = {"checkpoint": path}
    if kind == "in memory":
        model.load_state_dict(load_file(checkpoint), assign=True)
        options = {}
    budget = smallest_budget(make_stack(4)) * 2
    writer: Any = path.open("r+b") if how == "file" else np.memmap(path, mode="r+")
    with pytest.raises(ts.IoError, match="open for writing") as raised:
        ts.offload(model, ram_budget=budget, **options)
    assert raised.value.filename == str(path)
    if how == "file":
        writer.close()
    else:
        writer._mmap.close()
    ts.offload(model, ram_budget=budget, **options)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))


_WITHOUT_THREADS = """
import resource, sys
import torch
import tensorstream as ts
from model_shapes import make_stack
model = make_stack(4)
ts.plan(model, ram_budget=sys.argv[2])  # whatever is loaded at the first use
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)  # too little for a thread's stack
try:
    ts.offload(model, ram_budget=sys.argv[2], checkpoint=sys.argv[1], backend="mmap")
    print("none was wanted")
except ts.UnsupportedError as error:
    print(error)
"""


def _large_stacks() -> None:
    resource.setrlimit(
        resource.RLIMIT_STACK, (64 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1])
    )


def test_a_process_that_gets_no_threads_is_told_of_the_limit(checkpoint: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            _WITHOUT_THREADS,
            str(checkpoint),
            str(smallest_budget(make_stack(4)) * 2),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        preexec_fn=_large_stacks,  # of threads, too
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "ulimit -u" in run.stdout
