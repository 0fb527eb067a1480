"""A parked weight tells the truth: every read between uses gives what the plain model gives."""

from __future__ import annotations

import copy
import ctypes
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, same_bytes
from model_shapes import Block, token_ids
from parked_pair import Pair, make_pair
from tensorstream.forms import empty_at
from tensorstream.orchestrator import orchestrator_of
from tensorstream.proxy import ParkedParameter


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return make_pair(request.param, tmp_path)


X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
ROWS = torch.tensor([5, 0, 255, 5])

TENSOR_READS: dict[str, Callable[[nn.Parameter], Any]] = {
    "F.linear": lambda p: F.linear(X, p),
    "matmul": lambda p: X @ p,
    "left matmul": lambda p: p @ X.T,
    "einsum": lambda p: torch.einsum("bi,oi->bo", X, p),
    "index": lambda p: p[3],
    "element": lambda p: p[3, 4],
    "slice": lambda p: p[1:7, ::3],
    "negative index": lambda p: p[-1, ...],
    "index by tensor": lambda p: p[ROWS],
    "index by mask": lambda p: p[p > 0.03],
    "index_select": lambda p: p.index_select(0, ROWS),
    "embedding": lambda p: F.embedding(ROWS, p),
    "detach": lambda p: p.detach(),
    "data": lambda p: p.data,
    "numpy": lambda p: torch.from_numpy(p.detach().numpy().copy()),
    "np.asarray": lambda p: torch.from_numpy(np.asarray(p.detach()).copy()),
    "dlpack": lambda p: torch.from_dlpack(p.detach()),
    "tolist": lambda p: torch.tensor(p.tolist()),
    "cpu": lambda p: p.cpu(),
    "to its device": lambda p: p.to("cpu"),
    "to its type": lambda p: p.to(torch.float32),
    "to like": lambda p: p.to(X),
    "to float64": lambda p: p.to(torch.float64),
    "half": lambda p: p.half(),
    "clone": lambda p: p.clone(),
    "contiguous": lambda p: p.contiguous(),
    "transposed": lambda p: p.T,
    "reshape": lambda p: p.reshape(-1)[100:110],
    "view as int": lambda p: p.detach().view(torch.int32),
    "chunk": lambda p: p.chunk(3),
    "unbind": lambda p: p.unbind(0)[7],
    "iteration": lambda p: list(p)[200],
    "sum": lambda p: p.sum(),
    "norm": torch.linalg.vector_norm,
    "max": lambda p: p.max(dim=1),
    "negation": lambda p: -p,
    "left operand": lambda p: p * 2 + 1,
    "right operand": lambda p: 1 - p,
    "comparison": lambda p: p == p.clone(),
    "stack of itself": lambda p: torch.stack([p, p]),
    "where": lambda p: torch.where(p > 0, p, 0),
    "zeros_like": torch.zeros_like,
    "copy into another": lambda p: torch.empty(256, 256).copy_(p.detach()),
    "item": lambda p: torch.tensor(p[2, 2].item()),
    "float": lambda p: torch.tensor(float(p.detach().mean())),
    "storage": lambda p: torch.tensor([p.untyped_storage()[i] for i in range(64)]),
    "functional_call": lambda p: torch.func.functional_call(
        nn.Linear(256, 256, bias=False), {"weight": p}, (X,)
    ),
    "Parameter of its data": lambda p: nn.Parameter(p.data),
}


@pytest.mark.parametrize("read", TENSOR_READS)
def test_reads_give_the_true_value(pair: Pair, read: str) -> None:
    parked, plain = pair.weights
    with torch.no_grad():
        expected = TENSOR_READS[read](plain)
        assert_same(TENSOR_READS[read](parked), expected, "without gradients")
        assert type(parked) is ParkedParameter
    assert_same(TENSOR_READS[read](parked), TENSOR_READS[read](plain), "with gradients")
    pair.check_forward()


