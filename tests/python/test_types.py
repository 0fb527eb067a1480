"""Every element type, and every layout, through streaming, parking and serialisation."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, same_bytes, smallest_budget
from tensorstream.compute_device import move, moves_itself
from tensorstream.proxy import ParkedParameter

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NARROW = [torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
TYPES = [*FLOATS, *NARROW, *INTEGERS, torch.complex64]
ROWS, COLUMNS = 96, 1024


class Typed(nn.Module):
    """A weight of any type, and a scale: what a quantised layer is made of."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values, requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        weight = weight.abs() if weight.is_complex() else weight.to(torch.float64)
        return x + (weight.double().nan_to_num(0, 1, -1).clamp(-3, 3) * self.scale).mean(0)


class Layers(nn.Module):
    def __init__(self, values: list[torch.Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Typed(value) for value in values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _bits(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Every byte at random: NaN payloads, infinities, subnormals, -0 and all."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, (ROWS, COLUMNS), generator=generator).bool()
    size = dtype.itemsize
    raw = torch.randint(0, 256, (ROWS, COLUMNS * size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype)


def _layers(dtype: torch.dtype) -> Layers:
    return Layers([_bits(dtype, seed) for seed in range(4)])


X = torch.zeros(1, COLUMNS, dtype=torch.float64)


def _check(model: Layers, plain: Layers) -> None:
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(X), plain(X))
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert one.dtype == other.dtype
        assert same_bytes(one, other), "a read between uses"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("source", ["file", "memory"])
def test_every_bit_of_every_type_is_streamed(
    dtype: torch.dtype, source: str, tmp_path: Path
) -> None:
    model, plain = _layers(dtype), _layers(dtype)
    options: dict[str, Any] = {"self_check": True}
    if source == "file":
        options["checkpoint"] = tmp_path / "model.safetensors"
        save_file(model.state_dict(), options["checkpoint"])
    budget = max(smallest_budget(model), 2 * ROWS * COLUMNS * dtype.itemsize + 64_000)
    offload_tightly(model) if source == "memory" else ts.offload(
        model, ram_budget=budget, **options
    )
    assert isinstance(model.layers[0].weight, ParkedParameter)
    assert {str(dtype).removeprefix("torch.")} <= {
        name for group in ts.analyze(plain).groups for name in group.dtypes
    }
    _check(model, plain)
    assert ts.stats(model).streamed_bytes > 0
    ts.restore(model)
    assert_same(list(model.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_through_serialisation(dtype: torch.dtype, tmp_path: Path) -> None:
    model, plain = offload_tightly(_layers(dtype)), _layers(dtype)
    save_file(model.state_dict(), tmp_path / "streamed.safetensors")
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    written = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("streamed", "plain")]
    assert written[0] == written[1]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file)
    assert all(same_bytes(loaded[name], value) for name, value in plain.state_dict().items())
    copied = copy.deepcopy(model)
    assert type(copied.layers[0].weight) is nn.Parameter
    assert not copied.layers[0].weight.requires_grad
    again = offload_tightly(copied)
    again.load_state_dict(load_file(tmp_path / "plain.safetensors"))
    _check(again, plain)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_written_while_parked(dtype: torch.dtype) -> None:
    model, plain = offload_tightly(_layers(dtype)), _layers(dtype)
    _check(model, plain)
    for either in (model, plain):
        either.layers[0].weight.data = _bits(dtype, 77)
        either.layers[2].weight.data[3] = either.layers[1].weight.data[5]
        either.layers[3].weight.data.copy_(_bits(dtype, 78))
    _check(model, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64], ids=str)
def test_poison_is_loud_in_every_type(dtype: torch.dtype) -> None:
    model = offload_tightly(_layers(dtype))
    with torch._C.DisableTorchFunctionSubclass():
        stored = model.layers[0].weight.clone()
    if dtype.is_floating_point:
        assert stored.isnan().all()
    else:
        assert (stored == (True if dtype is torch.bool else -1)).all()
    assert not same_bytes(stored, _layers(dtype).layers[0].weight)


def test_types_side_by_side_in_one_group() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Typed(_bits(dtype, 3)) for dtype in TYPES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                x = part(x)
            return x

    model = nn.Sequential(Mixed(), Mixed(), Mixed())
    plain = copy.deepcopy(model)
    for room in (1.0, 1.5, 2.0):
        ts.offload(model, ram_budget=int(smallest_budget(model) * room), self_check=True)
        with torch.no_grad():
            assert_same(model(X), plain(X), f"room {room}")
            assert_same(model(X), plain(X), f"room {room}")
        ts.restore(model)


def _odd_layouts() -> nn.Module:
    values = torch.randn(512, 512, generator=torch.Generator().manual_seed(8))
    joint = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(9))
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(6))
    weights = [
        values.clone().T,  # strided, dense
        values.clone().as_strided((256, 512), (1024, 1)),  # every other row
        joint[0],  # two parameters on one storage
        joint[1],
        joint[1][10:],  # that overlap
        torch.randn(1, generator=torch.Generator().manual_seed(1)).expand(512, 512),
    ]
    for layer, weight in zip(model.layers, weights, strict=True):
        layer.weight = nn.Parameter(weight, requires_grad=False)
    model.empty = nn.Parameter(torch.empty(0, 512))
    model.scalar = nn.Parameter(torch.tensor(2.0))
    model.sparse = nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    return model


def _run(model: nn.Module) -> list[torch.Tensor]:
    x = torch.ones(2, 512)
    with torch.no_grad():
        outputs = [layer(x) * model.scalar for layer in model.layers]
        return [*outputs, model.empty @ x.T, torch.sparse.mm(model.sparse, torch.ones(4, 2))]


