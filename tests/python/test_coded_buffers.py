"""Layers whose weights are codes in buffers, as those of GPTQ and AWQ: streamed, and buffers still."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorstream as ts
from coded_models import PackedLinear, make_packed
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from tensorstream.proxy import ParkedParameter

X = torch.randn(3, 512, generator=torch.Generator().manual_seed(2))
CODED = ("qweight", "scales", "g_idx")


@pytest.fixture(params=["host", "fake GPU"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fake GPU":
        use_fake_gpu(monkeypatch, homes=True)
    return str(request.param)


def buffers_of(model: Any) -> dict[str, int]:
    return {name: id(buffer) for name, buffer in model.named_buffers()}


def test_they_are_streamed_and_stay_buffers() -> None:
    model, plain = make_packed(), make_packed()
    before = buffers_of(model)
    analysis = ts.analyze(model)
    assert not analysis.left
    assert analysis.fixed_bytes == 6 * plain[0][0].shifts.nbytes
    coded = sum(getattr(block[0], name).nbytes for block in plain for name in CODED)
    assert analysis.weights_bytes == coded + 6 * plain[0][0].bias.nbytes
    offload_tightly(model, self_check=True)
    for _ in range(3):
        assert_same(model(X), plain(X))
    assert ts.stats(model).streamed_bytes > 0
    assert isinstance(model[0][0].qweight, ParkedParameter)
    assert buffers_of(model) == before
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    assert_same(model[2][0].matrix(), plain[2][0].matrix())
    ts.restore(model)
    assert buffers_of(model) == before
    assert all(type(buffer) is torch.Tensor for buffer in model.buffers())
    assert not any(name.startswith("_tensorstream") for b in model.buffers() for name in vars(b))
    assert_same(model(X), plain(X), "restored")
    assert_same(offload_tightly(model)(X), plain(X), "again")
    ts.set_budget(model, ram_budget=ts.estimate_memory(plain).everything_fits_bytes)
    ts.restore(model)
    assert all(type(buffer) is torch.Tensor for buffer in model.buffers()), "from residents"
    assert_same(model(X), plain(X))


def test_one_that_counts_is_assigned_by_a_forward() -> None:
    def counting(module: Any, _: Any) -> None:
        module.calls += 1
        module.seen = module.calls * 2

    models = [make_packed(), make_packed()]
    for model in models:
        for block in model:
            block[0].register_buffer("calls", torch.zeros(1))
            block[0].register_buffer("seen", torch.zeros(()))
            block[0].register_forward_pre_hook(counting)
    model, plain = models
    offload_tightly(model, self_check=True)
    for _ in range(3):
        assert_same(model(X), plain(X))
    assert_same(list(model.state_dict().values()), list(plain.state_dict().values()))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    ts.restore(model)
    assert_same(list(model.state_dict().values()), list(plain.state_dict().values()))


def test_states_and_copies_have_buffers() -> None:
    model, plain = offload_tightly(make_packed(), self_check=True), make_packed()
    assert list(model.state_dict()) == list(plain.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = make_packed()
    other[0][0].qweight.zero_()
    other.load_state_dict(torch.load(file))
    assert_same(other(X), plain(X))
    copied = copy.deepcopy(model[1][0])
    assert type(copied.qweight) is type(copy.copy(model[1][0].qweight)) is torch.Tensor
    assert_same(copied.matrix(), plain[1][0].matrix())
    pickled = io.BytesIO()
    torch.save(model[1][0].qweight, pickled)
    pickled.seek(0)
    loaded = torch.load(pickled)
    assert type(loaded) is torch.Tensor
    assert_same(loaded, plain[1][0].qweight)


def test_what_is_written_is_kept() -> None:
    model, plain, other = make_packed(), make_packed(), make_packed()
    for block in other:
        block[0].qweight.bitwise_xor_(0x11111111)
    offload_tightly(model, self_check=True)
    for source in (other, plain):
        model.load_state_dict(source.state_dict())
        assert_same(model(X), source(X))

    def flip(module: Any, *_: Any) -> None:
        module.qweight.bitwise_xor_(1)

    for of in (model, plain):
        of[1][0].scales.mul_(2)
        of[2][0].scales = of[2][0].scales * 3  # another object, which stays
        of[3][0].register_forward_hook(flip)
    for _ in range(3):
        assert_same(model(X), plain(X))
    ts.restore(model)
    assert_same(model(X), plain(X), "restored")


def test_budgets_and_conversions() -> None:
    model, plain = make_packed(), make_packed()
    estimate = ts.estimate_memory(model)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    offload_tightly(model, self_check=True)
    for budget in (fits, smallest, (smallest + fits) // 2, smallest):
        ts.set_budget(model, ram_budget=budget)
        assert_same(model(X), plain(X), f"{budget} bytes")
        assert (type(model[0][0].qweight) is torch.Tensor) == (budget == fits)
    for convert in (model.half, model.double, model.share_memory):
        with pytest.raises(ts.UnsupportedError):
            convert()
    qweight = model[0][0].qweight
    assert model.to("cpu").float()[0][0].qweight is qweight
    assert_same(model(X), plain(X))
    with pytest.raises(ts.BudgetError):
        ts.set_budget(model, ram_budget=1)
    assert_same(model(X), plain(X))
    failing = make_packed()
    with pytest.raises(ts.BudgetError):
        ts.offload(failing, ram_budget=smallest // 2)
    assert all(type(buffer) is torch.Tensor for buffer in failing.buffers())


def test_from_a_checkpoint(tmp_path: Any) -> None:
    plain = make_packed()
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    model = make_packed()
    budget = ts.estimate_memory(model).smallest_budget_bytes
    ts.offload(model, checkpoint=tmp_path / "model.safetensors", ram_budget=budget, self_check=True)
    for _ in range(2):
        assert_same(model(X), plain(X))
    assert ts.stats(model).streamed_disk_bytes + ts.stats(model).streamed_ram_bytes > 0
    with torch.device("meta"):
        bare = make_packed()
    for ours, theirs in zip(bare, plain, strict=True):
        ours[0].shifts = theirs[0].shifts  # no checkpoint has it
    ts.offload(bare, checkpoint=tmp_path / "model.safetensors", ram_budget=budget, self_check=True)
    for _ in range(2):
        assert_same(bare(X), plain(X), "from the meta device")
    assert all(type(block[0]._buffers["qweight"]) is ParkedParameter for block in bare)
    ts.restore(bare)
    assert all(type(buffer) is torch.Tensor for buffer in bare.buffers())
    assert_same(bare(X), plain(X), "restored")
    wrong = make_packed()
    wrong[3][0].qweight[5, 5] ^= 1
    with pytest.raises(ts.ConfigError, match=r"'3\.0\.qweight' of the model differs"):
        ts.offload(wrong, checkpoint=tmp_path / "model.safetensors", ram_budget=budget)
    assert type(wrong[3][0].qweight) is torch.Tensor


def test_other_buffers_stay() -> None:
    """Those that are small, not saved, or beside a matrix; and those that another tensor shares."""

    class Masked(nn.Module):
        def __init__(self, *, saved: bool, beside: bool, width: int) -> None:
            super().__init__()
            mask = torch.ones(width, width, dtype=torch.int32)
            self.register_buffer("mask", mask, persistent=saved)
            self.weight = nn.Parameter(torch.ones(width, width)) if beside else None

    model = nn.Sequential(
        Masked(saved=False, beside=False, width=512),
        Masked(saved=True, beside=True, width=512),
        Masked(saved=True, beside=False, width=64),
        *make_packed(2),
    )
    model[4][0].qweight = model[3][0].qweight.view(model[3][0].qweight.shape)
    kept = [model[i].mask for i in range(3)] + [model[i][0].shifts for i in (3, 4)]
    shared = model[3][0].qweight
    assert ts.analyze(model).fixed_bytes == sum(each.nbytes for each in kept) + shared.nbytes


def test_one_buffer_of_two_layers() -> None:
    model, plain = make_packed(), make_packed()
    for of in (model, plain):
        for name in CODED:
            setattr(of[4][0], name, getattr(of[1][0], name))
    offload_tightly(model, self_check=True)
    for _ in range(2):
        assert_same(model(X), plain(X))
    ts.restore(model)
    assert model[4][0].qweight is model[1][0].qweight
    assert isinstance(model[4][0], PackedLinear)
    assert_same(model(X), plain(X), "restored")