FACTS: dict[str, Callable[[nn.Parameter], Any]] = {
    "dtype": lambda p: p.dtype,
    "shape": lambda p: p.shape,
    "size": lambda p: (p.size(), p.size(0)),
    "stride": lambda p: (p.stride(), p.stride(0)),
    "is_contiguous": lambda p: p.is_contiguous(),
    "storage_offset": lambda p: p.storage_offset(),
    "device": lambda p: p.device,
    "get_device": lambda p: p.get_device(),
    "requires_grad": lambda p: p.requires_grad,
    "is_leaf": lambda p: p.is_leaf,
    "grad": lambda p: p.grad,
    "grad_fn": lambda p: p.grad_fn,
    "numel": lambda p: (p.numel(), p.nelement()),
    "element_size": lambda p: p.element_size(),
    "nbytes": lambda p: (p.nbytes, p.itemsize),
    "ndim": lambda p: (p.ndim, p.dim()),
    "len": len,
    "layout": lambda p: p.layout,
    "is_floating_point": lambda p: p.is_floating_point(),
    "is_sparse": lambda p: p.is_sparse,
    "is_meta": lambda p: p.is_meta,
    "is_inference": lambda p: p.is_inference(),
    "storage size": lambda p: p.untyped_storage().nbytes(),
    "isinstance": lambda p: (isinstance(p, nn.Parameter), isinstance(p, torch.Tensor)),
    "repr": repr,
    "format of all": lambda p: f"{p}",
    "str": str,
    "format": lambda p: f"{p[0, 0]:.4f}",
    "bool of an element": lambda p: bool(p[0, 0]),
    "torch.is_tensor": torch.is_tensor,
}


@pytest.mark.parametrize("fact", FACTS)
def test_facts_are_those_of_the_plain_weight(pair: Pair, fact: str) -> None:
    parked, plain = pair.weights
    assert FACTS[fact](parked) == FACTS[fact](plain)


def test_a_parameter_made_of_a_parked_one_is_refused(pair: Pair) -> None:
    parked, plain = pair.weights
    with pytest.raises(ts.UnsupportedError, match=r"weight\.data"):
        nn.Parameter(parked)
    assert same_bytes(nn.Parameter(parked.data), plain)


def test_equality_and_stacks_of_two_parked_weights(pair: Pair) -> None:
    def both(model: nn.Module) -> list[nn.Parameter]:
        return [model.blocks[0].up.weight, model.blocks[1].up.weight]

    one, other = both(pair.streamed)
    assert torch.equal(one, pair.plain.blocks[0].up.weight)
    assert torch.equal(pair.plain.blocks[0].up.weight, one)
    assert torch.equal(one, one)
    assert not torch.equal(one, other)
    for join in (torch.stack, torch.cat, lambda pair: pair[0] @ pair[1]):
        got, expected = pair.on_both(lambda model, join=join: join(both(model)))
        assert_same(got, expected)
    assert one in {one, other}
    assert {id(one): 1}[id(pair.streamed.blocks[0].up.weight)] == 1


def test_addresses_are_distinct_and_hold_the_true_bytes(pair: Pair) -> None:
    parameters = dict(pair.streamed.named_parameters())
    addresses = {name: p.data_ptr() for name, p in parameters.items()}
    assert len(set(addresses.values())) == len(addresses), "a search for ties would tie these"
    storages = {p.untyped_storage().data_ptr() for p in parameters.values()}
    assert storages == set(addresses.values())
    for name, plain in pair.plain.named_parameters():
        stored = ctypes.string_at(addresses[name], plain.nbytes)
        assert stored == plain.detach().numpy().tobytes(), name
    ctypes.memset(addresses["blocks.1.up.weight"], 0, 4)
    with torch.no_grad():
        pair.plain.blocks[1].up.weight[0, 0] = 0
    del parameters
    pair.check_forward("after a write through an address")
    loans = orchestrator_of(pair.streamed).loans
    assert not loans.weights, "what was pointed at is still kept"


def test_storage_while_parked_is_poison(pair: Pair) -> None:
    parked, plain = pair.weights
    with torch._C.DisableTorchFunctionSubclass():
        slipped_past = torch.nn.functional.linear(X, parked)
        stored = parked.untyped_storage().nbytes()
    assert torch.isnan(slipped_past).all()
    assert stored == parked.element_size(), "a parked weight takes no memory"
    assert not torch.isnan(plain).any()


