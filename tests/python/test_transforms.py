"""torch.func over streamed modules: the plain result, or one clear error where torch keeps the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import tensorstream as ts
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu

WIDTH = 256


class Reader(nn.Module):
    """Layers that use their own weights, each other's, and one in a conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4 * WIDTH, WIDTH)
        self.first, self.second, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + nn.functional.linear(x, self.second.weight)
        return self.last(torch.tanh(self.second(x)) * self.first.weight.sum())


def make(*, trainable: bool) -> Reader:
    torch.manual_seed(11)
    return Reader().requires_grad_(trainable)


def one_dual(model: Reader) -> torch.Tensor:
    with forward_ad.dual_level():
        output = model(forward_ad.make_dual(X, torch.ones_like(X)))
        tangent: Any = forward_ad.unpack_dual(output).tangent
        return tangent.clone()


def doubled(model: Reader) -> dict[str, torch.Tensor]:
    return {name: weight.detach() * 2 for name, weight in model.named_parameters()}


# torch makes its rules for forward mode by TorchScript, of which it warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def kept_read(model: Reader) -> torch.Tensor:
    """A view of a weight that is taken in a transform, and used after it."""
    kept: list[torch.Tensor] = []

    def read(x: torch.Tensor) -> torch.Tensor:
        kept.append(model.second.weight.detach())
        return (x @ kept[0]).sum()

    return grad(read)(X) + model.second.weight.detach()[:3]


X = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)
INDICES = torch.tensor([4, 0, 7])

Transform = Callable[[Reader], Any]

# With weights that need gradients or not.
GIVEN: dict[str, Transform] = {
    "vmap": lambda m: vmap(m)(X).detach(),
    "jvp": lambda m: jvp(m, (X,), (torch.ones_like(X),))[1].detach(),
    "jvp of rows": lambda m: vmap(lambda x: jvp(m, (x,), (x,))[1])(X).detach(),
    "dual": lambda m: one_dual(m).detach(),
    "jacfwd": lambda m: jacfwd(m)(X[0]).detach(),
    "other weights": lambda m: functional_call(m, doubled(m), (X,)),
    "gradients of other weights": lambda m: list(
        grad(lambda w: functional_call(m, w, (X,)).sum())(doubled(m)).values()
    ),
    "several models": lambda m: vmap(lambda w: functional_call(m, w, (X,)))(
        {name: torch.stack([w, w]) for name, w in doubled(m).items()}
    ),
    "rows": lambda m: vmap(m.table)(INDICES).detach(),
    "rows in a transform": lambda m: jvp(lambda x: m.last(m.table(INDICES) * x), (X,), (X,))[
        1
    ].detach(),
    "a read": lambda m: vmap(lambda x: x @ m.second.weight)(X).detach(),
    "a read that is kept": kept_read,
    "gradient of a weight": lambda m: grad(lambda w: (X @ w).sum())(m.second.weight),
    "tangent of a weight": lambda m: jvp(lambda w: X @ w, (m.second.weight,), (m.last.weight,))[1],
    "jacobian of autograd": lambda m: torch.autograd.functional.jacobian(m, X[0]),
}
# torch.func saves weights for backward past the hooks that have them fetched again.
REFUSED: dict[str, Transform] = {
    "grad": lambda m: grad(lambda x: m(x).sum())(X),
    "grad of rows": lambda m: vmap(grad(lambda x: m(x).sum()))(X),
    "vjp": lambda m: vjp(m, X)[1](X)[0],
    "jacrev": lambda m: jacrev(m)(X[0]),
    "hessian": lambda m: hessian(lambda x: m(x).sum())(X[0]),
}


@pytest.fixture(params=["host", "gpu", "gpu without homes"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "host":
        use_fake_gpu(monkeypatch, homes=request.param == "gpu")
    name: str = request.param
    return name


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", GIVEN)
def test_transforms_give_the_plain_result(name: str, trainable: bool, device: str) -> None:
    plain, model = make(trainable=trainable), offload_tightly(make(trainable=trainable))
    for round_ in range(2):
        assert_same(GIVEN[name](model), GIVEN[name](plain), f"{name} on {device}, round {round_}")
    with torch.no_grad():
        assert_same(model(X), plain(X), "a forward afterwards")


@pytest.mark.parametrize("writes", [False, True])
def test_a_value_that_is_held_while_a_transform_runs(writes: bool, device: str) -> None:
    """What it is worth is looked at as the forward begins, amidst the transform's wrappers."""
    plain, model = make(trainable=False), offload_tightly(make(trainable=False))
    for each in (plain, model):
        values = {name: value.detach().clone() for name, value in each.named_parameters()}
        if writes:
            each.last.weight.data.mul_(2)
        held = each.last.weight.detach()
        if each is plain:
            expected = jvp(each, (X,), (X,)), grad(_of_values(each))(values)
        else:
            assert_same((jvp(each, (X,), (X,)), grad(_of_values(each))(values)), expected)
        del held
    with torch.no_grad():
        assert_same(model(X), plain(X), "a forward afterwards")


def _of_values(model: Reader) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    return lambda values: functional_call(model, values, (X,)).sum()


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_transforms_that_keep_weights_are_refused(name: str, trainable: bool, device: str) -> None:
    plain, model = make(trainable=trainable), offload_tightly(make(trainable=trainable))
    with pytest.raises(ts.UnsupportedError, match="kept beyond its module's forward"):
        REFUSED[name](model)
    with torch.no_grad():
        assert_same(model(X), plain(X), "a forward afterwards")
    ts.restore(model)
    assert_same(REFUSED[name](model), REFUSED[name](plain), "restored")


class Products(nn.Module):
    """Products that save the parameter itself, where nn.Linear saves a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Sums(Products):
    """What saves nothing of its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("transform", [grad, lambda f: lambda x: vjp(f, x)[1](torch.ones(()))])
def test_a_parameter_that_a_graph_keeps_itself_is_refused(
    transform: Callable[..., Any], trainable: bool, device: str
) -> None:
    x = torch.randn(256, 256)
    for kind, is_refused in ((Products, True), (Sums, False)):
        torch.manual_seed(0)
        plain = nn.Sequential(*(kind() for _ in range(4))).requires_grad_(trainable)
        model = offload_tightly(copy.deepcopy(plain))
        expected = transform(lambda x, plain=plain: plain(x).sum())(x)
        for _ in range(2):
            if is_refused:
                with pytest.raises(
                    ts.UnsupportedError, match=r"keeps the streamed weight '\d.weight'"
                ):
                    transform(lambda x, model=model: model(x).sum())(x)
            else:
                assert_same(transform(lambda x, model=model: model(x).sum())(x), expected)
            with torch.no_grad():
                assert_same(model(x), plain(x), "a forward afterwards")
        ts.restore(model)
        assert_same(transform(lambda x, model=model: model(x).sum())(x), expected, "restored")


def test_a_view_that_is_returned_is_kept_by_no_graph(device: str) -> None:
    class Returning(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), self.weight.t()

    class Using(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Returning(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, weight = self.inner(x)
            return y @ weight

    plain = nn.Sequential(*(Using() for _ in range(3))).requires_grad_(False)
    model, x = offload_tightly(copy.deepcopy(plain)), torch.randn(2, 64)
    with torch.autograd.graph.disable_saved_tensors_hooks("as torch.func does"):
        assert_same(model(x), plain(x))
