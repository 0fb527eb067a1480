"""Forked children, as of data loaders, that let go of a model which their parent offloaded to a GPU."""

from __future__ import annotations

import gc
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
