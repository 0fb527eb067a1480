"""torch.compile of an offloaded model: the same outputs, graphs that hold no weight, and few of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import tensorstream as ts
from conftest import assert_same, offload_tightly, smallest_budget
from flexible_model import Flexible, X, make_flexible
from model_shapes import SHAPES, token_ids

FORWARDS = 2


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _whole(model: Flexible, backend: Any) -> Callable[..., Any]:
    return torch.compile(model, backend=backend)


def _whole_in_place(model: Flexible, backend: Any) -> Callable[..., Any]:
    model.compile(backend=backend)
    return model


def _blocks(model: Flexible, backend: Any) -> Callable[..., Any]:
    for block in model.blocks:
        block.compile(backend=backend)
    return model


WAYS = {"whole": _whole, "whole, in place": _whole_in_place, "blocks": _blocks}
# The graphs of the plain model: one for all, or for the six blocks' one code. Hooks end a graph on each side.
MOST_GRAPHS = 16


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["compiled first", "offloaded first"])
def test_outputs_are_bit_identical_and_graphs_few(order: str, way: str) -> None:
    plain = make_flexible()
    model = copy.deepcopy(plain)
    counter = CompileCounterWithBackend("aot_eager")
    run: Callable[..., Any] = model
    steps = [lambda: WAYS[way](model, counter), lambda: offload_tightly(model, self_check=True)]
    for step in steps if order == "compiled first" else reversed(steps):
        made = step()
        run = made if made is not model else run
    with torch.no_grad():
        for _ in range(FORWARDS):
            assert_same(run(X), plain(X))
        graphs = counter.frame_count
        for _ in range(FORWARDS):
            assert_same(run(X), plain(X))
    assert counter.frame_count == graphs <= MOST_GRAPHS, "compiled again and again"
    if order == "offloaded first" or way == "blocks":
        assert graphs > 0, "nothing was compiled"


def test_a_weight_written_after_compiling_shows() -> None:
    """A graph that had kept a pointer or a copy would not see it."""
    plain = make_flexible()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    _blocks(model, "aot_eager")
    with torch.no_grad():
        assert_same(model(X), plain(X))
        for either in (model, plain):
            either.blocks[2].up.weight.mul_(1.5)
            either.blocks[3].down.bias.add_(1)
        assert_same(model(X), plain(X), "written in place")


def test_a_budget_that_moves_after_compiling() -> None:
    """Weights lie elsewhere afterwards: graphs must take them from their parameters."""
    plain = make_flexible()
    model = copy.deepcopy(plain)
    smallest = smallest_budget(model)
    ts.offload(model, ram_budget=smallest, self_check=True)
    _blocks(model, "aot_eager")
    with torch.no_grad():
        for room in (1.0, 2.2, 1000.0, 1.0):
            ts.set_budget(model, ram_budget=int(smallest * room))
            assert_same(model(X), plain(X), f"room {room}")
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(X), plain(X), "restored")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own reads of activations
def test_gradients_through_compiled_blocks() -> None:
    plain = make_flexible()
    model = offload_tightly(copy.deepcopy(plain))
    for either in (model, plain):
        _blocks(either, "aot_eager")
        either(X).square().sum().backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert_same(*map(list, zip(*((one.grad, other.grad) for one, other in pairs), strict=True)))


def test_a_compiled_transformers_model() -> None:
    plain = SHAPES["llama"].make(2)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    model.model.layers[1].compile(backend="eager")
    with torch.no_grad():
        for count in (9, 5):
            assert_same(model(token_ids(count)).logits, plain(token_ids(count)).logits)


def _made_by_fx(model: nn.Module) -> Any:
    return make_fx(model)(X)


def _under_fake_tensors(model: nn.Module) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model(torch.ones(3, 256))


RECORDERS: dict[str, Callable[[nn.Module], Any]] = {
    "jit": lambda model: torch.jit.trace(model, X),
    "export": lambda model: torch.export.export(model, (X,)),
    "make_fx": _made_by_fx,
    "fake tensors": _under_fake_tensors,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("state", ["new", "run before"])
@pytest.mark.parametrize("recorder", RECORDERS)
def test_what_records_weights_instead_of_using_them_is_refused(recorder: str, state: str) -> None:
    """It would freeze them in a graph, or leave tensors without bytes in their place."""
    plain = make_flexible()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    with torch.no_grad():
        if state == "run before":
            model(X)
        with pytest.raises(ts.UnsupportedError, match="restore the model first"):
            RECORDERS[recorder](model)
        assert_same(model(X), plain(X), "afterwards")
        assert_same(list(model.parameters()), list(plain.parameters()), "the weights")


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("recorder", ["jit", "make_fx", "fake tensors"])
def test_the_same_of_a_weight_used_without_its_module(recorder: str) -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_flexible()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.inner.blocks[1].up.weight)

    model, plain = Direct(), Direct()
    offload_tightly(model.inner)
    with torch.no_grad():
        with pytest.raises(ts.UnsupportedError, match="restore the model first"):
            RECORDERS[recorder](model)
        assert_same(model(X), plain(X), "afterwards")
