"""What is not streamed: buffers, and parameters that stay as they are, from checkpoints and out of files."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, same_bytes, smallest_budget
from fake_gpu import use_fake_gpu
from tensorstream import _native, weight

X = torch.linspace(-2, 2, 4 * 256).reshape(4, 256)


class Normed(nn.Module):
    """Linear layers, each with a BatchNorm whose statistics are buffers; one buffer that is not saved."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        pairs = [(nn.Linear(256, 256), nn.BatchNorm1d(256)) for _ in range(layers)]
        self.body = nn.Sequential(*(module for pair in pairs for module in pair))
        self.register_buffer("unsaved", torch.tensor(2.0, device="cpu"), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.unsaved


def _make(make: Callable[[], nn.Module] = Normed) -> Any:
    """A model whose every buffer has another value than the one it is built with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = make()
        for buffer in model.state_dict().values():
            buffer.copy_(buffer + torch.rand(buffer.shape) if buffer.is_floating_point() else 7)
    return model.eval()


def _empty(make: Callable[[], nn.Module] = Normed, *, buffers: str = "meta") -> Any:
    """A model without values; its buffers on that device."""
    with torch.device("meta"):
        model = make().eval()
    built = make()
    if buffers == "cpu":
        for module, other in zip(model.modules(), built.modules(), strict=True):
            module._buffers.update(other._buffers)
    return model


def _save(model: nn.Module, folder: Path, prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    values = {f"{prefix}{name}": value.clone() for name, value in model.state_dict().items()}
    save_file(values, folder / "model.safetensors")
    return folder


def _check(model: nn.Module, plain: nn.Module) -> None:
    for name, value in plain.state_dict().items():
        assert same_bytes(model.state_dict()[name], value), name
    with torch.no_grad():
        assert_same(model(X), plain(X))
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"cpu"}


@pytest.mark.parametrize("backend", ["auto", "direct"])
@pytest.mark.parametrize("buffers", ["meta", "cpu"])
@pytest.mark.parametrize("kind", ["plain", "prefix", "packed"])
def test_buffers_are_those_of_the_checkpoint(
    kind: str, buffers: str, backend: str, tmp_path: Path
) -> None:
    plain = _make()
    folder = _save(plain, tmp_path / "plain", "base.model." if kind == "prefix" else "")
    if kind == "packed":
        ts.pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    smallest = smallest_budget(plain)
    for budget in (smallest, 20 * smallest):
        model = _empty(buffers=buffers)
        before = dict(model.named_buffers())
        ts.offload(model, ram_budget=budget, checkpoint=folder, backend=backend)
        _check(model, plain)
        assert bool(hooks_of(model)) == (budget == smallest)
        if buffers == "cpu":
            assert all(buffer is before[name] for name, buffer in model.named_buffers())
        _check(ts.restore(model), plain)


@pytest.mark.parametrize("homes", [True, False])
def test_buffers_on_a_gpu_are_those_of_the_checkpoint(
    homes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    plain = _make()
    folder = _save(plain, tmp_path / "plain")
    smallest = smallest_budget(plain)
    for budget in (2 * smallest, 20 * smallest):
        model = _empty()
        ts.offload(model, ram_budget=budget, checkpoint=folder)
        with torch.no_grad():
            assert_same(model(X), plain(X))
        _check(ts.restore(model), plain)


class Pipeline:
    def __init__(self, components: dict[str, nn.Module]) -> None:
        self.components = components


def test_buffers_of_a_pipeline_are_those_of_its_parts(tmp_path: Path) -> None:
    plain = {"first": _make(), "second": _make(lambda: Normed(2))}
    parts = {"first": _empty(), "second": _empty(lambda: Normed(2), buffers="cpu")}
    for name, part in plain.items():
        _save(part, tmp_path / name)
    pipeline = Pipeline(parts)
    ts.offload(pipeline, ram_budget="4MB", checkpoint=tmp_path)
    for name, part in plain.items():
        _check(parts[name], part)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.BatchNorm1d(256), nn.BatchNorm1d(256)
        self.other.running_mean = self.one.running_mean
        self.linear = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.linear(self.one(x)))


@pytest.mark.parametrize("buffers", ["meta", "cpu"])
def test_shared_buffers_stay_shared_and_two_values_are_refused(
    buffers: str, tmp_path: Path
) -> None:
    plain = _make(Shared)
    folder = _save(plain, tmp_path / "model")
    values = load_file(folder / "model.safetensors")
    for left_out in ("one.running_mean", "other.running_mean", None):
        kept = {name: value for name, value in values.items() if name != left_out}
        save_file(kept, folder / "model.safetensors")
        model = _empty(Shared, buffers=buffers)
        assert model.other.running_mean is model.one.running_mean
        ts.offload(model, ram_budget="4MB", checkpoint=folder)
        assert model.other.running_mean is model.one.running_mean
        _check(model, plain)
    save_file(values | {"one.running_mean": torch.zeros(256)}, folder / "model.safetensors")
    with pytest.raises(ts.ConfigError, match="several values for buffer 'running_mean' of Batch"):
        ts.offload(_empty(Shared, buffers=buffers), ram_budget="4MB", checkpoint=folder)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(255), r"'running_mean' of BatchNorm1d is float32 of shape \[256\].*\[255\]"),
        (torch.zeros(256, dtype=torch.float64), r"float32 of shape \[256\].* is float64"),
    ],
)
@pytest.mark.parametrize("buffers", ["meta", "cpu"])
def test_buffers_of_another_form_are_refused(
    value: torch.Tensor, says: str, buffers: str, tmp_path: Path
) -> None:
    folder = _save(_make(), tmp_path / "model")
    values = load_file(folder / "model.safetensors")
    save_file(values | {"body.3.running_mean": value}, folder / "model.safetensors")
    model = _empty(buffers=buffers)
    before = [*model.parameters(), *model.buffers()]
    with pytest.raises(ts.ConfigError, match=says):
        ts.offload(model, ram_budget="4MB", checkpoint=folder)
    assert all(a is b for a, b in zip([*model.parameters(), *model.buffers()], before, strict=True))
    assert not hooks_of(model)


def test_buffers_that_the_checkpoint_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = _make()
    folder = _save(plain, tmp_path / "model")
    values = load_file(folder / "model.safetensors")
    del values["body.5.running_var"]
    save_file(values, folder / "model.safetensors")
    with pytest.raises(ts.ConfigError, match="buffer 'running_var' of BatchNorm1d is on the meta"):
        ts.offload(_empty(), ram_budget="4MB", checkpoint=folder)
    model = _empty(buffers="cpu")
    ts.offload(model, ram_budget="4MB", checkpoint=folder)
    assert "1 buffers are not in the checkpoint" in caplog.text
    assert "'body.5.running_var'" in caplog.text
    assert same_bytes(model.body[5].running_var, torch.ones(256))
    assert same_bytes(model.body[5].running_mean, plain.body[5].running_mean)


def test_a_model_with_all_values_keeps_them_or_is_refused(tmp_path: Path) -> None:
    model = _make()
    folder = _save(model, tmp_path / "model")
    model.body[1].running_mean += 1
    before = model.body[1].running_mean.clone()
    with pytest.raises(ts.ConfigError, match="'running_mean' of BatchNorm1d of the model differs"):
        ts.offload(model, ram_budget="4MB", checkpoint=folder)
    assert same_bytes(model.body[1].running_mean, before)
    assert not hooks_of(model)
    model.body[1].running_mean -= 1
    ts.offload(model, ram_budget="4MB", checkpoint=_save(model, tmp_path / "same"))
    _check(model, copy.deepcopy(model))


class Apart(nn.Module):
    """Parameters that cannot be streamed: an empty one, and two that share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(0, 7))
        self.both = nn.Parameter(torch.ones(256, 2))
        self.linear = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.both[:, 0] + self.empty.sum()


