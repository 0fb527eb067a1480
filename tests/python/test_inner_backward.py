"""Gradients that a forward asks for itself, and what is recomputed for gradients of parked weights.

On a GPU torch computes gradients on a thread of its own, for which the forward waits.
"""

from __future__ import annotations

import copy
import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, smallest_budget
from fake_gpu import use_fake_gpu
from model_shapes import Block
from tensorstream import backward
from tensorstream.orchestrator import orchestrator_of

X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
PATIENCE_S = 20
Work = Callable[[], torch.Tensor]
RunBy = Callable[[Work], torch.Tensor]


def by_another_thread(work: Work) -> torch.Tensor:
    """As torch's thread of a GPU, which has what the thread that asks for gradients had stashed."""
    asker = backward._asker()

    def run() -> torch.Tensor:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(asker))
        torch._C._stash_obj_in_tls(backward._ASKER, asker)
        return work()

    return waited_for(run)


def waited_for(run: Callable[[], Any]) -> Any:
    """What `run` gives on another thread; fails where that waits for ever."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def keep() -> None:
        try:
            results.append(run())
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "a thread waits for ever"
    if errors:
        raise errors.pop()  # no frame is left that holds it, and what it holds of weights
    return results[0]


class Deeper(torch.autograd.Function):
    """A backward in a backward in a backward: beyond 60 of them torch goes on by a thread of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, depth: int, work: Callable[[], None]) -> torch.Tensor:
        ctx.depth, ctx.work = depth, work
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        with torch.enable_grad():
            if ctx.depth == 0:
                ctx.work()
            else:
                x = torch.zeros(1, requires_grad=True)
                torch.autograd.grad(Deeper.apply(x, ctx.depth - 1, ctx.work), x)  # type: ignore[no-untyped-call]
        return grads[0], None, None


def by_a_thread_of_torchs(work: Work) -> torch.Tensor:
    results: list[torch.Tensor] = []
    threads: list[int] = []

    def run() -> None:
        threads.append(threading.get_ident())
        results.append(work())

    x = torch.zeros(1, requires_grad=True)
    torch.autograd.grad(Deeper.apply(x, 70, run), x)  # type: ignore[no-untyped-call]
    assert threads != [threading.get_ident()]
    return results[0]


def by_this_thread(work: Work) -> torch.Tensor:
    return work()


def gradient(energy: torch.Tensor, z: torch.Tensor, way: str, run_by: RunBy) -> torch.Tensor:
    def work() -> torch.Tensor:
        if way != "reentrant":
            return torch.autograd.grad(energy, z)[0]
        energy.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return z.grad

    return run_by(work)


def call(module: nn.Module, way: str, x: torch.Tensor) -> torch.Tensor:
    if way == "plain":
        return module(x)  # type: ignore[no-any-return]
    return checkpoint(module, x, use_reentrant=way == "reentrant")  # type: ignore[no-any-return]


class Energy(nn.Module):
    """Goes down the gradient of an energy that its blocks compute; they have groups of their own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.run_by = way, by_this_thread
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.step = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            y = z = x.detach().requires_grad_()
            for block in self.blocks:
                y = call(block, self.way, y)
            down = gradient(y.square().sum(), z, self.way, self.run_by)
        return x - 0.1 * self.step(down)  # type: ignore[no-any-return]


class Descending(nn.Module):
    """The same in each of its layers, whose groups are leased meanwhile."""

    class Layer(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.way, self.run_by = way, by_this_thread
            self.up = nn.Linear(256, 256)
            self.block = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                y = call(self.block, self.way, torch.relu(self.up(z)))
                down = gradient(y.square().sum(), z, self.way, self.run_by)
            return x - 0.1 * self.up(down)  # type: ignore[no-any-return]

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(self.Layer(way) for _ in range(4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def make(kind: type[nn.Module], way: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return kind(way)


def let_run_by(model: nn.Module, run_by: RunBy) -> None:
    for module in model.modules():
        if hasattr(module, "run_by"):
            module.run_by = run_by


def trained(model: nn.Module) -> list[torch.Tensor]:
    """What a step through the model gives: gradients of the input and of weights that got one."""
    model.zero_grad()
    x = X.clone().requires_grad_()
    y = model(x)
    y.sum().backward()
    found = [y, x.grad, *(parameter.grad for parameter in model.parameters())]
    return [tensor for tensor in found if tensor is not None]


# Places on a GPU are aligned: the last number is what that takes.
PLACES: dict[str, tuple[bool | None, int]] = {
    "cpu": (None, 0),
    "gpu": (True, 1 << 19),
    "gpu, from the source": (False, 1 << 19),
}


@pytest.mark.parametrize("room", [0, 1 << 20])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", [Energy, Descending])
def test_gradients_within_a_forward_on_another_thread(
    kind: type[nn.Module], way: str, place: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules that are recomputed for them do not wait for the forward that waits for them."""
    homes, more = PLACES[place]
    if homes is not None:
        use_fake_gpu(monkeypatch, homes=homes)
    plain = make(kind, way)
    model = copy.deepcopy(plain)
    ts.offload(model, ram_budget=smallest_budget(model) + more + room, compression="none")
    assert hooks_of(model)
    for run_by in (by_another_thread, by_this_thread, by_another_thread):
        let_run_by(model, run_by)
        with torch.no_grad():
            assert_same(model(X), plain(X), run_by.__name__)
        assert_same(trained(model), trained(plain), run_by.__name__)
    assert sum(lent.depth for lent in orchestrator_of(model)._lent.values()) == 0
    assert orchestrator_of(model)._forward._asker is None


