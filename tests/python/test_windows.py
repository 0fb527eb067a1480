"""Weights that are used where the page cache has them: right, writable, and gone between uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, same_bytes, smallest_budget

WIDTH = 1100  # 4.8 MB of float32 a layer


class Layers(nn.Module):
    """Layers of one large and one small weight each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class CountingLinear(nn.Linear):
    """Writes to its own weight in each forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight[0, 0] += 1
        return super().forward(x)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The weights of `Layers` in one file."""
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file({name: p.detach() for name, p in Layers().named_parameters()}, path)
    return path


def mapped(checkpoint: Path) -> Layers:
    """The model as transformers loads it: its weights are mapped from the file."""
    with torch.device("meta"):
        model = Layers()
    model.load_state_dict(load_file(checkpoint), assign=True)
    return model.requires_grad_(False).eval()


def resident_bytes(checkpoint: Path) -> int:
    """Bytes of the file that this process has mapped and present."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split(" ")[0].count("-") == 1 and not line.split(" ")[0].endswith(":"):
            inside = line.endswith(str(checkpoint))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def may_write(checkpoint: Path) -> bool:
    """Whether the file can be opened for writing without a wait."""
    try:
        os.close(os.open(checkpoint, os.O_WRONLY | os.O_NONBLOCK))
    except BlockingIOError:
        return False
    return True


@pytest.fixture
def model(checkpoint: Path) -> Iterator[nn.Module]:
    """A model within the smallest budget that works, whose windows are always used."""
    whole = mapped(checkpoint)
    budget = smallest_budget(whole)
    offloaded = ts.offload(whole, device="cpu", ram_budget=budget, backend="mmap")
    del whole
    writable = []
    handle = offloaded.layers[0].register_forward_hook(
        lambda *_: writable.append(may_write(checkpoint)), prepend=True
    )
    offloaded(torch.zeros(1, WIDTH))
    handle.remove()
    if writable != [False]:
        pytest.skip("this file system gives no leases")
    yield offloaded


def test_outputs_are_bit_identical(model: nn.Module, checkpoint: Path) -> None:
    plain = mapped(checkpoint)
    for rows in (1, 7):
        x = torch.randn(rows, WIDTH)
        for _ in range(3):
            assert_same(model(x), plain(x))


def test_pages_and_the_lease_go_with_the_forward(model: nn.Module, checkpoint: Path) -> None:
    seen = []
    model.layers[2].register_forward_hook(
        lambda *_: seen.append(resident_bytes(checkpoint)), prepend=True
    )
    model(torch.zeros(1, WIDTH))
    assert WIDTH * WIDTH * 4 <= seen[0] < 2 * WIDTH * WIDTH * 4
    assert resident_bytes(checkpoint) == 0
    assert may_write(checkpoint)


def test_an_exception_in_a_forward_gives_the_lease_back(model: nn.Module, checkpoint: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("stopped")

    handle = model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        model(torch.zeros(1, WIDTH))
    handle.remove()
    model(torch.zeros(1, WIDTH))
    assert may_write(checkpoint)


def test_weights_written_between_uses_are_used(model: nn.Module, checkpoint: Path) -> None:
    plain = mapped(checkpoint)
    x = torch.randn(3, WIDTH)
    for changed in (model, plain):
        with torch.no_grad():
            changed.layers[1].weight.mul_(0.5)
            changed.layers[2].weight.data = torch.full((WIDTH, WIDTH), 1e-3)
    for _ in range(2):
        assert_same(model(x), plain(x))


def test_what_a_forward_writes_is_kept(checkpoint: Path) -> None:
    models = [mapped(checkpoint), mapped(checkpoint)]
    for each in models:
        for layer in each.layers:
            layer.__class__ = CountingLinear
    streamed = ts.offload(
        models[0], device="cpu", ram_budget=smallest_budget(models[1]), backend="mmap"
    )
    x = torch.randn(2, WIDTH)
    for _ in range(3):
        assert_same(streamed(x), models[1](x))
    for name, weight in models[1].state_dict().items():
        assert same_bytes(streamed.state_dict()[name], weight), name


def test_a_view_of_a_weight_that_is_returned_outlives_its_pages(
    model: nn.Module, checkpoint: Path
) -> None:
    model.layers[0].register_forward_hook(lambda layer, *_: layer.weight[3])
    out = model.layers[0](torch.zeros(1, WIDTH))
    assert same_bytes(out, mapped(checkpoint).layers[0].weight[3])


def test_a_write_to_a_view_that_was_kept_does_not_show(model: nn.Module, checkpoint: Path) -> None:
    kept = []
    handle = model.layers[1].register_forward_hook(
        lambda layer, *_: kept.append(layer.weight.data), prepend=True
    )
    x = torch.randn(2, WIDTH)
    with pytest.raises(ts.UnsupportedError):
        model(x)
    handle.remove()
    kept[0].zero_()
    kept.clear()
    plain = mapped(checkpoint)
    for _ in range(2):
        assert_same(model(x), plain(x))


def test_a_file_that_changed_is_an_error(model: nn.Module, checkpoint: Path) -> None:
    os.truncate(checkpoint, 1000)
    with pytest.raises(ts.IoError, match="changed since it was opened"):
        model(torch.zeros(1, WIDTH))


def test_restore_gives_plain_weights(model: nn.Module, checkpoint: Path) -> None:
    plain = mapped(checkpoint)
    ts.restore(model)
    x = torch.randn(2, WIDTH)
    assert_same(model(x), plain(x))
