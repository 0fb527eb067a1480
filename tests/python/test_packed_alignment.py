"""Packed checkpoints on the CPU: where in a cache line tensors begin, by which products are rounded."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, same_bytes, save
from model_shapes import SHAPES, row_ids
from tensorstream import _native
from tensorstream.packed import stored_tensors


def _line_offsets(model: nn.Module) -> dict[str, int]:
    """Where tensors begin in a cache line as their own modules' forwards begin, by name."""
    found: dict[str, int] = {}

    def note(module: nn.Module, _: Any, prefix: str) -> None:
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found.update({f"{prefix}{name}": tensor.data_ptr() % 64 for name, tensor in held})

    hooks = [
        module.register_forward_pre_hook(functools.partial(note, prefix=name and f"{name}."))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(row_ids())
    for hook in hooks:
        hook.remove()
    return found


def _move_data(folder: Path, most_bytes: int) -> None:
    """Has the data of a folder's files begin up to that many bytes later, each at another byte."""
    for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
        raw, spaces = path.read_bytes(), most_bytes - number
        size = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + size] + b" " * spaces
        path.write_bytes((size + spaces).to_bytes(8, "little") + header + raw[8 + size :])


def _check_forwards(model: nn.Module, plain: nn.Module, what: str) -> None:
    inputs = torch.Generator().manual_seed(4)
    for step in range(12):
        x = torch.randint(3, 400, (1, 1 + step % 3), generator=inputs)
        with torch.no_grad():
            assert_same(model(x).logits, plain(x).logits, f"{what}, {x.shape[1]} tokens")
    assert _line_offsets(model) == _line_offsets(plain), what


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize(("shard", "moved_bytes"), [("200KB", 0), ("200KB", 23), ("10GB", 0)])
@pytest.mark.parametrize("level", [0, 1])
def test_forwards_are_those_of_the_original(
    level: int, shard: str, moved_bytes: int, unpacked: bool, tmp_path: Path
) -> None:
    """Or of the files that unpack() gives: coded and raw, streamed, resident, parked and restored."""
    made: Any = SHAPES["mistral"].make(2)
    source, packed = save(made, tmp_path / "source", shard=shard), tmp_path / "packed"
    if moved_bytes:
        _move_data(source, moved_bytes)
    ts.pack(source, packed, level=level)
    if unpacked:
        shutil.rmtree(source)
        source = tmp_path / "unpacked"
        ts.unpack(packed, source)
    plain = type(made).from_pretrained(source)
    assert any(_line_offsets(plain).values())
    estimate = ts.estimate_memory(packed)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    for budget, later in ((smallest, fits), (fits, (smallest + fits) // 2)):
        model = ts.from_pretrained(packed, ram_budget=budget, device="cpu")
        _check_forwards(model, plain, f"{budget}")
        ts.set_budget(model, ram_budget=later)
        _check_forwards(model, plain, f"{budget}, then {later}")
        head = model.lm_head.weight
        x = torch.randn(1, head.shape[1])
        with torch.no_grad():
            assert_same(nn.functional.linear(x, head), plain.lm_head(x), "outside its module")
        ts.restore(model)
        _check_forwards(model, plain, "restored")


class _Changed(transformers.BertModel):
    """A model that saves a buffer, and changes a weight once it has it."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.register_buffer("scale", torch.rand(321))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        with torch.no_grad():
            model.encoder.layer[0].output.dense.weight[3] *= 2
        return loaded


def test_what_is_not_streamed_begins_there_too(tmp_path: Path) -> None:
    """Buffers, and weights that RAM owns."""
    made: Any = _Changed(SHAPES["bert"].make(2).config).eval()
    source, packed = save(made, tmp_path / "source"), tmp_path / "packed"
    ts.pack(source, packed)
    plain = _Changed.from_pretrained(source)
    expected = _line_offsets(plain)
    for name in (
        "scale",
        "encoder.layer.0.output.dense.weight",
        "encoder.layer.1.output.dense.bias",
    ):
        assert expected[name], name
    model = ts.from_pretrained(packed, model_class=_Changed, ram_budget="1GiB", device="cpu")
    assert ts.stats(model).source_ram_bytes > 0
    assert _line_offsets(model) == expected
    with torch.no_grad():
        assert_same(model(**SHAPES["bert"].inputs()), plain(**SHAPES["bert"].inputs()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_cast_begins_where_torch_puts_it(dtype: torch.dtype, tmp_path: Path) -> None:
    made: Any = SHAPES["mistral"].make(1)
    source, packed = save(made, tmp_path / "source"), tmp_path / "packed"
    ts.pack(source, packed)
    plain = type(made).from_pretrained(source, dtype=dtype)
    model = ts.from_pretrained(packed, dtype=dtype, ram_budget="1GiB", device="cpu")
    assert any(_line_offsets(plain).values()) == (dtype == torch.float32)
    _check_forwards(model, plain, str(dtype))


def test_values_of_stored_tensors_begin_there(tmp_path: Path) -> None:
    tensors = {"weights": torch.rand(90, 100), "bits": torch.ones(7, dtype=torch.uint8)}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3)}
    source = tmp_path / "model.safetensors"
    save_file(tensors, source)
    ts.pack(source, tmp_path / "packed")
    stored = stored_tensors(_native.Checkpoint.open(str(tmp_path / "packed")))
    mapped = load_file(source)
    assert any(value.data_ptr() % 64 for value in mapped.values())
    for name, value in mapped.items():
        stored[name].copy_(stored[name].clone())
        kept = stored[name].detach().view(-1)
        assert type(kept) is torch.Tensor
        assert same_bytes(kept, value.view(-1))
        if value.numel():
            assert kept.data_ptr() % 64 == value.data_ptr() % 64
