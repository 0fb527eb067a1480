"""Torch's allocations of a backward under the model's budget: a stand-in for its allocator, the fake GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensorstream as ts
from conftest import assert_same, smallest_budget
from fake_gpu import FakeTorchMemory, fake_torch_memory
from model_shapes import Block
from tensorstream.exceptions import CudaBudgetError
from tensorstream.orchestrator import orchestrator_of
from tensorstream.torch_pool import TorchPool
from tensorstream.weight import Weight

MIB = 1 << 20
X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchMemory]:
    yield from fake_torch_memory(monkeypatch)


def make_blocks(count: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(*(Block() for _ in range(count)))


def offload(room_bytes: int = 2 * MIB) -> Any:
    model = make_blocks()
    budget = smallest_budget(model) + room_bytes
    return ts.offload(model, ram_budget=budget, compression="none")


def run(model: Any, way: str, x: torch.Tensor) -> torch.Tensor:
    for block in model:
        x = block(x) if way == "plain" else checkpoint(block, x, use_reentrant=way == "reentrant")
    return x


WAYS = ["plain", "whole", "reentrant", "not reentrant"]


def forward(model: Any, way: str, x: torch.Tensor) -> torch.Tensor:
    """Block by block, or the whole model at once: its blocks are not the outermost forward then."""
    output: torch.Tensor = model(x) if way == "whole" else run(model, way, x)
    return output


def gradients(model: nn.Module, way: str, at: Callable[[], None] | None = None) -> list[Any]:
    """Of the input and of every weight; calls `at` in the midst of backward."""
    model.zero_grad()
    x = X.clone().requires_grad_()
    y = forward(model, way, x)
    if at is not None:
        x.register_hook(lambda _: at())  # what backward comes to last
    y.square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("way", WAYS)
def test_what_backward_allocates_is_charged_and_gradients_are_the_plain_ones(
    way: str, memory: FakeTorchMemory
) -> None:
    model, plain = offload(), make_blocks()
    held = [0]

    def ask() -> None:
        held.append(memory.malloc(4096))

    for step in range(3):
        assert_same(gradients(model, way, ask), gradients(plain, way), f"step {step}")
        assert memory.active == []
        assert ts.stats(model).torch_bytes == 4096
        memory.free(held.pop())
    peak = orchestrator_of(model).pool.statistics().peak_torch_bytes  # type: ignore[union-attr]
    assert peak == 4096


def test_residents_give_way_to_what_backward_needs(memory: FakeTorchMemory) -> None:
    model, plain = offload(), make_blocks()
    for _ in range(3):
        gradients(model, "whole")
    stats = ts.stats(model)
    wanted = stats.budget_bytes - stats.held_bytes + 4096
    held: list[int] = []
    got = gradients(model, "whole", lambda: held.append(memory.malloc(wanted)))
    assert_same(got, gradients(plain, "whole"))
    stats = ts.stats(model)
    assert stats.gave_way > 0
    assert stats.held_bytes + stats.torch_bytes <= stats.budget_bytes
    memory.free(held.pop())
    assert_same(gradients(model, "whole"), got)


@pytest.mark.parametrize("way", WAYS)
def test_the_pool_is_used_from_the_first_gradient_to_the_end_and_entered_once(
    way: str, memory: FakeTorchMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = offload()
    used: list[int] = []
    use = memory.use
    monkeypatch.setattr(memory, "use", lambda *args: (used.append(1), use(*args))[1])
    x = X.clone().requires_grad_()
    y = forward(model, way, x)
    entered = len(used)
    seen: list[int] = []
    for block in model:
        block.up.weight.register_hook(lambda _: seen.append(len(memory.active)))
    x.register_hook(lambda _: seen.append(len(memory.active)))
    y.sum().backward()
    assert seen == [1] * 5
    assert memory.active == []
    # Each block of a reentrant checkpoint has a backward of its own, and an error's end is its alone.
    assert len(used) - entered <= (len(model) + 1 if way == "reentrant" else 1)


class WithLoss(nn.Module):
    """Computes its loss itself, as models of transformers do: its gradient is the largest of all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = make_blocks()
        self.scores: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        self.scores = self.blocks(x)
        return {"loss": self.scores.float().logsumexp(-1).mean(), "scores": (self.scores,)}


def test_gradients_of_a_loss_within_the_model_come_from_its_pool(memory: FakeTorchMemory) -> None:
    """Before any weight is read."""
    model = WithLoss()
    ts.offload(model, ram_budget=smallest_budget(model) + 2 * MIB)
    loss = model(X)["loss"]
    seen: list[int] = []
    assert model.scores is not None
    model.scores.register_hook(lambda _: seen.append(len(memory.active)))
    torch.autograd.grad(loss, list(model.parameters()))
    assert seen == [1]


