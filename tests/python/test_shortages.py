"""A process that gets no more memory, or may open no more files: one of our errors, which says what to do."""

from __future__ import annotations

import errno
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorstream as ts
from conftest import save
from model_shapes import SHAPES, make_stack
from tensorstream import _native
from tensorstream.model_class import OPTION_ADVICE, library_errors
from tensorstream.shortages import typed_shortages

# As safetensors, the system and torch's allocator were seen to raise them.
NO_MEMORY = [
    MemoryError("Cannot allocate memory (os error 12)"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("unable to mmap 10 bytes from file <a>: Cannot allocate memory (12)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
]
NO_FILES = [
    OSError(errno.EMFILE, "Too many open files", "a"),
    RuntimeError("unable to open file <a> in read-only mode: Too many open files (24)"),
]
WITHIN: list[Callable[[], Any]] = [
    lambda: typed_shortages("loading 'a'"),
    lambda: library_errors("a", OPTION_ADVICE),
]


@pytest.mark.parametrize("within", WITHIN)
def test_what_libraries_raise_without_memory_or_files(within: Callable[[], Any]) -> None:
    for error in NO_MEMORY:
        with (
            pytest.raises(ts.BudgetError, match=r"loading 'a'.*no more memory.*ulimit -v"),
            within(),
        ):
            raise error
    for error in NO_FILES:
        with pytest.raises(ts.IoError, match=r"loading 'a'.*ulimit -n") as raised, within():
            raise error
        assert raised.value.errno == errno.EMFILE


def test_other_errors_stay_as_they_are() -> None:
    for error in (ValueError("no"), OSError(errno.EIO, "no"), RuntimeError("no"), ts.IoError("no")):
        with pytest.raises(type(error)) as raised, typed_shortages("loading 'a'"):
            raise error
        assert raised.value is error


@pytest.fixture
def stops_opening() -> Iterator[Callable[[int], None]]:
    """Lets the process open so many more files, until the test ends."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[Any] = []

    def stop(more: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, limits[1]), limits[1]))
        try:
            while True:
                opened.append(open("/dev/null"))  # noqa: SIM115
        except OSError:
            for _ in range(more):
                opened.pop().close()

    yield stop
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for file in opened:
        file.close()


@pytest.mark.parametrize("more", range(6))
def test_a_process_that_may_open_no_more_files(
    more: int, tmp_path: Path, stops_opening: Callable[[int], None]
) -> None:
    folder = save(SHAPES["llama"].make(2), tmp_path, "1GB")
    ts.from_pretrained(folder, ram_budget="1GiB")  # whatever is loaded at the first use
    gc.collect()  # or what earlier tests left would be closed meanwhile
    stops_opening(more)
    try:
        ts.from_pretrained(folder, ram_budget="1GiB")
    except ts.IoError as error:
        assert error.errno == errno.EMFILE
        assert "ulimit -n" in str(error), error
    else:
        assert more > 4


_WITHOUT_MEMORY = """
import json, resource, sys
import tensorstream as ts
folder, more = sys.argv[1], int(sys.argv[2])
ts.from_pretrained(folder, ram_budget="1GiB")  # whatever is loaded at the first use
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + more,) * 2)
try:
    ts.from_pretrained(folder, ram_budget="1GiB")
    said = ("none", "")
except Exception as error:
    said = (type(error).__name__, str(error))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
print(json.dumps(said))
"""


@pytest.mark.parametrize("more", [0, 3 << 20])
def test_a_process_that_gets_no_more_memory(more: int, tmp_path: Path) -> None:
    folder = save(SHAPES["llama"].make(64), tmp_path, "1GB")
    soft = _WITHOUT_MEMORY.replace("(used + more,) * 2", "(used + more, resource.RLIM_INFINITY)")
    run = subprocess.run(
        [sys.executable, "-c", soft, str(folder), str(more)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    kind, said = json.loads(run.stdout.splitlines()[-1])
    assert kind in ("BudgetError", "UnsupportedError"), said  # of memory, or of a thread's stack
    assert "ulimit -v" in said


def test_memory_that_the_engine_does_not_get() -> None:
    frames = torch.zeros(64, dtype=torch.uint8).numpy()
    with pytest.raises(ts.TensorStreamError):
        _native.decode_tensor(frames, 1 << 62)


def test_offload_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(ts.api, "Orchestrator", no_memory)
    with pytest.raises(ts.BudgetError, match=r"offloading this Stack.*ulimit -v"):
        ts.offload(make_stack(2), ram_budget="1GiB")