@pytest.mark.parametrize("kind", [Energy, Descending])
def test_gradients_within_a_forward_on_a_thread_of_torchs(kind: type[nn.Module]) -> None:
    plain = make(kind, "not reentrant")
    model = offload_tightly(copy.deepcopy(plain))
    let_run_by(model, by_a_thread_of_torchs)
    for _ in range(2):
        assert_same(waited_for(lambda: trained(model)), trained(plain))


def test_what_is_recomputed_elsewhere_may_fail() -> None:
    """The next forward is right, and other threads get the model."""
    plain = make(Energy, "not reentrant")
    model: Any = offload_tightly(copy.deepcopy(plain))
    let_run_by(model, by_another_thread)

    def fail(*_: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            raise ValueError("on order")

    handle = model.blocks[1].up.register_forward_hook(fail)
    with pytest.raises(ValueError, match="on order"):
        model(X)
    handle.remove()
    for _ in range(2):
        assert_same(waited_for(lambda: trained(model)), trained(plain))


def test_a_backward_of_another_forward_waits_for_its_turn() -> None:
    """What recomputes for its own thread is not what a forward of another one waits for."""
    plain: Any = make(Energy, "not reentrant")
    model: Any = offload_tightly(copy.deepcopy(plain))
    x = X.clone().requires_grad_()
    y = call(model.blocks, "not reentrant", x).sum()
    done: list[threading.Thread] = []

    def meanwhile(work: Work) -> torch.Tensor:
        done.append(threading.Thread(target=y.backward))
        done[0].start()
        done[0].join(0.2)
        assert done[0].is_alive(), "it ran the model amidst a forward of another thread"
        return work()

    let_run_by(model, meanwhile)
    got = model(X)
    done[0].join(PATIENCE_S)
    assert not done[0].is_alive()
    assert_same(got, plain(X))
    expected = X.clone().requires_grad_()
    call(plain.blocks, "not reentrant", expected).sum().backward()  # type: ignore[no-untyped-call]
    assert_same(x.grad, expected.grad)


class Unhooked(nn.Module):
    """Calls parts of blocks, whose weights are parked then, and looks rows up, which always are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(512, 256)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.unused = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + F.embedding(torch.tensor([3, 7, 3]), self.table.weight)
        for block in self.blocks:
            x = block.down(torch.tanh(block.up(x)))
        return x


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_gradients_of_parked_weights_that_are_recomputed(
    place: str, recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not those of what parked weights have in the place of their bytes."""
    homes, more = PLACES[place]
    if homes is not None:
        use_fake_gpu(monkeypatch, homes=homes)
    plain = make(lambda _: Unhooked(), "")  # type: ignore[arg-type]
    model = copy.deepcopy(plain)
    budget = int(smallest_budget(model) * 2) + more
    ts.offload(model, ram_budget=budget, compression="none")
    assert hooks_of(model)
    results: list[list[torch.Tensor]] = []
    for each in (model, plain):
        x = X.clone().requires_grad_()

        def energy(x: torch.Tensor = x, each: nn.Module = each) -> torch.Tensor:
            y = call(each, "not reentrant" if recomputes else "plain", x)
            return y.square().sum()

        used = [weight for name, weight in each.named_parameters() if "unused" not in name]
        found = list(torch.autograd.grad(energy(), [x, *used]))
        (first,) = torch.autograd.grad(energy(), used[1], create_graph=True)
        found += torch.autograd.grad(first.square().sum(), used)
        found += torch.autograd.grad(energy(), list(each.parameters()), materialize_grads=True)
        some = torch.autograd.grad(energy(), list(each.parameters()), allow_unused=True)
        assert [gradient is None for gradient in some[-2:]] == [True, True]
        assert sum(gradient is None for gradient in some) == 2
        with pytest.raises(RuntimeError, match="have been used in the graph"):
            torch.autograd.grad(energy(), list(each.parameters()))
        used[0].requires_grad_(False)
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.autograd.grad(energy(), used)
        results.append(found)
    assert_same(results[0], results[1])
