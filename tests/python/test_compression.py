"""Weights at home as frames, on the fake GPU: models stay as they are, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, save, smallest_budget
from fake_gpu import use_fake_gpu
from model_shapes import SHAPES, make_stack

# The ring of such small models takes far less.
RING_BYTES = 16 << 20


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this module runs on it."""
    use_fake_gpu(monkeypatch, homes=True)


def offload_coded(model: nn.Module, compression: str | int, budget_bytes: int) -> nn.Module:
    """Offloads with what the ring takes beside `budget_bytes`.

    The plan of the fake GPU is a host's, without a ring: another budget may cut the model otherwise.
    """
    wanted = budget_bytes
    while True:
        try:
            return ts.offload(model, ram_budget=wanted, compression=compression)
        except ts.BudgetError as error:
            assert "ring" in str(error) and wanted < error.needed_bytes < budget_bytes + RING_BYTES
            wanted = error.needed_bytes


@pytest.mark.parametrize("compression", [1, 4, 7, "auto"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_models_are_bit_identical(
    name: str, compression: str | int, dtype: torch.dtype, tmp_path: Path
) -> None:
    shape = SHAPES[name]
    made: Any = shape.make(4).to(dtype)
    path = save(made, tmp_path / name)
    plain, model = (type(made).from_pretrained(path, dtype=dtype) for _ in range(2))
    budget = smallest_budget(model)
    with torch.no_grad():
        expected = plain(**shape.inputs())
    offload_coded(model, compression, budget)
    with torch.no_grad():
        for round_ in range(3):
            assert_same(model(**shape.inputs()), expected, f"forward {round_}")
    stats = ts.stats(model)
    assert stats.compression.level == (0 if compression == "auto" else compression)
    assert stats.compression.reason
    if compression != "auto":
        assert stats.compression.ratio < 0.9
        assert stats.streamed_bytes < stats.decoded_bytes
    for (key, value), other in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert_same(value, other, key)
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(**shape.inputs()), expected, "restored")


def test_what_is_written_is_kept() -> None:
    plain, model = make_stack(4), make_stack(4)
    offload_coded(model, 1, smallest_budget(model))
    x = torch.randn(2, 64)
    with torch.no_grad():
        for step in range(3):
            for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
                parameter.mul_(1.5 + step)
                other.mul_(1.5 + step)
            for name, parameter in model.named_parameters():
                assert_same(
                    parameter.detach().clone(), dict(plain.named_parameters())[name].data, name
                )
    del x
    ts.restore(model)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert_same(parameter.data, other.data)


@pytest.mark.parametrize("value", ["fast", "0", "10", 0, 10, True, 1.5, None])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ts.ConfigError, match="compression is"):
        ts.Config(compression=value)


def test_a_level_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = make_stack(4)
    with pytest.raises(ts.ConfigError, match="has no use on device cpu"):
        ts.offload(model, ram_budget=smallest_budget(model), device="cpu", compression=4)
    ts.offload(model, ram_budget=smallest_budget(model), device="cpu")
    assert ts.stats(model).compression == ts.report.Compression(
        0, 1.0, "weights are used where they are"
    )
