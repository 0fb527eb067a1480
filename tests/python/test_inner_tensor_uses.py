"""What libraries and users do with weights that are made of others, while these are streamed."""

from __future__ import annotations

import copy
import gc
import io
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensorstream as ts
from coded_models import Coded, Rows, Shifted, X, coded, make, rows_of, write_in_forwards
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from tensorstream import true_values
from tensorstream.flattened import inner_tensors
from tensorstream.true_values import ParkedWrapper
from test_inner_tensors import FACTORS

pytestmark = pytest.mark.parametrize("kind", [Rows, Shifted])
Kind = type[Coded]


@pytest.fixture(params=["host", "fake GPU"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fake GPU":
        use_fake_gpu(monkeypatch, homes=True)
    return str(request.param)


def loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def assert_plain(weight: Any, kind: Kind) -> None:
    """It is of its class, with plain tensors, and nothing of ours."""
    assert type(weight) is kind
    assert {type(inner.tensor) for inner in inner_tensors(weight)} == {torch.Tensor}
    told = [name for inner in inner_tensors(weight) for name in vars(inner.tensor)]
    assert not [name for name in [*told, *vars(weight)] if "tensorstream" in name]


@pytest.mark.parametrize("way", ["data", "detach"])
def test_what_a_forward_writes_through_an_alias_is_kept(kind: Kind, way: str) -> None:
    value = coded(FACTORS, kind)

    def write(module: Any, *_: Any) -> None:
        (module.weight.data if way == "data" else module.weight.detach()).copy_(value)

    model, plain = make(kind), make(kind)
    for of in (model, plain):
        of[2][0].register_forward_hook(write)
    offload_tightly(model, self_check=True)
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(X), plain(X))
        ts.restore(model)
        assert_same(model(X), plain(X), "restored")


class Handing(nn.Module):
    """Hands its weight out beside what it computes."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x), self.linear.weight.detach()


def test_an_alias_that_a_module_returns_is_a_copy(kind: Kind) -> None:
    handing, plain = (nn.ModuleList(Handing(block[0]) for block in make(kind)) for _ in range(2))
    offload_tightly(handing)
    for _ in range(2):
        taken = [module(X) for module in handing]
        for (y, weight), theirs in zip(taken, plain, strict=True):
            assert_same([y, weight + 0], [theirs(X)[0], theirs(X)[1] + 0])


def test_what_is_taken_after_an_interrupt(kind: Kind) -> None:
    """A forward that Ctrl-C ends leaves the group as it was lent, and its place is another's soon."""
    model, plain = offload_tightly(make(kind), self_check=True), make(kind)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model[3][0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    hook.remove()
    assert type(model[3][0].weight) is kind
    state = model.state_dict()
    for name, theirs in plain.state_dict().items():
        assert_same(state[name] + 0, theirs + 0, name)
    for _ in range(2):
        assert_same(model(X), plain(X))
    for name, theirs in plain.state_dict().items():
        assert_same(state[name] + 0, theirs + 0, name)


def test_gradients_that_are_asked_for_recompute_with_true_values(kind: Kind) -> None:
    gradients = []
    for model in (make(kind), offload_tightly(make(kind))):
        weight = model[2][0].weight.requires_grad_(True)

        def run(x: torch.Tensor, of: Any = model) -> Any:
            return of(x) * of[4][0].bias + F.linear(x, of[3][0].weight)

        x = X.clone().requires_grad_()
        loss: Any = checkpoint(run, x, use_reentrant=False)
        gradients.append(torch.autograd.grad(loss.square().sum(), [weight, x]))
    assert_same(gradients[1], gradients[0])
    assert torch.isfinite(gradients[0][0]).all()


class Gained(Rows):
    """With an attribute that counts, and that it does not come apart into."""

    inner_names: ClassVar[list[str]] = ["codes", "scale"]

    def __init__(self, *inner: torch.Tensor) -> None:
        super().__init__(*inner)
        self.gain = 1.0

    def __hash__(self) -> int:
        return id(self)

    def set_gain(self, gain: float) -> None:
        self.gain = gain

    def decoded(self) -> torch.Tensor:
        return super().decoded() * self.gain


@pytest.mark.parametrize("trained", [False, True])
def test_attributes(kind: Kind, trained: bool) -> None:
    model, plain = make(kind), make(kind)
    for of in (model, plain):
        for block in of:
            rows = rows_of(block[0].weight)
            block[0].weight = nn.Parameter(Gained(rows.codes, rows.scale), requires_grad=trained)
        of[1][0].weight.gain = 2.0
    offload_tightly(model, self_check=True)
    for of in (model, plain):
        of[2][0].weight.set_gain(3.0)
    for _ in range(2):
        assert_same(model(X), plain(X))
        for i in (1, 2):
            assert model[i][0].weight.gain == i + 1
            assert_same(F.linear(X, model[i][0].weight), F.linear(X, plain[i][0].weight))
    weight = model[1][0].weight
    assert weight in {weight}
    ts.restore(model)
    assert weight.gain == 2
    assert_same(model(X), plain(X), "restored")


def test_those_with_inner_tensors_that_are_trained_stay(kind: Kind) -> None:
    model = make(kind)
    rows_of(model[1][0].weight).scale.requires_grad_(True)
    (reason,) = ts.analyze(model).left.values()
    assert "scale' is trained" in reason


def test_estimates_hold_nothing(kind: Kind) -> None:
    """What an estimate looked at is no holder of the weights' memory, also before it is collected."""
    model, plain = make(kind), make(kind)
    value = coded(FACTORS, kind)
    for of in (model, plain):
        write_in_forwards(of[2][0], value)
    gc.collect()
    gc.disable()
    try:
        offload_tightly(model)
        for _ in range(2):
            assert_same(model(X), plain(X))
    finally:
        gc.enable()


def test_conversions_to_what_it_is_where_all_fits(kind: Kind) -> None:
    model, plain = make(kind), make(kind)
    estimate = ts.estimate_memory(plain)
    offload_tightly(model)
    ts.set_budget(model, ram_budget=estimate.everything_fits_bytes)
    if kind is Shifted:  # whose own to() makes no other
        assert model.to("cpu").float() is model
        half = (estimate.smallest_budget_bytes + estimate.everything_fits_bytes) // 2
        ts.set_budget(model, ram_budget=half)
        assert any(isinstance(block[0].weight, ParkedWrapper) for block in model)
    assert_same(model(X), plain(X))


def test_a_copy_by_position_is_one(kind: Kind) -> None:
    model, plain = offload_tightly(make(kind)), make(kind)
    weight = model[0][0].weight
    copied = weight.to(torch.float32, False, True)
    assert copied is not weight
    rows_of(copied).scale.zero_()
    assert_same(model(X), plain(X))
    assert weight.to(torch.float32, False, False) is weight


@pytest.mark.parametrize("budget", ["everything", "little"])
def test_copies(kind: Kind, budget: str) -> None:
    model, plain = make(kind), make(kind)
    estimate = ts.estimate_memory(plain)
    little, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    ts.offload(model, ram_budget=fits if budget == "everything" else little)
    weight, true = model[1][0].weight, plain[1][0].weight
    for made in (copy.deepcopy(weight), loaded(weight), loaded(dict(model.named_parameters()))):
        one = made["1.0.weight"] if isinstance(made, dict) else made
        assert_plain(one, kind)
        assert isinstance(one, nn.Parameter)
        assert_same(one + 0, true + 0)
        again = nn.Sequential(*make(kind))
        again[1][0].weight = one
        assert not ts.analyze(again).left
    lent: list[Any] = []
    model[1][0].register_forward_pre_hook(lambda *_: lent.append(copy.deepcopy(weight)))
    model(X)
    assert_plain(lent[0], kind)
    assert_same(lent[0] + 0, true + 0)


def test_a_copy_of_a_model_reads_each_weight_once(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = offload_tightly(make(kind))
    reads: list[Any] = []
    use = true_values.use
    monkeypatch.setattr(true_values, "use", lambda part: reads.append(part) or use(part))
    copy.deepcopy(model)
    assert len(reads) == len(model) * len(list(inner_tensors(model[0][0].weight)))


def test_inner_tensors_held_over_the_end(kind: Kind) -> None:
    model = offload_tightly(make(kind))
    scale = rows_of(model[0][0].weight).scale
    ts.restore(model)
    assert not [name for name in vars(scale) if "tensorstream" in name]
    assert_plain(model[0][0].weight, kind)


def test_a_weight_of_a_model_that_is_gone(kind: Kind) -> None:
    first, plain = make(kind), make(kind)
    ts.offload(first, ram_budget=ts.estimate_memory(plain).everything_fits_bytes)
    second = make(kind)
    second[2][0].weight = first[1][0].weight
    plain[2][0].weight = plain[1][0].weight
    del first
    gc.collect()
    offload_tightly(second)
    for _ in range(2):
        assert_same(second(X), plain(X))
