"""Torch's default device is for what the user makes: what is read for a model lies in RAM all the same."""

from __future__ import annotations

import copy
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly


class Tabled(nn.Module):
    """Layers, and a buffer that is worth coding."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(256)
        self.layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)))
        self.register_buffer("table", torch.randn(512, 1024))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.norm(x)) + self.table[0, :256]


X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plain() -> Tabled:
    torch.manual_seed(3)
    return Tabled().eval().bfloat16()


def _shifted(path: Path, by: int) -> None:
    """Moves what a file holds, so that no tensor begins where a cache line does."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    path.write_bytes(struct.pack("<Q", size + by) + raw[8 : 8 + size] + b" " * by + raw[8 + size :])


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkpoint_read_with_the_meta_device(
    plain: Tabled, packed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    safetensors.torch.save_file(plain.state_dict(), path / "model.safetensors")
    if packed:
        ts.pack(path, tmp_path / "packed", level=1)
        path = tmp_path / "packed"
    with torch.device("meta"):
        model = Tabled().eval().bfloat16()
        offload_tightly(model, checkpoint=path)
    with torch.no_grad():
        assert_same(model(X.bfloat16()), plain(X.bfloat16()))


@pytest.mark.parametrize("share", [0.5, 4])
def test_a_mapped_model_and_its_plain_weights_again(
    plain: Tabled, share: float, tmp_path: Path
) -> None:
    plain.float()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(plain.state_dict(), path)
    _shifted(path, 8)
    model = copy.deepcopy(plain)
    model.load_state_dict(safetensors.torch.load_file(path), assign=True)
    budget = int(share * ts.estimate_memory(model).everything_fits_bytes)
    with torch.device("meta"):
        ts.offload(model, device="cpu", ram_budget=max(budget, 3 << 20))
        copied = copy.deepcopy(model)
        ts.restore(model)
    with torch.no_grad():
        for each in (model, copied):
            assert_same(each(X), plain(X))
