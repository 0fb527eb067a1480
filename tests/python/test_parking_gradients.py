"""Gradients through parked and lent weights are right, or the backward pass raises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge, register_multi_grad_hook, saved_tensors_hooks
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import tensorstream as ts
from conftest import assert_same, offload_tightly, same_bytes
from model_shapes import Block, make_stack, row_ids, token_ids
from parked_pair import Pair, make_pair


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return make_pair(request.param, tmp_path)


X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))

LOSSES: dict[str, Callable[[nn.Parameter], torch.Tensor]] = {
    "F.linear": lambda p: F.linear(X, p).square().sum(),
    "matmul": lambda p: (X @ p).exp().mean(),
    "index": lambda p: p[3:7].pow(3).sum(),
    "used twice": lambda p: (F.linear(X, p) @ p).sum() + p.abs().sum(),
    "clone": lambda p: (p.clone() * 2).sum(),
    "stack": lambda p: torch.stack([p, p * 2]).square().sum(),
    "embedding": lambda p: F.embedding(token_ids(9) % 256, p).square().sum(),
    "embedding with padding": lambda p: (
        F.embedding(torch.tensor([4, 2, 4]), p, padding_idx=2).square().sum()
    ),
    "embedding scaled by frequency": lambda p: (
        F.embedding(torch.tensor([4, 2, 4]), p, scale_grad_by_freq=True).square().sum()
    ),
}


def _complex(p: nn.Parameter) -> torch.Tensor:
    return torch.view_as_complex(p.view(256, 128, 2))


COMPLEX: dict[str, Callable[[nn.Parameter, torch.Tensor], torch.Tensor]] = {
    "conjugate": lambda p, x: x * _complex(p).conj(),
    "product with a conjugate": lambda p, x: x[:128] @ _complex(p)[:128].conj(),
    "adjoint": lambda p, x: x @ _complex(p).mH,
    "negative": lambda p, x: x * _complex(p).conj().imag,
}


@pytest.mark.parametrize("name", COMPLEX)
def test_gradients_of_lent_weights_that_are_seen_as_conjugates(name: str) -> None:
    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(256, 256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return COMPLEX[name](self.weight, x).sum()

    plain = nn.ModuleList(Seeing() for _ in range(3))
    found = []
    for each in (plain, offload_tightly(copy.deepcopy(plain))):
        x = torch.randn(
            256, 128, dtype=torch.complex64, generator=torch.Generator().manual_seed(2)
        ).requires_grad_()
        total = torch.stack([layer(x) for layer in each]).sum()  # type: ignore[union-attr]
        (total.real + total.imag).backward()
        found.append([x.grad, *(p.grad for p in each.parameters())])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_a_parked_weight_are_those_of_the_plain_one(pair: Pair, loss: str) -> None:
    parked, plain = pair.weights
    for _ in range(2):  # the second adds to the first
        for weight in (parked, plain):
            LOSSES[loss](weight).backward()
        assert isinstance(parked.grad, torch.Tensor)
        assert same_bytes(parked.grad, plain.grad)
    (got,) = torch.autograd.grad(LOSSES[loss](parked), [parked])
    assert same_bytes(got, torch.autograd.grad(LOSSES[loss](plain), [plain])[0])
    pair.check_forward("with gradients set")
    assert same_bytes(parked.grad, plain.grad)


def test_backward_through_a_weight_parked_again_after_a_forward(pair: Pair) -> None:
    parked, plain = pair.weights
    losses = [LOSSES["used twice"](weight) for weight in (parked, plain)]
    pair.check_forward("between forward and backward")
    for loss in losses:
        loss.backward()
    assert same_bytes(parked.grad, plain.grad)


def test_backward_after_a_write_raises_as_torch_does(pair: Pair) -> None:
    for weight in pair.weights:
        loss = LOSSES["used twice"](weight)
        with torch.no_grad():
            weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class Keeping(nn.Module):
    """Runs its layer under hooks of its own that keep what a graph saves as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with saved_tensors_hooks(lambda tensor: tensor.detach(), lambda kept: kept):
            return F.linear(x, self.layer.weight, self.layer.bias).square() @ self.layer.weight


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


def check_gradients(streamed: nn.Module, plain: nn.Module) -> None:
    for (name, _), ours, theirs in zip(
        plain.named_parameters(), gradients(streamed), gradients(plain), strict=True
    ):
        assert (ours is None) == (theirs is None), name
        assert ours is None or torch.equal(ours, theirs), name


def test_backward_through_streamed_weights_is_the_plain_one(pair: Pair) -> None:
    ids = row_ids()
    loss = pair.streamed(ids).sum()
    pair.check_forward("while the graph is held")  # other weights' bytes are in the arena now
    loss.backward()
    pair.plain(ids).sum().backward()
    check_gradients(pair.streamed, pair.plain)
    del loss
    pair.check_forward("after the graph is dropped")


