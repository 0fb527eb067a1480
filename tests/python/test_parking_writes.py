"""What is written to a parked weight is kept: the next forward is that of the plain model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly, same_bytes, smallest_budget
from model_shapes import Stack, make_stack, token_ids
from parked_pair import Pair, make_pair
from tensorstream.proxy import ParkedParameter


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    made = make_pair(request.param, tmp_path)
    made.check_forward("before the edit")  # the next loads are under way
    return made


def _new(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def _first(model: Stack) -> nn.Parameter:
    return model.blocks[0].up.weight


def _write_numpy(model: Stack) -> None:
    _first(model).detach().numpy()[3, :] = 0.25


def _write_twice(model: Stack) -> None:
    _first(model).data.mul_(2)
    _first(model).data.add_(1)


def _write_two_weights(model: Stack) -> None:
    _first(model).data.add_(model.blocks[2].up.weight)
    model.blocks[2].up.weight.data.copy_(_first(model))


@torch.no_grad()
def _copy_(model: Stack) -> None:
    _first(model).copy_(_new(3, 256, 256))


@torch.no_grad()
def _set_item(model: Stack) -> None:
    _first(model)[5] = 1.5
    _first(model)[:, 7] += 0.5


@torch.no_grad()
def _in_place(model: Stack) -> None:
    _first(model).mul_(1.25)
    model.blocks[1].down.bias.sub_(0.5)


@torch.no_grad()
def _out_argument(model: Stack) -> None:
    torch.mul(_new(4, 256, 256), 2, out=_first(model))


@torch.no_grad()
def _foreach(model: Stack) -> None:
    torch._foreach_mul_([block.up.weight for block in model.blocks], 1.5)


def _load_state_dict(model: Stack) -> None:
    state = {name: value + 0.01 for name, value in model.state_dict().items()}
    assert not model.load_state_dict(state).missing_keys


def _assign_state_dict(model: Stack) -> None:
    state = {name: value + 0.01 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _init(model: Stack) -> None:
    torch.manual_seed(3)
    for block in model.blocks:
        nn.init.xavier_uniform_(block.up.weight)
        nn.init.normal_(block.down.weight, std=0.02)
        nn.init.constant_(block.down.bias, 0.1)
    model.blocks[0].down.reset_parameters()


def _apply(model: Stack) -> None:
    def double(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data *= 2

    model.apply(double)


def _optimizer_step(model: Stack) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.full(parameter.shape, 0.01)
    optimizer.step()
    optimizer.step()


def _adam_step(model: Stack) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.full(parameter.shape, 0.01)
    optimizer.step()


def _write_table(model: Stack) -> None:
    model.table.weight.data[token_ids(7)[0] % 512] += 1


def _replace_parameter(model: Stack) -> None:
    model.blocks[1].up.weight = nn.Parameter(_new(8, 256, 256))


def _replace_module(model: Stack) -> None:
    model.blocks[1].up = nn.Linear(256, 256)
    model.blocks[1].up.weight.data = _new(9, 256, 256)
    model.blocks[1].up.bias.data = _new(10, 256)


def _share_values(model: Stack) -> None:
    model.blocks[1].up.weight.data = model.blocks[2].up.weight.data
    model.blocks[1].up.weight.data[0] = 3


def _share_parameter(model: Stack) -> None:
    model.blocks[1].up.weight.data = model.blocks[2].up.weight
    model.blocks[2].up.weight.data[0] = 3


EDITS: dict[str, Callable[[Stack], Any]] = {
    "data.mul_": lambda model: _first(model).data.mul_(2),
    "data item": lambda model: _first(model).data.__setitem__(0, 0.5),
    "data slice add_": lambda model: _first(model).data[0].add_(1),
    "view of a view": lambda model: _first(model).data.view(-1)[10:].t().neg_(),
    "detach and write": lambda model: _first(model).detach().fill_(0.01),
    "data +=": lambda model: _first(model).data.__iadd__(0.5),
    "data = ": lambda model: setattr(_first(model), "data", _new(1, 256, 256)),
    "data = transposed": lambda model: setattr(_first(model), "data", _new(2, 256, 256).T),
    "numpy": _write_numpy,
    "two writes": _write_twice,
    "one weight into another": _write_two_weights,
    "copy_": _copy_,
    "item": _set_item,
    "mul_": _in_place,
    "out=": _out_argument,
    "foreach": _foreach,
    "load_state_dict": _load_state_dict,
    "load_state_dict assign": _assign_state_dict,
    "init": _init,
    "apply": _apply,
    "SGD": _optimizer_step,
    "AdamW": _adam_step,
    "table": _write_table,
    "replaced parameter": _replace_parameter,
    "replaced module": _replace_module,
    "values shared": _share_values,
    "values of a parameter shared": _share_parameter,
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_show_in_the_next_forward(pair: Pair, edit: str) -> None:
    before = {name: value.clone() for name, value in pair.plain.state_dict().items()}
    pair.on_both(EDITS[edit])
    after = pair.plain.state_dict()
    assert any(not same_bytes(after[name], before[name]) for name in before)
    pair.check_forward(edit)
    streamed = pair.streamed.state_dict()
    assert all(same_bytes(streamed[name], after[name]) for name in after)
    del streamed
    ts.restore(pair.streamed)
    pair.check_forward("restored")


@pytest.mark.parametrize("edit", ["data.mul_", "numpy", "data = ", "load_state_dict"])
def test_edits_before_the_first_forward_are_kept(edit: str, tmp_path: Path) -> None:
    pair = make_pair("file", tmp_path, self_check=True)
    pair.on_both(EDITS[edit])
    pair.check_forward(edit)


def test_an_alias_held_over_forwards_stays_an_alias(pair: Pair) -> None:
    aliases = pair.on_both(lambda model: _first(model).data)
    arrays = pair.on_both(lambda model: model.blocks[2].down.weight.detach().numpy())
    for round_ in range(3):
        pair.check_forward(f"round {round_}")
        for alias in aliases:
            alias[round_] += 1
        for array in arrays:
            array[:, round_] = round_
        assert_same(_first(pair.streamed), _first(pair.plain), "read after the write")
    pair.check_forward("last round")
    alias, _ = aliases
    pair.on_both(lambda model: _first(model).data.mul_(2))
    assert same_bytes(alias, _first(pair.plain)), "the alias does not see a later write"


def test_a_shallow_copy_is_an_alias(pair: Pair) -> None:
    copies = pair.on_both(lambda model: copy.copy(_first(model)))
    assert type(copies[0]) is type(copies[1]) is nn.Parameter
    for factor in (2, 3):
        for copied in copies:
            assert copied.requires_grad == _first(pair.plain).requires_grad
            copied.data.mul_(factor)
        pair.check_forward(f"times {factor}")
        assert_same(copies[0], copies[1])


def test_an_assigned_tensor_stays_an_alias(pair: Pair) -> None:
    mine = [_new(1, 256, 256), _new(1, 256, 256)]
    for model, value in zip((pair.streamed, pair.plain), mine, strict=True):
        _first(model).data = value
    pair.check_forward("assigned")
    for value in mine:
        value[4] = 2
    pair.check_forward("the assigned tensor was written to")


@pytest.mark.parametrize("source", ["file", "memory"])
@pytest.mark.parametrize("room", [1, 2])
def test_a_tensor_held_since_before_the_offload_stays_an_alias(
    source: str, room: int, tmp_path: Path
) -> None:
    model = make_stack(5)
    plain = copy.deepcopy(model)
    if source == "file":
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        model.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
    aliases = [_first(model).data, _first(plain).data]
    ts.offload(model, ram_budget=smallest_budget(model) * room)
    assert isinstance(_first(model), ParkedParameter)
    assert bool(ts.stats(model).source_ram_bytes) == (source == "memory")
    pair = Pair(plain, model)
    for round_ in range(3):
        pair.check_forward(f"round {round_}")
        for alias in aliases:
            alias.mul_(2)
    pair.check_forward("last round")


def test_writes_that_torch_refuses_are_refused(pair: Pair) -> None:
    for model in (pair.streamed, pair.plain):
        with pytest.raises(RuntimeError):
            _first(model).mul_(2)  # a leaf that requires gradients
        with pytest.raises(RuntimeError):
            _first(model).data.copy_(torch.zeros(3, 7))
        with pytest.raises(IndexError):
            _first(model).data[256] = 0
    pair.check_forward("after refused writes")


@pytest.mark.parametrize("value", [torch.zeros(3, 3), torch.zeros(256, 256, dtype=torch.float64)])
def test_data_of_another_form_is_refused(pair: Pair, value: torch.Tensor) -> None:
    with pytest.raises(ts.UnsupportedError, match=r"'blocks\.0\.up\.weight' is streamed as"):
        _first(pair.streamed).data = value
    pair.check_forward()


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.to("meta"),
        lambda model: model.share_memory(),
    ],
)
def test_moves_that_would_undo_the_offload_are_refused(
    pair: Pair, move: Callable[[Stack], Any]
) -> None:
    with pytest.raises(ts.UnsupportedError, match="restore"):
        move(pair.streamed)
    pair.check_forward()
    assert ts.stats(pair.streamed).acquires


@pytest.mark.parametrize("move", ["to", "to its device", "cpu", "float"])
def test_moves_to_where_the_model_is_change_nothing(pair: Pair, move: str) -> None:
    model = pair.streamed
    moves: dict[str, Callable[[], nn.Module]] = {
        "to": lambda: model.to("cpu"),
        "to its device": lambda: model.to(next(model.parameters()).device, torch.float32),
        "cpu": model.cpu,
        "float": model.float,
    }
    assert moves[move]() is model
    pair.check_forward()
    assert isinstance(_first(model), ParkedParameter)


class Writer(nn.Module):
    """A block that writes to its own weight in every forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inner = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.inner.weight
        if self.how == "no_grad":
            with torch.no_grad():
                weight.mul_(1.125)
        elif self.how == "data":
            weight.data.mul_(1.125)
        elif self.how == "detach":
            weight.detach()[3] += 1
        elif self.how == "assign":
            weight.data = weight.data * 1.125
        return self.inner(x)


