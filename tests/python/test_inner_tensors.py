"""Weights of classes of their own that are made of other tensors: those are streamed."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensorstream as ts
from coded_models import (
    WIDTH,
    Coded,
    Rows,
    Shifted,
    X,
    coded,
    make,
    parameter,
    rows_of,
    write_in_forwards,
)
from conftest import assert_same, offload_tightly, smallest_budget
from fake_gpu import use_fake_gpu
from tensorstream.flattened import inner_tensors
from tensorstream.inner_tensors import Wrapper
from tensorstream.proxy import ParkedParameter
from tensorstream.true_values import ParkedWrapper

pytestmark = pytest.mark.parametrize("kind", [Rows, Shifted])
Kind = type[Coded]
FACTORS = torch.linspace(-1, 1, WIDTH) * torch.linspace(0.2, 1, WIDTH)[:, None]


@pytest.fixture(params=["host", "fake GPU"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fake GPU":
        use_fake_gpu(monkeypatch, homes=True)
    return str(request.param)


@pytest.fixture
def plain(kind: Kind) -> Any:
    return make(kind)


@pytest.fixture
def model(kind: Kind) -> Any:
    return offload_tightly(make(kind), self_check=True)


def is_parked(weight: Any) -> bool:
    return isinstance(weight, ParkedWrapper)


def test_outputs_are_bit_identical_and_nothing_stays(kind: Kind, plain: Any) -> None:
    model = make(kind)
    weight = model[0][0].weight
    assert not ts.analyze(model).left
    assert ts.analyze(model).fixed_bytes == 0
    offload_tightly(model, self_check=True)
    for _ in range(3):
        assert_same(model(X), plain(X))
    assert ts.stats(model).streamed_bytes > 0
    assert is_parked(weight)
    assert isinstance(weight, kind)
    assert isinstance(weight, nn.Parameter)
    assert model[0][0].weight is weight
    seen: list[Any] = []
    model[0][0].register_forward_pre_hook(lambda *_: seen.append(type(weight)))
    assert_same(model(X), plain(X))
    assert seen == [kind]
    ts.restore(model)
    assert_same(model(X), plain(X), "restored")
    assert type(weight) is kind
    assert model[0][0].weight is weight
    assert all(type(inner.tensor) is torch.Tensor for inner in inner_tensors(weight))
    assert vars(weight).keys() == vars(plain[0][0].weight).keys()
    assert_same(offload_tightly(model)(X), plain(X), "again")


def test_every_look_between_uses_sees_the_truth(kind: Kind, model: Any, plain: Any) -> None:
    weight, true = model[0][0].weight, plain[0][0].weight
    operations: list[Callable[[Any], Any]] = [
        lambda w: w + 0,
        lambda w: F.linear(X, w),
        lambda w: torch.ops.aten.mul.Tensor(w, 2),
    ]
    looks: list[Callable[[Any], Any]] = [
        *operations,
        lambda w: F.linear(X, w, model[0][0].bias),
        lambda w: w.decoded(),
        lambda w: w.detach().decoded(),
        lambda w: w.data.decoded(),
        lambda w: rows_of(w).scale * 2,
        lambda w: torch.tensor(rows_of(w).largest),
        lambda w: rows_of(w).to(dtype=torch.float64).decoded(),
        lambda w: rows_of(w.clone()).codes,
        lambda w: pickle.loads(pickle.dumps(w)).decoded(),
        lambda w: copy.deepcopy(w).decoded(),
    ]
    for look in looks:
        assert_same(look(weight), look(true))
        assert is_parked(weight)
    for operation in operations:
        with torch.inference_mode():
            assert_same(operation(weight), operation(true), "in inference mode")
        with torch._C.DisableTorchFunctionSubclass():
            assert_same(operation(weight), operation(true), "past torch's functions")
    for name in ("shape", "dtype", "device", "nbytes", "requires_grad"):
        assert getattr(weight, name) == getattr(true, name)
    assert weight.stride() == true.stride()


def test_copies_and_states_are_plain(kind: Kind, model: Any, plain: Any) -> None:
    copied = copy.deepcopy(model)
    for ours, theirs in zip(copied, plain, strict=True):
        assert type(ours[0].weight) is kind
        assert isinstance(ours[0].weight, nn.Parameter)
        assert_same(ours[0].weight.decoded(), theirs[0].weight.decoded())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = make(kind)
    with torch.no_grad():
        other[0][0].weight.copy_(other[1][0].weight)
    other.load_state_dict(torch.load(file, weights_only=False))
    assert_same(other(X), plain(X))


def test_what_is_written_between_uses_is_kept(kind: Kind, model: Any, plain: Any) -> None:
    other = make(kind)
    with torch.no_grad():
        for block in other:
            block[0].weight.copy_(coded(block[0].weight.decoded() * FACTORS + 0.001, kind))
        for source in (other, plain):
            model.load_state_dict(source.state_dict())
            for _ in range(2):
                assert_same(model(X), source(X))
        for of in (model, plain):
            rows_of(of[1][0].weight).scale.mul_(2)  # an inner tensor alone
        assert_same(model(X), plain(X))
        with torch.inference_mode():
            for of in (model, plain):
                of[2][0].weight.copy_(of[3][0].weight)
        assert_same(model(X), plain(X))
        for of in (model, plain):
            with torch._C.DisableTorchFunctionSubclass():
                of[4][0].weight.copy_(of[5][0].weight)
        assert_same(model(X), plain(X))
        ts.restore(model)
        assert_same(model(X), plain(X), "restored")


def test_what_a_forward_writes_is_kept(kind: Kind, plain: Any) -> None:
    """In place torch raises the version of the wrapper alone."""
    model = make(kind)
    value = coded(FACTORS, kind)
    for of in (model, plain):
        write_in_forwards(of[2][0], value)
    offload_tightly(model, self_check=True)
    for _ in range(3):
        assert_same(model(X), plain(X))
    assert_same(model[2][0].weight.decoded(), value.decoded())
    for of in (model, plain):
        x = X.clone().requires_grad_()
        with pytest.raises(RuntimeError, match=r"modified by an inplace|was written to"):
            of(x).sum().backward()


def test_what_cannot_be_kept_is_refused(kind: Kind, model: Any, plain: Any) -> None:
    weight = model[0][0].weight
    for change in (
        lambda: setattr(weight, "data", coded(FACTORS, kind)),
        weight.zero_,  # exchanges its inner tensors
        lambda: weight.resize_(1),
        lambda: nn.Parameter(weight),
    ):
        with torch.no_grad(), pytest.raises(ts.UnsupportedError, match=r"'0\.0\.weight' cannot be"):
            change()
    assert_same(model(X), plain(X))


def test_conversions(kind: Kind, model: Any, plain: Any) -> None:
    weight = model[0][0].weight
    for convert in (
        model.half,
        lambda: model.to("meta"),
        model.double,
        model.share_memory,
    ):
        with pytest.raises(ts.UnsupportedError, match=r"[cC]all tensorstream\.restore"):
            convert()
    assert model.to("cpu") is model
    assert model.float().cpu()[0][0].weight is weight
    assert_same(model(X), plain(X))


def test_budgets_that_move(kind: Kind, model: Any, plain: Any) -> None:
    estimate = ts.estimate_memory(plain)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    weight = model[0][0].weight
    for budget in (fits, smallest, (smallest + fits) // 2, smallest, fits):
        ts.set_budget(model, ram_budget=budget)
        assert is_parked(weight) == (budget != fits)
        assert_same(model(X), plain(X), f"{budget} bytes")
        assert_same(weight.decoded(), plain[0][0].weight.decoded())
    model.half()  # all are plain, as Module.half() finds them
    ts.restore(model)


def test_weights_that_somebody_exchanges(kind: Kind, model: Any, plain: Any) -> None:
    given = [parameter(FACTORS * (i + 1), kind) for i in range(2)]
    for of in (model, plain):
        torch.utils.swap_tensors(of[1][0].weight, copy.deepcopy(given[0]))
        torch.utils.swap_tensors(of[5][0].weight, nn.Parameter(FACTORS.clone()))
    for _ in range(3):
        assert_same(model(X), plain(X), "swapped")
    for of in (model, plain):
        of[3][0].weight = copy.deepcopy(given[1])
    for _ in range(3):
        assert_same(model(X), plain(X), "another parameter")
    for of in (model, plain):
        rows = rows_of(of[4][0].weight)
        rows.scale = torch.full_like(rows.scale, 0.01)
    for _ in range(3):
        assert_same(model(X), plain(X), "another inner tensor")
    ts.restore(model)
    for _ in range(2):
        assert_same(model(X), plain(X), "restored")


def test_a_forward_that_fails(kind: Kind, model: Any, plain: Any) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    hook = model[3][1].register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            model(X)
    hook.remove()
    assert all(is_parked(block[0].weight) for block in model)
    assert_same(model(X), plain(X))


def test_gradients_through_them(kind: Kind, model: Any, plain: Any) -> None:
    """A graph saves a wrapper of the wrapper, whose bytes are elsewhere by then."""

    def gradient(of: Any, reentrant: bool | None) -> torch.Tensor:
        x = y = X.clone().requires_grad_()
        for block in of:
            run = block if reentrant is None else checkpoint
            options = {} if reentrant is None else {"use_reentrant": reentrant}
            y = run(*([y] if reentrant is None else [block, y]), **options)
        y.square().sum().backward()
        assert x.grad is not None
        return x.grad

    for reentrant in (None, True, False):
        expected = gradient(plain, reentrant)
        for _ in range(2):
            assert_same(gradient(model, reentrant), expected, f"checkpointed: {reentrant}")


def test_a_weight_that_is_written_before_backward(kind: Kind, model: Any) -> None:
    y = model(X.clone().requires_grad_())
    with torch.no_grad():
        model[2][0].weight.copy_(model[1][0].weight)
    with pytest.raises(RuntimeError, match=r"'2\.0\.weight\..* was written to"):
        y.sum().backward()


def test_weights_that_are_trained(kind: Kind, plain: Any) -> None:
    """transformers loads such weights as ones that are trained."""
    model = make(kind)
    for of in (model, plain):
        for block in of:
            block[0].weight.requires_grad_(True)
    offload_tightly(model, self_check=True)
    for of in (model, plain):
        for _ in range(2):
            of(X).square().sum().backward()
        F.linear(X, of[2][0].weight).square().sum().backward()  # between uses
    for ours, theirs in zip(model, plain, strict=True):
        assert_same(ours[0].weight.grad, theirs[0].weight.grad)
    weight = model[0][0].weight
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        weight.copy_(model[1][0].weight)
    assert copy.deepcopy(weight).requires_grad
    assert not weight.detach().requires_grad
    assert model.cpu()[0][0].weight is weight
    ts.restore(model)
    assert weight.requires_grad
    assert_same(model(X), plain(X))


def test_three_threads(kind: Kind, model: Any, plain: Any) -> None:
    expected = plain(X)
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                assert_same(model(X), expected)
        except BaseException as error:  # noqa: BLE001 - shown by the thread that started it
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_weight_of_two_modules(kind: Kind, plain: Any) -> None:
    model = make(kind)
    for of in (model, plain):
        of[4][0].weight = of[1][0].weight
    paths = [inner.path for inner in inner_tensors(model[1][0].weight)]
    ties = {tuple(f"{i}.0.weight.{path}" for i in (1, 4)) for path in paths}
    assert set(ts.analyze(model).ties) == ties
    offload_tightly(model, self_check=True)
    for _ in range(2):
        assert_same(model(X), plain(X))
    ts.restore(model)
    assert model[4][0].weight is model[1][0].weight
    assert_same(model(X), plain(X), "restored")


def test_a_table_of_rows_is_no_streamed_table(kind: Kind, where: str) -> None:
    """Rows of it are no rows of its inner tensors."""

    def tables() -> nn.Sequential:
        made = nn.Sequential(nn.Embedding(WIDTH, WIDTH), *make(kind))
        made[0].weight = parameter(FACTORS, kind)
        return made

    model, plain = offload_tightly(tables(), self_check=True), tables()
    ids = torch.tensor([[3, 1, 255], [0, 3, 3]])
    for _ in range(2):
        assert_same(model(ids), plain(ids))


def test_those_that_share_memory_stay(kind: Kind, plain: Any) -> None:
    model = make(kind)
    for of in (model, plain):
        rows_of(of[1][0].weight).scale = rows_of(of[2][0].weight).scale
    shared = "it shares memory with another parameter"
    assert ts.analyze(model).left == {"1.0.weight": shared, "2.0.weight": shared}
    offload_tightly(model, self_check=True)
    assert_same(model(X), plain(X))


def test_it_follows_its_inner_tensors_to_another_device(kind: Kind) -> None:
    """As to a GPU, for which the meta device stands here: no wrapper is told where it is, but made there."""
    weight = make(kind)[0][0].weight
    weight.requires_grad_(True)
    weight.told = "kept"
    weight.grad = FACTORS.clone()
    true = weight.decoded()
    wrapper = Wrapper(weight, ["w"])
    there = {path: part.data for path, part in wrapper.parts.items()}
    for path, value in there.items():
        wrapper.parts[path] = nn.Parameter(value.to("meta"), requires_grad=False)
    wrapper.take_apart()
    wrapper.follow()
    assert (weight.device.type, type(weight), weight.shape) == ("meta", kind, true.shape)
    assert isinstance(weight, nn.Parameter)
    assert (weight.requires_grad, weight.told, weight.grad.device.type) == (True, "kept", "meta")
    weight.grad = None  # from there nothing comes back
    held = weakref.ref(weight)
    with pytest.raises(ts.UnsupportedError, match="holds a weak reference to 'w'"):
        wrapper.check_can_move(torch.device("cpu"))
    del held
    wrapper.check_can_move(torch.device("cpu"))
    for inner in list(inner_tensors(weight)):
        assert inner.tensor is wrapper.parts[inner.path]
        part = nn.Parameter(there[inner.path], requires_grad=False)
        vars(part).update(vars(inner.tensor))  # a real one stays, and gets other memory
        wrapper.parts[inner.path] = part
        setattr(inner.holder, inner.name, part)
    wrapper.put_together()
    assert (weight.device.type, weight.requires_grad, weight.told) == ("cpu", True, "kept")
    assert_same(weight.decoded(), true)
    assert not any(isinstance(each.tensor, ParkedParameter) for each in inner_tensors(weight))


def test_a_budget_that_is_too_small(kind: Kind, plain: Any) -> None:
    model = make(kind)
    before = [inner.tensor for inner in inner_tensors(model[0][0].weight)]
    with pytest.raises(ts.BudgetError):
        ts.offload(model, ram_budget=smallest_budget(model) // 2)
    after = [inner.tensor for inner in inner_tensors(model[0][0].weight)]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert {type(one) for one in after} == {torch.Tensor}
    assert_same(model(X), plain(X))
