"""Memory that a forward gives to its own weight by `data`, for as long as it runs or for good."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from safetensors.torch import save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu

_Linear = nn.Linear.forward


def _put_back(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """As fake quantisation does."""
    before = layer.weight.data
    layer.weight.data = before.round(decimals=1)
    output = _Linear(layer, x)
    layer.weight.data = before
    return output


def _put_back_written(layer: Any, x: torch.Tensor) -> torch.Tensor:
    before = layer.weight.data
    layer.weight.data = torch.zeros_like(before)
    with torch.no_grad():
        layer.weight.add_(0.5)
    output = _Linear(layer, x)
    layer.weight.data = before
    return output


def _written_where_it_was(layer: Any, x: torch.Tensor) -> torch.Tensor:
    before = layer.weight.data
    layer.weight.data = before * 2
    before.mul_(0.5)
    output = _Linear(layer, x)
    layer.weight.data = before
    return output


def _given_and_written(layer: Any, x: torch.Tensor) -> torch.Tensor:
    given = torch.full_like(layer.weight.data, 0.01)
    layer.weight.data = given
    given.mul_(2)
    return _Linear(layer, x)


def _set(layer: Any, x: torch.Tensor) -> torch.Tensor:
    given = layer.weight.detach() * 0.5
    with torch.no_grad():
        layer.weight.set_(given)
        given.add_(0.25)
    return _Linear(layer, x)


def _computes_with_what_was(layer: Any, x: torch.Tensor) -> torch.Tensor:
    before = layer.weight.data
    layer.weight.data = before * 0.5
    return F.linear(x, before, layer.bias)


def _transposed(layer: Any, x: torch.Tensor) -> torch.Tensor:
    layer.weight.data = layer.weight.data.t()
    return _Linear(layer, x)


def _of_itself(layer: Any, x: torch.Tensor) -> torch.Tensor:
    layer.weight.data = layer.weight.data
    return _Linear(layer, x)


def _both(layer: Any, x: torch.Tensor) -> torch.Tensor:
    layer.weight.data, layer.bias.data = layer.weight.data * 0.5, layer.bias.data + 1
    return _Linear(layer, x)


_FORWARDS = [
    _put_back,
    _put_back_written,
    _written_where_it_was,
    _given_and_written,
    _set,
    _computes_with_what_was,
    _transposed,
    _of_itself,
    _both,
]


def _pair(
    forward: Callable[[Any, torch.Tensor], torch.Tensor],
    where: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[nn.Module, nn.Module]:
    """A plain model whose layers run so, and the same streamed."""
    if where.startswith("gpu"):
        use_fake_gpu(monkeypatch, homes=where == "gpu")
    layer = type("Layer", (nn.Linear,), {"forward": forward})
    torch.manual_seed(0)
    plain = nn.Sequential(*(layer(256, 256) for _ in range(4)))
    model = copy.deepcopy(plain)
    save_file(model.state_dict(), folder / "x.safetensors")
    offload_tightly(model, checkpoint=folder / "x.safetensors" if where == "file" else None)
    return plain, model


_PLACES = pytest.mark.parametrize("where", ["file", "memory", "gpu", "gpu without homes"])


@_PLACES
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("forward", _FORWARDS)
def test_forwards_and_weights_are_those_of_the_plain_model(
    forward: Callable[[Any, torch.Tensor], torch.Tensor],
    mode: Callable[[], Any],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, model = _pair(forward, where, tmp_path, monkeypatch)
    x = torch.randn(2, 256)
    for number in range(3):
        with mode():
            expected = plain(x)
            assert_same(model(x), expected, f"forward {number}")
        for own, its in zip(model.parameters(), plain.parameters(), strict=True):
            assert_same(own, its, f"weight after forward {number}")
            assert own.stride() == its.stride()
    ts.restore(model)
    assert_same(list(model.parameters()), list(plain.parameters()))


@_PLACES
@pytest.mark.parametrize("forward", [each for each in _FORWARDS if each != _computes_with_what_was])
def test_gradients_are_those_of_the_plain_model(
    forward: Callable[[Any, torch.Tensor], torch.Tensor],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, model = _pair(forward, where, tmp_path, monkeypatch)
    inputs = [torch.randn(2, 256, requires_grad=True) for _ in range(2)]
    for number, x in enumerate(inputs):
        found = []
        for each in (plain, model):
            x.grad = None
            each.zero_grad()
            try:
                each(x).square().sum().backward()
                found.append([x.grad, *(p.grad for p in each.parameters())])
            except RuntimeError as error:  # what torch refuses of the plain model
                found.append(["refused", type(error)])
        assert found[0][0] == "refused" or len(found[0]) > 2
        assert_same(found[1], found[0], f"gradients {number}")
        assert_same(list(model.parameters()), list(plain.parameters()))


@_PLACES
def test_a_graph_of_what_was_there_before_is_refused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are on no place any more, and in no source."""
    _, model = _pair(_computes_with_what_was, where, tmp_path, monkeypatch)
    output = model(torch.randn(2, 256, requires_grad=True))
    with pytest.raises(
        RuntimeError, match=r"'3.weight' was written to.*after the forward that saved"
    ):
        output.sum().backward()