@pytest.mark.parametrize("how", ["no_grad", "data", "detach", "assign"])
@pytest.mark.parametrize("source", ["file", "memory"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_writes_inside_a_forward_are_kept(
    how: str, source: str, mode: Callable[[], Any], tmp_path: Path
) -> None:
    model = nn.Sequential(*(Writer(how) for _ in range(4)))
    plain = copy.deepcopy(model)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    checkpoint = tmp_path / "w.safetensors" if source == "file" else None
    offload_tightly(model, checkpoint=checkpoint)
    x = _new(6, 2, 256)
    for step in range(3):
        with mode():
            assert_same(model(x), plain(x), f"forward {step}")
    for name, value in plain.state_dict().items():
        assert same_bytes(model.state_dict()[name], value), name


def test_an_embedding_that_renormalises_its_rows_is_the_plain_one() -> None:
    model = nn.Sequential(nn.Embedding(512, 256, max_norm=0.5), nn.Linear(256, 256))
    plain = copy.deepcopy(model)
    offload_tightly(model)
    ids = token_ids(9) % 512
    for _ in range(2):
        with torch.no_grad():
            assert_same(model(ids), plain(ids))
    assert same_bytes(model[0].weight, plain[0].weight)
    assert not same_bytes(F.embedding(ids, plain[0].weight), torch.zeros(1))


def test_a_group_with_an_exchanged_weight_lends_none_of_the_others() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    offload_tightly(model)
    block = model[0]
    torch.utils.swap_tensors(block.bias, nn.Parameter(torch.zeros(256)))
    weight = block.weight
    truth = weight.detach().clone()
    for _ in range(2):
        with pytest.raises(ts.UnsupportedError, match="exchanged"), torch.no_grad():
            model(torch.ones(1, 256))
        assert isinstance(weight, ParkedParameter)
        assert same_bytes(weight.detach(), truth)


@pytest.mark.parametrize("source", ["file", "memory"])
def test_a_value_set_aside_is_put_back(source: str, tmp_path: Path) -> None:
    """As averages of weights and adapters are swapped in and out."""
    pair = make_pair(source, tmp_path)

    def swap_in(model: nn.Module) -> torch.Tensor:
        weight = model.blocks[1].up.weight
        aside = weight.data
        weight.data = torch.zeros_like(aside)
        return aside

    asides = pair.on_both(swap_in)
    pair.check_forward("zeros are in")
    for weight, aside in zip(pair.weights, asides, strict=True):
        weight.data = aside
    pair.check_forward("the old value is back")


@pytest.mark.parametrize("source", ["file", "memory"])
def test_two_weights_change_places(source: str, tmp_path: Path) -> None:
    pair = make_pair(source, tmp_path)

    def exchange(model: nn.Module) -> None:
        one, other = model.blocks[0].up.weight, model.blocks[2].up.weight
        one.data, other.data = other.data, one.data

    for round_ in range(3):
        pair.on_both(exchange)
        pair.check_forward(f"round {round_}")


CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "to a type": lambda model: model.to(torch.bfloat16),
    "to meta": lambda model: model.to("meta"),
    "to shared memory": lambda model: model.share_memory(),
    "to empty": lambda model: model.to_empty(device="meta"),
    "of a part": lambda model: model[1:].half(),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_that_is_refused_converts_nothing(name: str) -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(2)
        layers = [nn.BatchNorm1d(64, affine=False), nn.Linear(64, 64), nn.BatchNorm1d(64)]
        model = nn.Sequential(*layers, *(nn.Linear(64, 64) for _ in range(4))).eval()
        model[0].running_mean.uniform_()
        return model

    model, plain, x = make(), make(), torch.ones(3, 64)
    smallest = ts.plan(model, ram_budget="1GiB", keep_resident=("1",)).smallest_budget_bytes
    ts.offload(model, ram_budget=smallest, keep_resident=("1",))
    with torch.no_grad(), pytest.raises(ts.UnsupportedError, match="restore"):
        CONVERSIONS[name](model)
    for tensor in (*model.parameters(), *model.buffers()):
        assert tensor.dtype in (torch.float32, torch.int64)
        assert not tensor.is_shared()
    with torch.no_grad():
        assert_same(model.to(model[1].weight.device)(x), plain(x), "refused")
        ts.restore(model)
        converted, expected = CONVERSIONS[name](model), CONVERSIONS[name](plain)
    if "meta" not in {tensor.device.type for tensor in expected.parameters()}:
        assert_same(converted.state_dict(), expected.state_dict(), "restored")


@pytest.mark.parametrize("name", ["t_", "transpose_", "swapaxes_", "as_strided_", "unsqueeze_"])
def test_another_shape_in_place_is_refused(pair: Pair, name: str) -> None:
    parked, _ = pair.weights
    arguments = {"t_": (), "as_strided_": ((2, 2), (1, 2)), "unsqueeze_": (0,)}.get(name, (0, 1))
    with torch.no_grad(), pytest.raises(ts.UnsupportedError, match="restore"):
        getattr(parked, name)(*arguments)
    pair.check_forward("refused")


def test_a_weight_is_pickled_in_its_forward(pair: Pair) -> None:
    parked, plain = pair.weights
    pickled: list[bytes] = []
    module = pair.streamed.blocks[1]
    handle = module.register_forward_hook(lambda *_: pickled.append(pickle.dumps(parked)))
    pair.check_forward("pickling")
    handle.remove()
    assert_same(pickle.loads(pickled[0]), plain)


@pytest.mark.parametrize("of", ["weight", "data", "detached"])
def test_a_held_storage_is_the_weights_after_forwards(pair: Pair, of: str) -> None:
    parts = {"weight": lambda w: w, "data": lambda w: w.data, "detached": lambda w: w.detach()}

    def hold(model: Stack) -> torch.UntypedStorage:
        storage: torch.UntypedStorage = parts[of](model.blocks[1].up.weight).untyped_storage()
        return storage

    storages = pair.on_both(hold)
    pair.check_forward("with a storage held")
    for value in (0.5, 0.25):
        for storage in storages:
            seen = torch.empty(0, device=storage.device).set_(storage, 0, (256, 256))
            seen.fill_(value)
            del seen
        pair.check_forward(f"filled with {value}")


def test_memory_that_is_written_to_its_file_stays_shared(tmp_path: Path) -> None:
    """A mapping for reading and writing is shared with all who map the file, as memory is."""
    array = np.memmap(tmp_path / "w.bin", dtype=np.float32, mode="w+", shape=(256, 256))
    array[:] = np.eye(256)
    array.flush()
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(4)))
    weight = nn.Parameter(torch.from_numpy(array))
    model[0].weight = weight
    offload_tightly(model)
    with torch.no_grad():
        model(torch.ones(1, 256))
        weight.mul_(2)
        assert array[0, 0] == 2
        array[:] *= 5
        assert weight[0, 0].item() == 10