def test_state_dict_and_parameters_are_whole_and_true(pair: Pair) -> None:
    got, expected = pair.on_both(lambda model: model.state_dict())
    assert list(got) == list(expected)
    assert all(same_bytes(got[name], expected[name]) for name in expected)
    assert {type(value) for value in got.values()} == {torch.Tensor}
    got, expected = pair.on_both(lambda model: dict(model.named_parameters()))
    assert list(got) == list(expected)
    assert all(same_bytes(got[name], expected[name]) for name in expected)
    kept = pair.streamed.state_dict(keep_vars=True)
    assert kept["blocks.1.up.weight"] is pair.streamed.blocks[1].up.weight
    pair.check_forward()


def _through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def _through_torch_save(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": _through_pickle,
    "torch.save": _through_torch_save,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_parameter_is_a_plain_one_of_its_own(pair: Pair, way: str) -> None:
    parked, plain = pair.weights
    copied = COPIES[way](parked)
    assert type(copied) is nn.Parameter
    assert copied.requires_grad == parked.requires_grad
    assert same_bytes(copied, plain)
    with torch.no_grad():
        copied.zero_()
    assert same_bytes(parked, plain)
    assert type(parked) is ParkedParameter


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_model_is_a_plain_working_one(pair: Pair, way: str) -> None:
    copied = COPIES[way](pair.streamed)
    assert {type(p) for p in copied.parameters()} == {nn.Parameter}
    assert not any(hasattr(p, "_tensorstream_weight") for p in copied.parameters())
    with pytest.raises(ts.ConfigError, match="not offloaded"):
        ts.stats(copied)
    Pair(pair.plain, copied).check_forward("the copy")
    pair.check_forward("the original")
    acquires = ts.stats(pair.streamed).acquires
    copied(token_ids(2) % 512)
    assert ts.stats(pair.streamed).acquires == acquires, "the copy drives the original's engine"
    ts.offload(copied, ram_budget=ts.estimate_memory(copied).smallest_budget_bytes)
    assert hooks_of(copied)
    Pair(pair.plain, copied).check_forward("the copy, offloaded")


def test_a_copied_block_is_a_plain_working_one(pair: Pair) -> None:
    copied = copy.deepcopy(pair.streamed.blocks[1])
    assert type(copied) is Block
    with torch.no_grad():
        assert_same(copied(X), pair.plain.blocks[1](X))


def test_files_written_of_an_offloaded_model_are_those_of_the_plain_one(
    pair: Pair, tmp_path: Path
) -> None:
    (streamed, plain), names = pair.on_both(lambda model: model.state_dict()), list
    for name, tensors in (("streamed", streamed), ("plain", plain)):
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
        torch.save(tensors, tmp_path / f"{name}.pt")
    safetensors.torch.save_model(pair.streamed, str(tmp_path / "of_model.safetensors"))
    expected = (tmp_path / "plain.safetensors").read_bytes()
    assert (tmp_path / "streamed.safetensors").read_bytes() == expected
    written = safetensors.torch.load_file(tmp_path / "of_model.safetensors")
    assert names(written) and all(same_bytes(written[name], plain[name]) for name in plain)
    parked, plain_weight = pair.weights
    one = safetensors.torch.load(safetensors.torch.save({"w": parked}))
    assert same_bytes(one["w"], plain_weight)
    safetensors.torch.save_file(dict(pair.streamed.named_parameters()), tmp_path / "p.safetensors")
    written = safetensors.torch.load_file(tmp_path / "p.safetensors")
    assert all(same_bytes(value, plain[name]) for name, value in written.items())
    loaded = torch.load(tmp_path / "streamed.pt")
    assert all(same_bytes(loaded[name], plain[name]) for name in plain)


class Watching(nn.Module):
    """A block that notes what its weight is while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(256, 256)
        self.seen: list[tuple[int, bool, float]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.inner.weight
        self.seen.append((id(weight), isinstance(weight, nn.Parameter), weight[0, 0].item()))
        return self.inner(x) + F.linear(x, weight)


def test_parameters_keep_their_identity_before_during_and_after_use() -> None:
    model = nn.Sequential(*(Watching() for _ in range(4)))
    plain = copy.deepcopy(model)
    before = dict(model.named_parameters())
    ts.offload(model, ram_budget=ts.estimate_memory(model).smallest_budget_bytes)
    assert hooks_of(model)
    for _ in range(2):
        with torch.no_grad():
            assert_same(model(X), plain(X))
        parked = dict(model.named_parameters())
        assert parked.keys() == before.keys()
        assert all(parked[name] is before[name] for name in before)
    for module, twin in zip(model, plain, strict=True):
        expected = (id(module.inner.weight), True, twin.inner.weight[0, 0].item())
        assert module.seen == [expected] * 2
    ts.restore(model)
    assert all(value is before[name] for name, value in model.named_parameters())


def test_reads_between_uses_keep_no_memory(tmp_path: Path) -> None:
    pair = make_pair("file", tmp_path)
    loans = orchestrator_of(pair.streamed).loans
    held = pair.weights[0].detach()
    assert loans.weights, "a value that somebody holds is watched"
    del held
    assert same_bytes(pair.streamed.blocks[0].up.weight[1], pair.plain.blocks[0].up.weight[1])
    _ = pair.streamed.blocks[0].up.weight.dtype, pair.streamed.blocks[0].up.bias.sum()
    assert not loans.weights, "a dropped value is still kept"
    values = pair.streamed.state_dict()
    del values
    pair.check_forward()
    assert not loans.weights, "a dropped state_dict is still kept after a forward"
    assert ts.stats(pair.streamed).source_ram_bytes == 0


def test_rows_of_an_embedding_are_read_without_its_table(tmp_path: Path) -> None:
    pair = make_pair("file", tmp_path)
    table = pair.streamed.table
    assert isinstance(table.weight, ParkedParameter)
    for ids in (ROWS, ROWS.int(), ROWS.reshape(2, 2), torch.tensor(3), torch.zeros(0, dtype=int)):
        before = ts.stats(pair.streamed).on_demand_bytes
        with torch.no_grad():
            assert_same(table(ids), pair.plain.table(ids))
        read = ts.stats(pair.streamed).on_demand_bytes - before
        assert read == ids.numel() * 256 * 4
    for ids in (torch.tensor([512]), torch.tensor([-1]), torch.tensor([2**40])):
        messages = []
        for model in (pair.streamed, pair.plain):
            with pytest.raises(IndexError) as raised:
                model.table(ids)
            messages.append(str(raised.value))
        assert messages[0].startswith(messages[1])
    for ids in (ROWS.double(), ROWS.bool()):
        for model in (pair.streamed, pair.plain):
            with pytest.raises(RuntimeError):
                model.table(ids)
    pair.check_forward("after refused rows")


@pytest.mark.parametrize("line_offset", [0, 8, 40])
def test_a_value_is_all_of_its_storage_wherever_its_cache_line_begins(line_offset: int) -> None:
    """As that of a weight of its own, which torch.as_strided and safetensors go by."""
    form = torch.empty(48, 32, dtype=torch.float64, device="meta").t()
    value = empty_at(form, line_offset)
    assert (value.shape, value.stride(), value.storage_offset()) == ((32, 48), (1, 32), 0)
    assert value.untyped_storage().nbytes() == form.nbytes
    assert value.data_ptr() % 64 == line_offset or line_offset == 0
    storage = value.untyped_storage()
    assert torch._C._storage_Use_Count(storage._cdata) == 2, "of the value, and of this name"


def test_weights_of_a_file_of_any_offsets_are_saved_as_models_are(tmp_path: Path) -> None:
    plain = nn.Sequential(*(nn.Linear(250, 250) for _ in range(4)))  # biases of 1,000 bytes
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(plain.state_dict(), path)
    model = offload_tightly(copy.deepcopy(plain).to("meta"), checkpoint=path)
    for weight, expected in zip(model.parameters(), plain.parameters(), strict=True):
        seen = torch.as_strided(weight, weight.shape, weight.stride(), weight.storage_offset())
        assert_same(seen, expected)
    safetensors.torch.save_model(model, str(tmp_path / "saved.safetensors"))
    saved = safetensors.torch.load_file(tmp_path / "saved.safetensors")
    assert_same({name: saved[name] for name in plain.state_dict()}, dict(plain.state_dict()))