def test_parameters_that_stay_as_they_are_must_be_the_checkpoints(tmp_path: Path) -> None:
    model = _make(Apart)
    folder = _save(model, tmp_path / "model")
    model.half_of_it = nn.Parameter(model.both.detach()[:128])  # overlaps: both stay resident
    with torch.no_grad():
        model.both[3] += 1
    with pytest.raises(ts.ConfigError, match="'both' of the model differs from the checkpoint's"):
        ts.offload(model, ram_budget="4MB", checkpoint=folder)


class Marked(torch.Tensor):
    """A class of tensors that is not streamed."""


def test_what_a_model_in_memory_has_in_another_form_stays(tmp_path: Path) -> None:
    """As layers of bitsandbytes have it: a quantised weight, and a bias that they cast."""
    model = _make(Apart)
    folder = _save(model, tmp_path / "model")
    model.both = nn.Parameter(model.both.detach().double())
    model.half_of_it = nn.Parameter(model.both.detach()[:128])
    model.linear.bias = nn.Parameter(torch.ones(256).as_subclass(Marked))
    with torch.no_grad():
        expected = model(X)
        ts.offload(model, ram_budget="4MB", checkpoint=folder)
        assert_same(model(X), expected)
    model = _empty(Apart)
    model.linear.bias = nn.Parameter(torch.ones(256).as_subclass(Marked))
    with pytest.raises(ts.UnsupportedError, match=r"'linear\.bias' is a Marked"):
        ts.offload(model, ram_budget="4MB", checkpoint=folder)


@pytest.mark.parametrize("packed", [False, True])
def test_empty_parameters_leave_the_meta_device(packed: bool, tmp_path: Path) -> None:
    plain = _make(Apart)
    folder = _save(plain, tmp_path / "model")
    if packed:
        ts.pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    model = _empty(Apart)
    model.empty.mark = "kept"
    ts.offload(model, ram_budget=smallest_budget(plain), checkpoint=folder)
    assert model.empty.mark == "kept"
    assert isinstance(model.empty, nn.Parameter)
    _check(model, plain)


