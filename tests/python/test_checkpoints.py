"""ts.offload(model, checkpoint=...): models on the meta device or in memory, names that differ."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, same_bytes, save, smallest_budget
from flexible_model import Flexible, X, make_flexible
from model_shapes import SHAPES, Stack, make_stack, row_ids, token_ids
from tensorstream.proxy import ParkedParameter


def _on_meta(make: Any, *args: Any) -> nn.Module:
    with torch.device("meta"):
        return make(*args).eval()


def _meta_stack(layers: int = 4) -> Stack:
    model = _on_meta(Stack, layers)
    model.scale = torch.tensor(0.5)  # a checkpoint without buffers cannot tell its value
    return model


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _rooms(model: nn.Module) -> list[int]:
    estimate = ts.estimate_memory(model)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    return [smallest, (smallest + fits) // 2, fits]


def _check(model: nn.Module, plain: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(*args, **kwargs), plain(*args, **kwargs))
    assert {p.device for p in model.parameters()} == {torch.device("cpu")}
    assert ts.stats(model).source_ram_bytes == 0
    assert ts.stats(model).peak_held_bytes <= ts.stats(model).budget_bytes


@pytest.mark.parametrize("where", ["meta", "memory"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_plain_model_from_its_checkpoint(where: str, kind: str, tmp_path: Path) -> None:
    plain = make_stack(4)
    save_file(_parameters(plain), tmp_path / "model.safetensors")
    path = tmp_path if kind == "folder" else tmp_path / "model.safetensors"
    for budget in _rooms(plain):
        model = _meta_stack() if where == "meta" else make_stack(4)
        before = dict(model.named_parameters())
        assert ts.offload(model, ram_budget=budget, checkpoint=path) is model
        _check(model, plain, row_ids())
        if where == "memory":
            assert all(p is before[name] for name, p in model.named_parameters())
        ts.restore(model)
        assert_same(model(row_ids()), plain(row_ids()))
        for name, value in plain.named_parameters():
            assert same_bytes(model.get_parameter(name), value)
            assert model.get_parameter(name).requires_grad


def test_a_sharded_checkpoint_by_folder_and_by_index(tmp_path: Path) -> None:
    for name in ("llama", "t5"):
        plain: Any = SHAPES[name].make(3)
        folder = save(plain, tmp_path / name, shard="800KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        for path in (folder, folder / "model.safetensors.index.json"):
            model = copy.deepcopy(plain)
            ts.offload(model, ram_budget=smallest_budget(model), checkpoint=path)
            _check(model, plain, **SHAPES[name].inputs())
            assert hooks_of(model)


@pytest.mark.parametrize("prefix", ["added", "removed"])
def test_names_that_differ_by_a_prefix(prefix: str, tmp_path: Path) -> None:
    plain = make_stack(4)
    values = _parameters(plain)
    if prefix == "added":
        values = {f"base.model.{name}": value for name, value in values.items()}
        model: nn.Module = _meta_stack()
    else:
        model = nn.Sequential(_meta_stack())
    save_file(values | {"unrelated": torch.zeros(3)}, tmp_path / "model.safetensors")
    ts.offload(model, ram_budget=smallest_budget(model), checkpoint=tmp_path)
    _check(model, plain, row_ids())


def test_tied_weights_are_one_whichever_name_the_file_has(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(512, 256)
            self.blocks = Flexible(4)
            self.head = nn.Linear(256, 512, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.blocks(self.table(ids)))

    torch.manual_seed(4)
    plain = Tied()
    values = {name: value for name, value in _parameters(plain).items() if "shared" not in name}
    table = values.pop("table.weight")
    for name in ("table.weight", "head.weight"):
        save_file(values | {name: table}, tmp_path / "model.safetensors")
        model = _on_meta(Tied)
        assert ts.analyze(model).weights_bytes == ts.analyze(plain).weights_bytes
        for budget in _rooms(model):
            model = _on_meta(Tied)
            ts.offload(model, ram_budget=budget, checkpoint=tmp_path)
            assert model.head.weight is model.table.weight
            _check(model, plain, row_ids())
        ts.restore(model)
        with torch.no_grad():
            model.head.weight[3] = 1
            assert same_bytes(model.table.weight[3], torch.ones(256))


def test_a_tied_head_of_transformers_reads_its_table_once(tmp_path: Path) -> None:
    plain: Any = SHAPES["gpt2"].make(4)
    path = save(plain, tmp_path / "gpt2")
    stored = [name for file in path.glob("*.safetensors") for name in load_file(file)]
    assert "lm_head.weight" not in stored
    smallest = ts.estimate_memory(path).smallest_budget_bytes
    model = ts.from_pretrained(path, ram_budget=smallest, prefetch="none")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert isinstance(model.lm_head.weight, ParkedParameter)
    groups = ts.plan(path, ram_budget=smallest).groups
    assert sum(group.size_bytes for group in groups) == sum(p.nbytes for p in plain.parameters())
    a_pass = sum(group.size_bytes for group in groups if group.placement == "streamed")
    with torch.no_grad():
        for passes in (1, 2):
            assert_same(model(token_ids()), plain(token_ids()))
            assert ts.stats(model).streamed_bytes == passes * a_pass


def test_types_that_differ_from_the_file_are_made_once_in_ram(tmp_path: Path) -> None:
    plain: Any = SHAPES["llama"].make(3)
    path = save(plain, tmp_path / "llama")
    loaded = type(plain).from_pretrained(path, dtype=torch.bfloat16)
    made_bytes = sum(p.nbytes for p in loaded.parameters())
    model = ts.from_pretrained(path, dtype=torch.bfloat16, ram_budget=made_bytes + 200_000)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        assert_same(model(token_ids()), loaded(token_ids()))
    assert ts.stats(model).held_bytes >= made_bytes, "what was made counts in the budget"
    with pytest.raises(ts.BudgetError):
        ts.from_pretrained(path, dtype=torch.bfloat16, ram_budget=made_bytes // 2)


def test_meta_without_a_checkpoint_and_buffers_on_meta_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ts.ConfigError, match=r"'table\.weight' is on the meta device.*checkpoint="):
        ts.offload(_meta_stack(), ram_budget="1GiB")
    save_file(_parameters(make_stack(4)), tmp_path / "model.safetensors")
    model = _on_meta(Stack, 4)
    with pytest.raises(ts.ConfigError, match="buffer 'scale' of Stack is on the meta device"):
        ts.offload(model, ram_budget="1GiB", checkpoint=tmp_path)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model.scale = torch.tensor(0.5)
    ts.offload(model, ram_budget=smallest_budget(model), checkpoint=tmp_path)
    _check(model, make_stack(4), row_ids())


def test_a_model_in_memory_that_differs_from_the_checkpoint_is_refused(tmp_path: Path) -> None:
    model = make_stack(4)
    save_file(_parameters(model), tmp_path / "model.safetensors")
    with torch.no_grad():
        model.blocks[2].down.bias[5] += 1
    before = _parameters(model)
    for budget in (smallest_budget(model), "1GiB"):
        with pytest.raises(ts.ConfigError, match=r"'blocks\.2\.down\.bias' of the model differs"):
            ts.offload(model, ram_budget=budget, checkpoint=tmp_path)
        assert hooks_of(model) == []
        assert {type(p) for p in model.parameters()} == {nn.Parameter}
        assert all(same_bytes(value, before[name]) for name, value in model.named_parameters())


def test_a_model_partly_on_meta(tmp_path: Path) -> None:
    plain = make_flexible(4)
    values = {name: value for name, value in _parameters(plain).items() if "shared" not in name}
    save_file(values, tmp_path / "model.safetensors")
    model = _on_meta(Flexible, 4)
    model.blocks[1] = copy.deepcopy(plain.blocks[1])
    ts.offload(model, ram_budget=smallest_budget(model), checkpoint=tmp_path)
    _check(model, plain, X)


def _save_at(path: Path, tensors: dict[str, torch.Tensor], data_offset: int) -> None:
    """A safetensors file whose data begins at `data_offset` bytes modulo 64."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype]
        span = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header).encode()
    text += b" " * ((data_offset - 8 - len(text)) % 64)
    raw = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("dtype", "data_offset"),
    [
        (torch.float32, 0),
        (torch.float32, 3),
        (torch.float32, 4),
        (torch.float32, 36),
        (torch.float32, 56),
        (torch.bfloat16, 2),
        (torch.bfloat16, 50),
    ],
)
def test_products_do_not_change_with_where_weights_lie(
    dtype: torch.dtype, data_offset: int, mapped: bool, tmp_path: Path
) -> None:
    """Code for matrices on the CPU rounds by alignment: places have that of the model's memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        plain = nn.Sequential(*(nn.Linear(1040, 1040, dtype=dtype) for _ in range(4))).eval()
        inputs = [torch.randn(rows, 1040, dtype=dtype) for rows in (1, 7, 64)]
    path = tmp_path / "model.safetensors"
    _save_at(path, _parameters(plain), data_offset)
    model = copy.deepcopy(plain)
    if mapped:
        plain.load_state_dict(load_file(path), assign=True)
        model.load_state_dict(load_file(path), assign=True)
        assert plain[0].weight.data_ptr() % 64 == data_offset
    else:
        model.to("meta")
    ts.offload(model, ram_budget=smallest_budget(model), checkpoint=None if mapped else path)
    assert hooks_of(model)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for x in inputs:
                with torch.no_grad():
                    what = f"{len(x)} rows, {threads} threads"
                    assert_same(model(x), plain(x), what)
                    read = nn.functional.linear(x, model[1].weight, model[1].bias)
                    assert_same(read, plain[1](x), f"{what}, parked")
    finally:
        torch.set_num_threads(before)
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(inputs[0]), plain(inputs[0]), "restored")


def test_restored_weights_begin_where_they_did_in_a_cache_line(tmp_path: Path) -> None:
    """So do residents that were on the engine's memory: products round by it."""
    plain = nn.Sequential(*(nn.Linear(260, 260) for _ in range(4))).eval()
    path = tmp_path / "model.safetensors"
    _save_at(path, _parameters(plain), 36)
    for budget in _rooms(plain):
        model = copy.deepcopy(plain)
        model.load_state_dict(load_file(path), assign=True)
        before = {name: p.data_ptr() % 64 for name, p in model.named_parameters()}
        assert any(before.values())
        ts.restore(ts.offload(model, ram_budget=budget))
        assert {name: p.data_ptr() % 64 for name, p in model.named_parameters()} == before
        for name, value in plain.named_parameters():
            assert same_bytes(model.get_parameter(name), value)