def test_gradients_of_inputs_flow_through_streamed_weights() -> None:
    model = nn.Sequential(Block(), Block(), Block())
    plain = copy.deepcopy(model)
    offload_tightly(model)
    ours, theirs = (X.clone().requires_grad_() for _ in range(2))
    model(ours).sum().backward()
    plain(theirs).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    check_gradients(model, plain)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_give_the_plain_gradients(use_reentrant: bool) -> None:
    model = nn.Sequential(Block(), Block(), Block())
    plain = copy.deepcopy(model)
    offload_tightly(model)
    for blocks in (model, plain):
        x = X.clone().requires_grad_()
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=use_reentrant)
        x.sum().backward()
    check_gradients(model, plain)


def test_a_weight_written_to_after_its_forward_stops_the_backward() -> None:
    model = nn.Sequential(Block(), Block())
    offload_tightly(model)
    x = X.clone().requires_grad_()
    loss = model(x).sum()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    with pytest.raises(RuntimeError, match="was written to, or streamed anew, after the forward"):
        loss.backward()


WRITES_THROUGH_ALIASES: dict[str, Callable[[torch.Tensor], Any]] = {
    "detached": lambda alias: alias.mul_(2),
    "a row": lambda alias: alias[3].zero_(),
    "past its version": lambda alias: alias.data.mul_(2),
}


@pytest.mark.parametrize("write", WRITES_THROUGH_ALIASES)
def test_a_weight_written_to_through_an_alias_stops_the_backward(pair: Pair, write: str) -> None:
    alias = pair.weights[0].detach()
    loss = pair.streamed(row_ids()).square().sum()
    version = alias._version
    WRITES_THROUGH_ALIASES[write](alias)
    weight = pair.weights[0]._tensorstream_weight  # type: ignore[attr-defined]
    if alias._version == version and weight.owned is not None:
        return  # the weight's own memory: plain autograd does not notice either
    with pytest.raises(RuntimeError, match="was written to, or streamed anew, after the forward"):
        loss.backward()


class Normalized(nn.Linear):
    """Writes its weight before it uses it, as forced weight normalisation does, or after that."""

    def __init__(self, *, after: bool) -> None:
        super().__init__(256, 256, bias=False)
        self.after = after

    def normalize(self) -> None:
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.after:
            self.normalize()
        x = F.linear(x, self.weight * 2)
        y = F.linear(torch.tanh(x), self.weight)
        if self.after:
            self.normalize()
        return y


def test_gradients_of_what_a_forward_wrote_before_it_used_it() -> None:
    model = nn.Sequential(*(Normalized(after=False) for _ in range(3)))
    plain = copy.deepcopy(model)
    offload_tightly(model)
    for _ in range(2):
        for either in (model, plain):
            either.zero_grad()
            either(X.clone().requires_grad_()).square().sum().backward()
        check_gradients(model, plain)
    loss = model(X.clone().requires_grad_()).sum()
    model(X)  # writes again
    with pytest.raises(RuntimeError, match="was written to, or streamed anew, after the forward"):
        loss.backward()


def test_a_forward_that_writes_what_it_has_used_stops_the_backward() -> None:
    model = nn.Sequential(*(Normalized(after=True) for _ in range(3)))
    offload_tightly(model)
    loss = model(X.clone().requires_grad_()).sum()
    with pytest.raises(RuntimeError, match="was written to, or streamed anew, after the forward"):
        loss.backward()


@pytest.mark.parametrize("of", ["weights", "activations"])
def test_wrappers_of_tensors_are_saved_as_they_are(of: str) -> None:
    model = nn.Sequential(Block(), Block())
    plain = copy.deepcopy(model)
    offload_tightly(model)
    wrapped = TwoTensor(X, X.clone()).requires_grad_()
    for either in (model, plain):
        if of == "weights":
            wrapped.grad = None
            (either(X) * TwoTensor(X[:1], X[:1])).sum().backward()
        else:
            either(wrapped).square().sum().backward()
    check_gradients(model, plain)


def test_an_activation_changed_in_place_stops_the_backward() -> None:
    model = nn.Sequential(Block())
    offload_tightly(model)
    hidden = model(X.clone().requires_grad_())
    squared = hidden * hidden
    hidden.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_hooks_of_the_user_that_keep_the_arena_are_refused() -> None:
    model = nn.Sequential(Keeping(), Keeping())
    offload_tightly(model)
    with pytest.raises(ts.UnsupportedError, match="keep_resident"):
        model(X.clone().requires_grad_())


def test_fused_optimizer_steps_are_kept() -> None:
    model = nn.Sequential(Block(), Block())
    plain = copy.deepcopy(model)
    offload_tightly(model)
    for trained in (model, plain):
        optimizer = torch.optim.AdamW(trained.parameters(), fused=True)
        trained(X).sum().backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(X), plain(X))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.001),
    "adamw, one by one": lambda weights: torch.optim.AdamW(weights, lr=0.001, foreach=False),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loop_of_training_steps_is_the_plain_one(pair: Pair, optimizer: str) -> None:
    """A step's write is no write of the next forward: its backward would be refused."""
    ids = row_ids()
    both = (pair.streamed, pair.plain)
    optimizers = [OPTIMIZERS[optimizer](either.parameters()) for either in both]
    for step in range(4):
        for either in both:
            either.zero_grad()
            either(ids).square().mean().backward()
        check_gradients(*both)
        for one in optimizers:
            one.step()
        pair.check_forward(f"after step {step}")