def test_a_packed_model_of_transformers_with_an_empty_parameter(tmp_path: Path) -> None:
    config = tf.ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32)

    class Empty(tf.ViTModel):
        def __init__(self, config: Any, **options: Any) -> None:
            super().__init__(config, **options)
            self.registers = nn.Parameter(torch.zeros(1, 0, 64))

    plain = Empty(config).eval()
    plain.save_pretrained(tmp_path / "plain")
    ts.pack(tmp_path / "plain", tmp_path / "packed")
    model = ts.from_pretrained(tmp_path / "packed", model_class=Empty, ram_budget="1GB")
    assert model.registers.device.type == "cpu"
    model.save_pretrained(tmp_path / "again")


class Attends(nn.Module):
    """Modules of torch that are one group with all that is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(256, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(256, 4, 256, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.attention(x, x, x)[0])


def test_all_modules_leave_the_meta_device(tmp_path: Path) -> None:
    plain = _make(Attends)
    folder = _save(plain, tmp_path / "model")
    for budget in (smallest_budget(plain), "1GB"):
        model = _empty(Attends)
        ts.offload(model, ram_budget=budget, checkpoint=folder)
        assert hooks_of(model) or budget == "1GB"
        _check(model, plain)
        _check(ts.restore(model), plain)


def test_attributes_of_parameters_on_the_meta_device_stay(tmp_path: Path) -> None:
    folder = _save(_make(), tmp_path / "model")
    model = _empty(buffers="cpu")
    for number, parameter in enumerate(model.parameters()):
        parameter.number = number
    ts.offload(model, ram_budget="1MB", checkpoint=folder)
    assert [p.number for p in model.parameters()] == list(range(len([*model.parameters()])))


def test_a_model_without_values_is_so_again_where_offloading_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _make()
    folder = _save(plain, tmp_path / "model")
    for buffers in ("meta", "cpu"):
        model = _empty(buffers=buffers)
        before = [*model.parameters(), *model.buffers()]
        values = [t if t.is_meta else t.clone() for t in before]
        with monkeypatch.context() as patch:
            patch.setattr(weight, "poison_like", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ts.offload(model, ram_budget=smallest_budget(plain), checkpoint=folder)
        after = [*model.parameters(), *model.buffers()]
        assert all(one is other for one, other in zip(after, before, strict=True))
        kept = zip(after, values, strict=True)
        assert all(one.is_meta if value.is_meta else same_bytes(one, value) for one, value in kept)
        ts.offload(model, ram_budget=smallest_budget(plain), checkpoint=folder)
        _check(model, plain)


def _mapped(model: nn.Module) -> list[str]:
    return [
        name
        for name, buffer in model.named_buffers()
        if _native.find_file_backing(buffer.data_ptr(), buffer.nbytes)
    ]


@pytest.mark.parametrize(("budget", "inference"), [("500KB", False), ("1GB", False), ("1GB", True)])
def test_no_buffer_stays_in_a_file(budget: str, inference: bool, tmp_path: Path) -> None:
    plain = _make()
    folder = _save(plain, tmp_path / "model")
    with torch.inference_mode(inference):
        model = _empty(buffers="cpu")
        model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
        places = {name: b.data_ptr() % 64 for name, b in model.named_buffers() if b.dim()}
        model.body[3].running_mean[:3] += 0  # its pages are RAM from here, if not all of them
        assert len(_mapped(model)) > 4
        ts.offload(model, ram_budget=budget)
        assert not _mapped(model)
        assert {n: b.data_ptr() % 64 for n, b in model.named_buffers() if b.dim()} == places
        with torch.no_grad():
            assert_same(model(X), plain(X))
        with (folder / "model.safetensors").open("r+b") as file:
            file.write(bytes((folder / "model.safetensors").stat().st_size))
        assert all(same_bytes(model.get_buffer(name), b) for name, b in plain.named_buffers())


def test_buffers_that_share_bytes_of_a_file_share_those_of_the_copy(tmp_path: Path) -> None:
    folder = _save(_make(), tmp_path / "model")
    model = _empty(buffers="cpu")
    model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    whole = model.body[1].running_mean
    model.register_buffer("part", whole[10:20])
    model.register_buffer("wide", whole[4].expand(2, 3))
    own = model.unsaved.data_ptr()
    ts.offload(model, ram_budget="1GB")
    assert not _mapped(model)
    assert model.body[1].running_mean is whole
    whole[4], whole[11] = 5, 6
    assert same_bytes(model.part[1], torch.tensor(6.0))
    assert same_bytes(model.wide, torch.full((2, 3), 5.0))
    assert model.unsaved.data_ptr() == own, "memory that is no file's stays where it is"


def test_a_file_that_is_cut_off_ends_no_model_that_fits(tmp_path: Path) -> None:
    """In a process of its own, which a read of what is gone would end."""
    _save(_make(), tmp_path / "model")
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_fixed import *
from test_fixed import _empty
path = {str(tmp_path / "model" / "model.safetensors")!r}
model = _empty(buffers="cpu")
model.load_state_dict(load_file(path), assign=True)
ts.offload(model, ram_budget="1GB")
os.truncate(path, 100)
with torch.no_grad():
    model(X)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
