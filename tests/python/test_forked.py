"""Forked children, as of data loaders, that let go of a model which their parent offloaded to a GPU."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from children import in_child
from conftest import assert_same, offload_tightly
from fake_gpu import FakeDriver, FakeTorchMemory, fake_torch_memory, use_fake_gpu
from model_shapes import make_stack, row_ids
from tensorstream.orchestrator import orchestrator_of


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchMemory]:
    yield from fake_torch_memory(monkeypatch)


def used(model: Any) -> Any:
    """The same; its forward has run."""
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))
    return model


@pytest.mark.parametrize("kind", ["homes", "files", "files in RAM"])
def test_a_child_that_drops_a_model_calls_no_driver(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=kind == "homes", copies_from_files=kind == "files in RAM")
    options: dict[str, Any] = {}
    if kind != "homes":
        options["checkpoint"] = tmp_path / "model.safetensors"
        save_file(make_stack(4).state_dict(), options["checkpoint"])
    driver = FakeDriver()
    held = [used(offload_tightly(make_stack(4), **options))]

    def drop() -> None:
        before = driver.all_calls()
        alive = weakref.ref(held.pop())
        gc.collect()
        assert alive() is None
        assert driver.all_calls() == before

    assert in_child(drop) == 0
    used(held[0])


def test_a_child_that_drops_a_model_leaves_torchs_allocator_alone(memory: FakeTorchMemory) -> None:
    driver = FakeDriver()
    held = [used(offload_tightly(make_stack(4)))]

    def drop() -> None:
        before = (driver.all_calls(), memory.gone.copy(), memory.releases)
        alive = weakref.ref(held.pop())
        gc.collect()
        assert alive() is None
        assert (driver.all_calls(), memory.gone, memory.releases) == before

    assert in_child(drop) == 0
    used(held[0])


def test_a_child_that_a_handler_forks_goes_on_where_a_forward_waits() -> None:
    model: Any = offload_tightly(make_stack(4))
    gate, parent = orchestrator_of(model)._gate, os.getpid()
    ended: list[int] = []

    def fork(*_: Any) -> None:
        child = os.fork()
        if child == 0:
            return
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        gate._is_closed = False

    usual = signal.signal(signal.SIGALRM, fork)
    gate._is_closed = True
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        gate._wait_until_open(threading.get_ident())
        assert gate._waiting == []
    finally:
        signal.signal(signal.SIGALRM, usual)
        if os.getpid() != parent:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    assert ended == [0]
    used(model)