@pytest.mark.parametrize("way", WAYS)
def test_what_follows_a_forward_is_done_after_its_backward_and_once(
    way: str, memory: FakeTorchMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its midst residents would come back, and the pool might go whose blocks backward takes again."""
    model = offload()
    seen: list[bool] = []
    ended = TorchPool.forward_ended
    monkeypatch.setattr(
        TorchPool,
        "forward_ended",
        lambda pool: (seen.append(torch._C._current_graph_task_id() != -1), ended(pool))[1],
    )
    once = 1 if way == "whole" else len(model)
    for step in range(1, 4):
        x = X.clone().requires_grad_()
        y = forward(model, way, x)
        before = len(seen)
        y.sum().backward()
        assert len(seen) == before
        assert len(seen) == (step * once if way == "reentrant" else step * once - 1)
    assert not any(seen)
    with torch.no_grad():
        model(X)
    assert len(seen) == 3 * once + 1


def test_an_error_of_its_own_kernels_stays_torchs_and_is_told_with_the_numbers(
    memory: FakeTorchMemory, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain = offload(), make_blocks()

    def fail() -> None:
        memory.malloc(64 * MIB)

    gradients(model, "whole")
    pools = len(memory.pools)
    for step in range(1, 3):
        with pytest.raises(torch.OutOfMemoryError):
            gradients(model, "whole", fail)
        assert memory.active == []
        told = [record.message for record in caplog.records if "want of memory" in record.message]
        assert len(told) == step
        assert "raise vram_budget to at least" in told[-1]
        assert_same(gradients(model, "whole"), gradients(plain, "whole"))
        assert len(memory.pools) == pools + step  # without what the failed backward left in pieces


@pytest.mark.parametrize("way", ["reentrant", "not reentrant"])
def test_what_cannot_be_recomputed_is_an_error_with_the_numbers(
    way: str, memory: FakeTorchMemory
) -> None:
    model, plain = offload(), make_blocks()

    def fail(*_: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            memory.malloc(64 * MIB)

    handle = model[1].up.register_forward_hook(fail)
    with pytest.raises(CudaBudgetError, match=r"^CUDA out of memory.*gradients that this backward"):
        gradients(model, way)
    assert memory.active == []
    handle.remove()
    assert_same(gradients(model, way), gradients(plain, way))


def test_a_weight_that_finds_no_room_in_backward_is_an_error_with_the_numbers(
    memory: FakeTorchMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = offload(), make_blocks()
    with monkeypatch.context() as patch:
        patch.setattr(Weight, "read_as_loaded", lambda _: memory.malloc(64 * MIB))
        with pytest.raises(CudaBudgetError, match="raise vram_budget") as raised:
            gradients(model, "whole")
    assert raised.value.needed_bytes > 64 * MIB
    assert memory.active == []
    assert_same(gradients(model, "whole"), gradients(plain, "whole"))


def test_another_error_in_backward_is_left_as_it_is(
    memory: FakeTorchMemory, caplog: pytest.LogCaptureFixture
) -> None:
    model = offload()

    def fail() -> None:
        raise ValueError("on order")

    with pytest.raises(ValueError, match="on order"):
        gradients(model, "whole", fail)
    assert memory.active == []
    assert not any("want of memory" in record.message for record in caplog.records)


def test_gradients_of_gradients(memory: FakeTorchMemory) -> None:
    model, plain = offload(), make_blocks()
    seen: list[int] = []
    results: list[list[Any]] = []
    for each in (model, plain):
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        assert memory.active == []
        if each is model:
            x.register_hook(lambda _: seen.append(len(memory.active)))
        first.square().sum().backward()
        results.append([first, x.grad])
    assert_same(results[0], results[1])
    assert seen == [1]


def test_a_forward_that_computes_gradients_stays_in_its_pool(memory: FakeTorchMemory) -> None:
    model, plain = offload(), make_blocks()
    seen: list[int] = []

    def inside(module: nn.Module, args: Any) -> None:
        x = args[0].detach().requires_grad_()
        torch.autograd.grad(module.up(x).square().sum(), x)
        seen.append(len(memory.active))

    model[2].register_forward_pre_hook(inside)
    assert_same(gradients(model, "whole"), gradients(plain, "whole"))
    assert seen == [1]


def test_two_models_in_one_graph_are_each_under_their_own_budget(memory: FakeTorchMemory) -> None:
    first, second = offload(), offload()
    x = X.clone().requires_grad_()
    middle = first(x)
    y = second(middle)
    taken: list[int] = []
    for at, size in ((middle, 4096), (x, 8192)):
        at.register_hook(lambda _, size=size: taken.append(memory.malloc(size)))
    y.sum().backward()
    # What the second model's input gets is the first one's output: hooks on it come before its node.
    assert ts.stats(second).torch_bytes == 4096
    assert ts.stats(first).torch_bytes == 8192
    for data in taken:
        memory.free(data)


def test_a_forward_of_another_thread_takes_the_pool_over(memory: FakeTorchMemory) -> None:
    model, plain = offload(), make_blocks()
    expected = make_blocks()(X)
    seen: list[int] = []

    def meanwhile(_: torch.Tensor) -> None:
        def work() -> None:
            with torch.no_grad():
                assert_same(model(X), expected)

        thread = threading.Thread(target=work)
        seen.append(len(memory.active))
        thread.start()
        thread.join()
        seen.append(len(memory.active))

    results: list[list[Any]] = []
    for each in (model, plain):
        x = X.clone().requires_grad_()
        hidden = each[1](each[0](x))
        if each is model:
            hidden.register_hook(meanwhile)
            x.register_hook(lambda _: seen.append(len(memory.active)))
        each[3](each[2](hidden)).sum().backward()
        results.append([x.grad, *(parameter.grad for parameter in each.parameters())])
    assert_same(results[0], results[1])
    assert seen == [1, 0, 1]  # and what is read next takes it back


def test_the_pool_follows_the_thread_that_computes(
    memory: FakeTorchMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a node of the graph is on the CPU, whose thread begins what the GPU's goes on with."""
    model, plain = offload(), make_blocks()
    used: list[int] = []
    use = memory.use

    def note(pool: int, index: int) -> Any:
        used.append(threading.get_ident())
        return use(pool, index)

    monkeypatch.setattr(memory, "use", note)
    other = model(X.clone().requires_grad_()).sum()  # another graph
    threads: list[threading.Thread] = []

    def meanwhile(_: torch.Tensor) -> None:
        threads.append(threading.Thread(target=other.backward))
        threads[0].start()
        threads[0].join()

    x = X.clone().requires_grad_()
    hidden = model[1](model[0](x))
    hidden.register_hook(meanwhile)
    y = model[3](model[2](hidden))
    used.clear()
    torch.autograd.grad(y.sum(), x)  # hooks on each block's output have it taken back
    here = threading.get_ident()
    assert used == [here, threads[0].ident, here]
    assert_same(gradients(model, "whole"), gradients(plain, "whole"))


def test_a_graph_that_outlives_its_model_is_under_no_ceiling(memory: FakeTorchMemory) -> None:
    model, plain = offload(), make_blocks()
    results: list[torch.Tensor | None] = []
    seen: list[int] = []
    for each in (model, plain):
        x = X.clone().requires_grad_()
        y = each(x)
        if each is model:
            ts.restore(model)
        x.register_hook(lambda _: seen.append(len(memory.active)))
        y.sum().backward()
        results.append(x.grad)
    assert_same(results[0], results[1])
    assert seen == [0, 0]


def test_before_a_model_trains_torch_is_told_to_keep_large_blocks_whole(
    memory: FakeTorchMemory,
) -> None:
    """And no pool whose blocks it split before is used: torch would fail where it gives one back."""
    other, model = offload().eval(), offload().eval()
    for each in (other, model):
        each(X)
    with torch.no_grad():
        model.train()(X)
    assert not memory.keeps_whole
    assert len(memory.pools) == 2
    model(X)
    assert memory.keeps_whole
    assert len(memory.pools) == 3
    model(X)
    assert len(memory.pools) == 3
    other(X)
    assert len(memory.pools) == 4
    assert memory.active == []


def test_a_backward_uses_no_pool_whose_blocks_were_split_before(memory: FakeTorchMemory) -> None:
    waiting, model = offload().eval(), offload().train()
    y = waiting(X.clone().requires_grad_())
    model(X)
    pools = len(memory.pools)
    y.sum().backward()
    assert len(memory.pools) == pools + 1


def test_without_gradients_nothing_is_watched(memory: FakeTorchMemory) -> None:
    model = offload()
    with torch.no_grad():
        model(X)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert not model(X).requires_grad
    orchestrator = orchestrator_of(model)
    assert not orchestrator._awaits_backward