def test_a_block_of_its_own_gives_its_gradients_or_raises() -> None:
    """The gradient of a Linear's weight needs its input, not the weight: it may be had."""
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    plain = copy.deepcopy(model)
    offload_tightly(model)
    model[0](X).sum().backward()
    plain[0](X).sum().backward()
    assert same_bytes(model[0].weight.grad, plain[0].weight.grad)
    assert same_bytes(model[0].bias.grad, plain[0].bias.grad)


def test_a_model_that_fits_trains_as_the_plain_one() -> None:
    model = make_stack(3)
    plain = copy.deepcopy(model)
    ts.offload(model, ram_budget=ts.estimate_memory(model).everything_fits_bytes)
    ids = row_ids()
    for step in range(3):
        for either in (model, plain):
            optimizer = torch.optim.SGD(either.parameters(), lr=0.1)
            either(ids).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            assert_same(model(ids), plain(ids), f"step {step}")
    ts.restore(model)
    assert_same(list(model.parameters()), list(plain.parameters()))


def test_gradients_reach_what_is_resident_beside_streamed_weights() -> None:
    """A trained layer behind frozen, streamed ones: the usual way to train a head."""
    model = nn.Sequential(Block(), Block(), nn.Linear(256, 4))
    model[:2].requires_grad_(False)
    plain = copy.deepcopy(model)
    offload_tightly(model, keep_resident=("2",))
    for either in (model, plain):
        either(X).square().sum().backward()
    assert same_bytes(model[2].weight.grad, plain[2].weight.grad)
    assert model[0].up.weight.grad is None


def test_requires_grad_can_be_changed_while_parked(pair: Pair) -> None:
    parked, plain = pair.weights
    for weight in (parked, plain):
        weight.requires_grad_(False)
        assert not F.linear(X, weight).requires_grad
        assert weight[0].grad_fn is None
    pair.check_forward("frozen")
    for weight in (parked, plain):
        assert not weight.requires_grad
        weight.requires_grad = True
        F.linear(X, weight).sum().backward()
        assert weight.detach_() is weight
        assert not weight.requires_grad
    assert same_bytes(parked.grad, plain.grad)
    pair.streamed.zero_grad()
    assert parked.grad is None


def test_a_parked_weight_has_one_end_in_the_graph(pair: Pair) -> None:
    seen: list[list[str]] = []
    for model, weight in zip((pair.streamed, pair.plain), pair.weights, strict=True):
        calls: list[str] = []
        ends = [
            weight.expand_as(weight).grad_fn.next_functions[0][0],
            weight.view_as(weight).grad_fn.next_functions[0][0],
        ]
        for end in ends:
            end.register_hook(lambda *_, calls=calls: calls.append(f"end {len(calls)}"))
        parameters = list(model.parameters())
        handle = register_multi_grad_hook(parameters, lambda _, calls=calls: calls.append("all"))
        model(row_ids()).square().sum().backward()
        handle.remove()
        edge = get_gradient_edge(weight)
        (gradient,) = torch.autograd.grad(model(row_ids()).square().sum(), [edge])
        assert same_bytes(gradient, weight.grad)
        assert_same(weight.view_as(weight), weight.clone())
        assert_same(weight.view_as(torch.empty(256 * 256)), weight.clone().flatten())
        seen.append(calls)
    assert seen[0] == seen[1]
    assert seen[0].count("all") == 1


def test_hooks_on_a_parked_weight_see_its_gradient(pair: Pair) -> None:
    seen: list[list[torch.Tensor]] = []
    for weight in pair.weights:
        got: list[torch.Tensor] = []
        handle = weight.register_hook(got.append)
        F.linear(X, weight).square().sum().backward()
        handle.remove()
        F.linear(X, weight).square().sum().backward()
        seen.append(got)
    assert len(seen[0]) == 1
    assert_same(seen[0], seen[1])


RECORDED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "saves the leaf": torch.matmul,
    "saves a view": F.linear,
}


class Recorder(nn.Module):
    """Records a graph of its own whoever calls it, and keeps it; its output is its caller's business."""

    def __init__(self, operation: str, returns: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(256, 256) / 16)
        self.operation, self.returns = operation, returns
        self.graph: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor | None:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            self.graph = x, RECORDED[self.operation](x, self.weight)
        return self.graph[1].detach() if self.returns else None


@pytest.mark.parametrize("operation", RECORDED)
@pytest.mark.parametrize("returns", [True, False])
def test_a_forward_that_records_though_its_caller_does_not(operation: str, returns: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*(Recorder(operation, returns) for _ in range(4)))
    model = copy.deepcopy(plain)
    offload_tightly(model)
    for _ in range(2):
        gradients = []
        for each in (plain, model):
            with torch.no_grad():
                for block in each.children():
                    block(X)
            for block in each.children():
                x, y = block.graph
                gradients.append(torch.autograd.grad(y.square().sum(), (x, block.weight)))
                block.graph = None
        expected, got = gradients[:4], gradients[4:]
        assert_same(got, expected, "gradients of graphs that outlive their forward")
