"""What the tests of the package share: models made once a process, comparisons as bytes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import nn

import tensorstream as ts

# Where a GPU is required, tests that need none are not run, and what they need may be missing.
if os.environ.get("TENSORSTREAM_REQUIRE_GPU") == "1" and not importlib.util.find_spec("diffusers"):
    collect_ignore = ["test_diffusers.py"]

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a GPU is skipped without one, or fails where one is required."""
    if item.get_closest_marker("needs_gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("TENSORSTREAM_REQUIRE_GPU") == "1":
        pytest.fail("a GPU is required, and torch sees none")
    pytest.skip("torch sees no GPU")


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor in a model's output: nested containers and key-value caches included."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    if isinstance(value, transformers.EncoderDecoderCache):
        return tensors_of([value.self_attention_cache, value.cross_attention_cache])
    if isinstance(value, transformers.Cache):
        return tensors_of([(layer.keys, layer.values) for layer in value.layers])
    return []


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal as bytes: NaN equals itself, -0 does not equal 0."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bytes(_raw(left)) == bytes(_raw(right))


def _raw(tensor: torch.Tensor) -> Any:
    with torch.no_grad():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return flat.clone().view(torch.uint8).numpy()


def assert_same(actual: Any, expected: Any, what: str = "") -> None:
    """Asserts that two outputs hold the same tensors, bit for bit."""
    left, right = tensors_of(actual), tensors_of(expected)
    assert len(left) == len(right) > 0, what
    for position, (one, other) in enumerate(zip(left, right, strict=True)):
        assert same_bytes(one, other), f"{what}: tensor {position} of {len(left)} differs"


def hooks_of(model: nn.Module) -> list[Any]:
    """The library's hooks on the modules of a model (transformers has some of its own)."""
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
        if type(hook).__module__.startswith("tensorstream")
    ]


def placements(model_or_path: Any, budget_bytes: int, **options: Any) -> list[str]:
    """Where a plan puts the groups."""
    planned = ts.plan(model_or_path, ram_budget=budget_bytes, **options)
    return [group.placement for group in planned.groups]


def smallest_budget(model_or_path: Any) -> int:
    return ts.estimate_memory(model_or_path).smallest_budget_bytes


def offload_tightly(model: nn.Module, **options: Any) -> nn.Module:
    """Offloads with the smallest budget: everything that can be streamed is."""
    offloaded = ts.offload(model, ram_budget=smallest_budget(model), **options)
    assert hooks_of(offloaded), "nothing is streamed: the test would show nothing"
    return offloaded


def save(model: Any, folder: Path, shard: str = "1MB") -> Path:
    """Saves a transformers model in several files."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture(autouse=True)
def default_modes() -> Iterator[None]:
    """Each test starts with torch's default modes and leaves them."""
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    yield
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