@pytest.mark.parametrize("where", ["file", "memory"])
def test_what_was_given_is_an_alias_after_the_forward(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(layer: Any, x: torch.Tensor) -> torch.Tensor:
        if "fast" not in vars(layer):
            layer.fast = layer.weight.detach() * 0.5
            layer.weight.data = layer.fast
        return _Linear(layer, x)

    plain, model = _pair(given, where, tmp_path, monkeypatch)
    x = torch.randn(2, 256)
    with torch.no_grad():
        for number in range(3):
            assert_same(model(x), plain(x), f"forward {number}")
            for each in (model, plain):
                each[1].fast.add_(0.125)
            assert_same(model[1].weight, plain[1].weight)


def test_an_alias_sees_writes_of_forwards_that_put_the_memory_back(tmp_path: Path) -> None:
    def put_back_then_write(layer: Any, x: torch.Tensor) -> torch.Tensor:
        output = _put_back(layer, x)
        if x[0, 0] > 0:
            with torch.no_grad():
                layer.weight.mul_(0.5)
        return output

    layer = type("Layer", (nn.Linear,), {"forward": put_back_then_write})
    plain = nn.Sequential(*(layer(256, 256) for _ in range(4)))
    save_file(plain.state_dict(), tmp_path / "x.safetensors")
    model = offload_tightly(copy.deepcopy(plain), checkpoint=tmp_path / "x.safetensors")
    with torch.no_grad():
        assert_same(model(-torch.ones(2, 256)), plain(-torch.ones(2, 256)))
        held = [each[0].weight.data for each in (model, plain)]
        assert_same(model(torch.ones(2, 256)), plain(torch.ones(2, 256)))
        assert_same(*held, "an alias of before")
        for alias in held:
            alias.add_(1)
        assert_same(model(torch.ones(2, 256)), plain(torch.ones(2, 256)))


def test_hooks_of_before_exchange_it(tmp_path: Path) -> None:
    def before(module: Any, _: Any) -> None:
        module.before = module.weight.data
        module.weight.data = module.before * 2

    def after(module: Any, *_: Any) -> None:
        module.weight.data = module.before
        del module.before

    plain = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    for layer in plain:
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
    model = offload_tightly(copy.deepcopy(plain))
    x = torch.randn(2, 256)
    with torch.no_grad():
        for number in range(3):
            assert_same(model(x), plain(x), f"forward {number}")


def test_the_memory_of_another_weight_is_refused_and_nothing_is_lost() -> None:
    class Sharing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.bias.data = self.weight.data[0]
            return super().forward(x)

    model = nn.Sequential(*(Sharing(256, 256) for _ in range(4)))
    before = [each.detach().clone() for each in model.parameters()]
    offload_tightly(model)
    with pytest.raises(ts.UnsupportedError, match=r"'0.bias'.*memory of '0.weight'"):
        model(torch.randn(2, 256))
    assert_same(list(model.parameters()), before)


class _Giving(nn.Linear):
    """Gives its weight's place to another one's parameter, and returns nothing, or what that computes."""

    def __init__(self, *, returns: bool) -> None:
        super().__init__(256, 256)
        self.returns = returns

    def forward(self, taker: nn.Linear, x: torch.Tensor) -> torch.Tensor | None:
        taker.weight.data = self.weight.detach()
        return _Linear(self, x) if self.returns else None


class _Taking(nn.Linear):
    """Calls children of which the first gives it memory: its weight is lent then, or that of `other`."""

    def __init__(self, *, lent: bool, returns: bool) -> None:
        super().__init__(256, 256)
        self.giving = _Giving(returns=returns)
        self.others = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
        self.other = nn.Linear(256, 256)
        self.lent = lent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.giving(self if self.lent else self.other, x)
        return super().forward(self.others(x))


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("lent", [False, True])
def test_a_place_that_is_given_to_another_weight_is_refused(*, lent: bool, returns: bool) -> None:
    model = nn.Sequential(*(_Taking(lent=lent, returns=returns) for _ in range(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    offload_tightly(model)
    x = torch.randn(2, 256)
    with pytest.raises(ts.UnsupportedError, match=r"'0.giving.weight'"), torch.no_grad():
        model(x)
    for layer in model:
        layer.others(x)  # takes the place of what was given
    assert_same(dict(model.state_dict()), before)
    assert_same(dict(ts.restore(model).state_dict()), before)


def _call_while_handling_an_error(module: nn.Module) -> Any:
    try:
        raise ValueError
    except ValueError:
        return module(torch.randn(2, 256))


@pytest.mark.parametrize("call", [lambda m: m(torch.randn(2, 256)), _call_while_handling_an_error])
def test_a_view_kept_by_a_forward_that_returns_nothing_is_refused(
    call: Callable[[nn.Module], Any],
) -> None:
    class Keeping(nn.Linear):
        def forward(self, x: torch.Tensor) -> None:
            self.kept = self.weight.data

    model = offload_tightly(nn.Sequential(*(Keeping(256, 256) for _ in range(4))))
    with pytest.raises(ts.UnsupportedError, match=r"view .*'0.weight' was kept"):
        call(model[0])


def test_a_forward_that_fails_raises_its_own_error_whatever_it_keeps() -> None:
    class Failing(nn.Linear):
        def forward(self, x: torch.Tensor) -> None:
            self.kept = self.weight.data
            raise KeyError("its own")

    model = offload_tightly(nn.Sequential(*(Failing(256, 256) for _ in range(4))))
    for _ in range(2):
        with warnings.catch_warnings(), pytest.raises(KeyError, match="its own"):
            warnings.simplefilter("error")
            model(torch.randn(2, 256))


def test_weights_that_change_places_keep_their_values() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(256, 256)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.a.data, self.b.data = self.b.data, self.a.data
            return x @ self.a - self.b.sum()

    plain = nn.Sequential(*(Changing() for _ in range(4)))
    model = offload_tightly(copy.deepcopy(plain))
    x = torch.randn(2, 256)
    with torch.no_grad():
        for number in range(3):
            assert_same(model(x), plain(x), f"forward {number}")
            assert_same(list(model.parameters()), list(plain.parameters()))


def test_a_layout_that_a_forward_gives_stays() -> None:
    class Last(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            last = self.weight.data.contiguous(memory_format=torch.channels_last)
            self.weight.data = last
            return super().forward(x)

    plain = nn.Sequential(*(Last(64, 64, 3, padding=1) for _ in range(4)))
    model = offload_tightly(copy.deepcopy(plain))
    x = torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        for number in range(3):
            assert_same(model(x), plain(x), f"forward {number}")
            assert model[0].weight.stride() == plain[0].weight.stride()


def test_a_parameter_of_a_lent_weight_is_refused() -> None:
    class Making(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, nn.Parameter(self.weight), self.bias)

    model = offload_tightly(nn.Sequential(*(Making(256, 256) for _ in range(4))))
    with pytest.raises(
        ts.UnsupportedError, match=r"nn.Parameter\(\) of the streamed weight '0.weight'"
    ):
        model(torch.randn(2, 256))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_weight_that_a_forward_swaps(mode: Callable[[], Any]) -> None:
    class Swapping(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.utils.swap_tensors(self.weight, nn.Parameter(self.weight.detach().clone() * 2))
            return super().forward(x)

    plain = nn.Sequential(*(Swapping(256, 256) for _ in range(4)))
    model = offload_tightly(copy.deepcopy(plain))
    x = torch.randn(2, 256)
    for number in range(2):
        with mode():
            assert_same(model(x), plain(x), f"forward {number}")
        assert_same(list(model.parameters()), list(plain.parameters()))
    ts.restore(model)
    assert_same(list(model.parameters()), list(plain.parameters()))


def test_a_lazily_conjugated_value_is_refused() -> None:
    class Conjugating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(128, 128, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.w.data = self.w.data.conj()
            return (x @ self.w).real.to(torch.complex64)

    model = offload_tightly(nn.Sequential(*(Conjugating() for _ in range(4))))
    before = [each.detach().clone() for each in model.parameters()]
    with pytest.raises(ts.UnsupportedError, match=r"'0.w'.*resolve_conj"):
        model(torch.randn(2, 128, dtype=torch.complex64))
    assert_same(list(model.parameters()), before)
    with pytest.raises(ts.UnsupportedError, match=r"'0.w'.*resolve_conj"):
        model[0].w.data = before[0].conj()
    assert_same(list(model.parameters()), before)


def _run(model: nn.Module, x: torch.Tensor, how: str) -> torch.Tensor:
    if how == "saved_tensors_hooks":
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            return model(x)
    reentrant = how == "reentrant"
    return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)


@_PLACES
@pytest.mark.parametrize("how", ["saved_tensors_hooks", "reentrant", "not reentrant"])
@pytest.mark.parametrize("forward", [_put_back, _given_and_written, _both])
def test_gradients_below_hooks_that_keep_what_they_are_given(
    forward: Callable[[Any, torch.Tensor], torch.Tensor],
    how: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_product(layer: Any, x: torch.Tensor) -> torch.Tensor:
        before = layer.weight.data
        layer.weight.data = before.round(decimals=1)
        output = x @ layer.weight
        layer.weight.data = before
        return output

    plain, model = _pair(
        by_product if forward is _put_back else forward, where, tmp_path, monkeypatch
    )
    x = torch.randn(2, 256, requires_grad=True)
    for number in range(2):
        found = []
        for each in (plain, model):
            x.grad = None
            each.zero_grad()
            _run(each, x, how).square().sum().backward()
            found.append([x.grad, *(p.grad for p in each.parameters() if p.grad is not None)])
        assert_same(found[1], found[0], f"gradients {number}")
        assert_same(list(model.parameters()), list(plain.parameters()))