def test_layouts_that_are_not_plain(caplog: pytest.LogCaptureFixture) -> None:
    """Dense ones are streamed with their strides; what is not understood stays, with one warning."""
    model, plain = _odd_layouts(), _odd_layouts()
    analysis = ts.analyze(model)
    assert set(analysis.left) == {
        "layers.1.weight",
        "layers.3.weight",
        "layers.4.weight",
        "layers.5.weight",
        "empty",
        "sparse",
    }
    expected = _run(plain)
    smallest = smallest_budget(model)
    caplog.clear()
    ts.offload(model, ram_budget=smallest, self_check=True)
    assert hooks_of(model)
    assert len([record for record in caplog.records if "stay resident" in record.message]) == 1
    for _ in range(2):
        assert_same(_run(model), expected)
    assert model.layers[0].weight.stride() == plain.layers[0].weight.stride()
    assert model.layers[3].weight.data_ptr() + 10 * 2048 == model.layers[4].weight.data_ptr()
    ts.restore(model)
    assert_same(_run(model), expected)
    assert model.layers[0].weight.stride() == (1, 512)


def test_overlaps_are_told_by_the_bytes_that_strides_reach() -> None:
    """Not by neighbours alone, nor by a size that an expanded tensor does not have."""
    buffer = torch.randn(4096)
    model = nn.Module()
    for name, weight in {
        "whole": buffer[:3000],
        "inside": buffer[100:200],
        "inside_too": buffer[2000:2100],
        "expanded": buffer[3000].expand(100_000),
        "behind": buffer[3001:],
    }.items():
        setattr(model, name, nn.Parameter(weight))
    left = ts.analyze(model).left
    shared = {name for name, reason in left.items() if "shares memory" in reason}
    assert shared == {"whole", "inside", "inside_too"}
    assert set(left) - shared == {"expanded"}


def test_subclasses_of_tensors_stay_resident_and_work() -> None:
    class Fancy(torch.Tensor):
        pass

    class FancyParameter(nn.Parameter):
        pass

    def make() -> nn.Sequential:
        torch.manual_seed(3)
        made = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
        made[1].weight = FancyParameter(made[1].weight.data)
        made[2].weight = nn.Parameter(made[2].weight.data.as_subclass(Fancy))
        made.register_buffer("links", torch.eye(8).to_sparse())
        return made

    model, plain = make(), make()
    assert set(ts.analyze(model).left) == {"1.weight", "2.weight"}
    offload_tightly(model)
    x = torch.ones(2, 512)
    with torch.no_grad():
        assert_same(model(x).as_subclass(torch.Tensor), plain(x).as_subclass(torch.Tensor))
    assert type(model[1].weight) is FancyParameter


class Quantised(torch.Tensor):
    """Bytes and scales that stand for a matrix, which nobody may exchange."""

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        self._values, self.scale = values, scale

    @property
    def values(self) -> torch.Tensor:
        return self._values

    def __tensor_flatten__(self) -> Any:
        return ["values", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> Any:
        return Quantised(inner["values"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        plain = [a.values * a.scale if isinstance(a, cls) else a for a in args]
        return func(*plain, **(kwargs or {}))


def _quantised_layers() -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(6)))
    for layer in model[::2]:
        values = torch.randint(-128, 128, (512, 512), dtype=torch.int8)
        quantised = Quantised(values, torch.rand(512, 1) / 100)
        layer.weight = nn.Parameter(quantised, requires_grad=False)
    return model


def test_quantised_weights_count_what_they_take(caplog: pytest.LogCaptureFixture) -> None:
    """Not what they stand for: a budget that holds them is enough."""
    model, plain = _quantised_layers(), _quantised_layers()
    analysis = ts.analyze(model)
    assert set(analysis.left) == {"0.weight", "2.weight", "4.weight"}
    assert analysis.fixed_bytes == 3 * (512 * 512 + 512 * 4)
    streamed = 3 * 512 * 512 * 4
    smallest = smallest_budget(model)
    assert analysis.fixed_bytes < smallest < analysis.fixed_bytes + streamed
    caplog.clear()
    offload_tightly(model, self_check=True)
    warnings = [
        record for record in caplog.records if "'values' cannot be exchanged" in record.message
    ]
    assert len(warnings) == 2  # one is of the estimate
    x = torch.randn(3, 512)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(x), plain(x))
    stats = ts.stats(model)
    assert stats.streamed_bytes > 0
    assert stats.peak_held_bytes <= smallest
    assert isinstance(model[0].weight, Quantised)
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(x), plain(x), "restored")


def test_weights_that_move_themselves_are_moved_by_their_owner() -> None:
    """Their bytes alone would be somewhere else than what they need beside them."""

    class Keeping(nn.Parameter):
        def to(self, *args: Any, **kwargs: Any) -> Any:
            return Keeping(super().to(*args, **kwargs), requires_grad=False)

    weight = Keeping(torch.ones(4, 4), requires_grad=False)
    move(weight, torch.device("cpu"))
    with pytest.raises(ts.UnsupportedError, match="before you offload it"):
        move(weight, torch.device("meta"))
    assert weight.device.type == "cpu"
    assert moves_itself(weight)
    assert not any(moves_itself(w) for w in _quantised_layers().parameters())


def test_buffers_that_change_in_forward() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256)) for _ in range(4))
    ).train()
    model.register_buffer("steps", torch.tensor(0), persistent=False)
    plain = copy.deepcopy(model)
    offload_tightly(model, self_check=True)
    for step in range(3):
        x = torch.randn(8, 256, generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            assert_same(model(x), plain(x), f"step {step}")
    assert_same(list(model.buffers()), list(plain.buffers()))
    ts.restore(model)
    model.eval(), plain.eval()
    with torch.no_grad():
        assert_same(model(x), plain(x))
