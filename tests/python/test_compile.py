"""torch.compile of an offloaded model: the same outputs, graphs that hold no weight, and few of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import tensorstream as ts
from conftest import assert_same, offload_tightly, smallest_budget
from flexible_model import Flexible, X, make_flexible
from model_shapes import SHAPES, make_stack, row_ids, token_ids

FORWARDS = 2
LAYERS = 4
# Of a stack: the blocks' one code, with the gradient of its input and without, and what follows them.
MOST_OWN_GRAPHS = 3


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


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_written_after_compiling_shows(way: str) -> None:
    """A graph that had kept a pointer or a copy would not see it."""
    plain = make_flexible()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    run = WAYS[way](model, "aot_eager")
    with torch.no_grad():
        assert_same(run(X), plain(X))
        for either in (model, plain):
            either.blocks[2].up.weight.mul_(1.5)
            either.blocks[3].down.bias.add_(1)
        assert_same(run(X), plain(X), "written in place")


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_that_moves_after_compiling(way: str) -> None:
    """Weights lie elsewhere afterwards: graphs must take them from their parameters."""
    plain = make_flexible()
    model = copy.deepcopy(plain)
    smallest = smallest_budget(model)
    ts.offload(model, ram_budget=smallest, self_check=True)
    run = WAYS[way](model, "aot_eager")
    with torch.no_grad():
        for room in (1.0, 2.2, 1000.0, 1.0):
            ts.set_budget(model, ram_budget=int(smallest * room))
            assert_same(run(X), plain(X), f"room {room}")
    ts.restore(model)
    with torch.no_grad():
        assert_same(run(X), plain(X), "restored")


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


class Borrowing(nn.Module):
    """A model whose own forward uses weights of its streamed parts, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = make_stack(LAYERS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.mixed = nn.Parameter(torch.randn(256, 256))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.stack.table(ids)
        for block in self.stack.blocks:
            x = block(x)
        x = F.linear(x @ self.mixed, self.stack.blocks[1].up.weight)
        return F.linear(x, self.stack.table.weight)


def make_both(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A plain model, and its equal that is streamed."""
    plain = make()
    model = copy.deepcopy(plain)
    ts.offload(model, ram_budget=2 * ts.estimate_memory(model).smallest_budget_bytes)
    return plain, model


def make_small() -> nn.Module:
    return make_stack(LAYERS)


# Torch's own: it looks at the inputs of what it compiles behind a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("make", [make_small, Borrowing])
@pytest.mark.parametrize("gradients", [False, True])
def test_whole_models_are_bit_identical_and_compiled_once(
    make: Callable[[], nn.Module], gradients: bool
) -> None:
    plain, model = make_both(make)
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=graphs)
    made = []
    for _ in range(2 * FORWARDS):
        with torch.set_grad_enabled(gradients):
            ours, theirs = compiled(row_ids()), plain(row_ids())
        assert_same(ours, theirs)
        if gradients:
            ours.sum().backward()
            theirs.sum().backward()
        made.append(graphs.frame_count)
    assert made[0] > 0, "nothing was compiled"
    assert made[-1] == made[1], "later forwards are compiled again"
    assert made[-1] <= MOST_OWN_GRAPHS, "the engine's own Python was compiled"
    assert ts.stats(model).streamed_bytes > 0
    used = 0
    for weight, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (weight.grad is None) == (other.grad is None)
        if weight.grad is not None and other.grad is not None:
            assert_same(weight.grad, other.grad)
            used += 1
    assert (used > 0) == gradients


def test_a_graph_of_the_whole_model_is_refused_by_torch_and_nothing_breaks() -> None:
    plain, model = make_both(make_small)
    with pytest.raises(torch._dynamo.exc.Unsupported), torch.no_grad():
        torch.compile(model, backend="eager", fullgraph=True)(row_ids())
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
