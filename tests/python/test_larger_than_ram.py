"""A checkpoint larger than the memory that the process may take runs on the CPU, bit for bit."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limited_run import EXAMPLES, LAYER_BYTES

PROGRAM = Path(__file__).with_name("limited_run.py")
# Above what a process takes that has imported torch and done nothing, by some 200 MB.
LIMIT_BYTES = 448 << 20
BUDGET_BYTES = 3 * LAYER_BYTES
LAYERS = 3 * LIMIT_BYTES // LAYER_BYTES + 1


@pytest.fixture
def memory_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path | None]:
    """The folder of a new memory control group; None where this machine lets us make none."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with importlib.import_module("memory_group").new_memory_group("larger-than-ram") as folder:
        yield folder


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "model.safetensors"
    run_program(path, "--write")
    assert path.stat().st_size > 3 * LIMIT_BYTES
    yield path
    path.unlink()  # folders of tests are kept


def start_program(checkpoint: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), str(checkpoint), "--layers", str(LAYERS), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def run_program(checkpoint: Path, *arguments: str) -> str:
    done = start_program(checkpoint, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_cold(limits: list[str], checkpoint: Path, backend: str) -> Any:
    """A run from a cold page cache: what others have there is charged to them."""
    importlib.import_module("measured_run").drop_from_page_cache(checkpoint.parent)
    return run_within(limits, checkpoint, backend)


def run_within(limits: list[str], checkpoint: Path, backend: str) -> Any:
    arguments = ["--backend", backend, "--budget", str(BUDGET_BYTES), *limits]
    return json.loads(run_program(checkpoint, *arguments))


def test_a_checkpoint_of_three_times_the_limit(memory_group: Path | None, checkpoint: Path) -> None:
    expected = json.loads(run_program(checkpoint))["digest"]
    limits = ["--limit", str(LIMIT_BYTES)]
    if memory_group is not None:
        limits += ["--group", str(memory_group)]
    assert start_program(checkpoint, *limits).returncode != 0, "the plain model fits: no limit"
    for backend in ("auto", "mmap"):
        found = run_cold(limits, checkpoint, backend)
        assert found["digest"] == expected, backend
        assert found["peak_held"] <= BUDGET_BYTES
        assert found["from_disk"] >= 2 * (LAYERS * LAYER_BYTES - BUDGET_BYTES), backend
        assert found["group_peak"] <= LIMIT_BYTES
        if memory_group is not None:  # whose limit is all the RAM that there is
            chosen = {"auto": "direct (auto: each pass reads ", "mmap": "mmap (asked for)"}
            assert found["backend"].startswith(chosen[backend])
    if memory_group is not None:
        importlib.import_module("measured_run").drop_from_page_cache(checkpoint.parent)
        checkpoint.read_bytes()  # charged to this process, which is in another group
        found = run_within(limits, checkpoint, "auto")
        assert found["digest"] == expected
        assert found["group_peak"] <= LIMIT_BYTES
        assert found["backend"].startswith("cached (auto: each pass reads "), found["backend"]
    if memory_group is None:
        pytest.skip(
            "no memory control group can be made here: the run was right within RLIMIT_DATA, which "
            "counts private memory alone and no page cache"
        )
