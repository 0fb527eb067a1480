"""What becomes of a model's plain weights where they are taken over, or the budget moves, and that fails."""

from __future__ import annotations

import copy
import functools
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, smallest_budget
from fake_gpu import use_fake_gpu
from model_shapes import make_stack, row_ids
from tensorstream import orchestrator, weight

X = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("before, after", [(20, 20), (3, 3), (3, 4), (4, 3), (20, 3), (3, 20)])
def test_values_given_by_data_stay_when_the_budget_moves(
    before: int, after: int, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu:
        use_fake_gpu(monkeypatch, homes=True)
    model, plain = make_stack(5), make_stack(5)
    smallest = smallest_budget(model)
    more = (1 << 20) if gpu else 0
    ts.offload(model, ram_budget=before * smallest + more, compression="none")
    for each in (model, plain):
        for parameter in each.parameters():
            parameter.data = parameter.data * 2
    assert_same(model(row_ids()), plain(row_ids()))
    for budget in (after, before):
        ts.set_budget(model, ram_budget=budget * smallest + more)
        assert_same(model(row_ids()), plain(row_ids()))
        assert_same(list(model.parameters()), list(plain.parameters()))
    ts.restore(model)
    assert_same(model(row_ids()), plain(row_ids()))


@pytest.mark.parametrize("gpu", [None, "homes", "coded", "from the source"])
@pytest.mark.parametrize("room", [1, 3, 20])
def test_a_value_that_lies_otherwise_is_computed_with_as_it_lies(
    room: int, gpu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products with a transposed weight are rounded otherwise, where a CPU computes them otherwise."""
    if gpu is not None:
        use_fake_gpu(monkeypatch, homes=gpu != "from the source")
    more = {None: 0, "coded": 4 << 20}.get(gpu, 1 << 20)
    model: Any = make_stack(5)
    plain: Any = make_stack(5)
    smallest = smallest_budget(model)
    compression = "1" if gpu == "coded" else "none"
    ts.offload(model, ram_budget=room * smallest + more, compression=compression)
    assert_same(model(row_ids()), plain(row_ids()))
    for value in (torch.randn(256, 256).T, torch.randn(256, 256)):
        for each in (model, plain):
            for block in each.blocks[::2]:
                block.up.weight.data = value.clone()
        for budget in (room, 4, 20, 3, room):
            ts.set_budget(model, ram_budget=max(budget, min(room, 3)) * smallest + more)
            for _ in range(2):
                assert_same(model(row_ids()), plain(row_ids()))
            up = model.blocks[0].up.weight
            assert up.stride() == value.stride()
            assert_same(list(model.parameters()), list(plain.parameters()))
    for each in (model, plain):
        each.blocks[1].down.weight.data = each.blocks[1].down.weight.data.T
    ts.set_budget(model, ram_budget=4 * smallest + more)
    assert_same(model(row_ids()), plain(row_ids()))
    ts.restore(model)
    assert_same(model(row_ids()), plain(row_ids()))


def test_a_value_with_gaps_is_refused() -> None:
    model, plain = make_stack(3), make_stack(3)
    ts.offload(model, ram_budget=smallest_budget(model))
    block: Any = model.blocks[0]  # type: ignore[index]
    with pytest.raises(ts.UnsupportedError, match=r"strides \(512, 1\) has gaps or overlaps"):
        block.up.weight.data = torch.randn(256, 512)[:, :256]
    assert_same(model(row_ids()), plain(row_ids()))


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int) -> None:
    real, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Interrupted
        return real(*args, **options)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("owner, name", [(orchestrator, "HookedModule"), (weight, "poison_like")])
def test_a_model_is_plain_again_where_offloading_it_was_interrupted(
    owner: Any, name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = make_stack(5), make_stack(5)
    smallest = smallest_budget(model)
    with monkeypatch.context() as patch:
        interrupt_after(patch, owner, name, count)
        with pytest.raises(Interrupted):
            ts.offload(model, ram_budget=smallest)
    assert not hooks_of(model)
    assert {type(parameter) for parameter in model.parameters()} == {nn.Parameter}
    assert_same(list(model.parameters()), list(plain.parameters()))
    ts.offload(model, ram_budget=smallest)
    assert_same(model(row_ids()), plain(row_ids()))


def test_a_model_works_on_where_moving_its_budget_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, plain = make_stack(5), make_stack(5)
    smallest = smallest_budget(model)
    ts.offload(model, ram_budget=20 * smallest)
    for each in (model, plain):
        for parameter in list(each.parameters())[::2]:
            parameter.data = parameter.data * 2
    with monkeypatch.context() as patch:
        interrupt_after(patch, weight, "poison_like", 3)
        with pytest.raises(Interrupted):
            ts.set_budget(model, ram_budget=3 * smallest)
    assert_same(model(row_ids()), plain(row_ids()))
    for budget in (3, 20):
        ts.set_budget(model, ram_budget=budget * smallest)
        assert_same(model(row_ids()), plain(row_ids()))
        assert_same(list(model.parameters()), list(plain.parameters()))


class Saving(nn.Module):
    """Its gradients need weights that graphs save as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv1d(32, 32, 9, padding=4) for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, None] * torch.ones(20)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.mark.parametrize("how", ["offload", "set_budget", "restore and offload"])
def test_a_graph_of_before_the_weights_were_parked_is_refused(how: str) -> None:
    model = Saving()
    plain = copy.deepcopy(model)
    smallest = smallest_budget(model)
    if how != "offload":
        ts.offload(model, ram_budget=3 * smallest)
    loss = model(X).square().sum()
    if how == "restore and offload":
        ts.restore(model)
    if how == "set_budget":
        ts.set_budget(model, ram_budget=smallest)
    else:
        ts.offload(model, ram_budget=smallest)
    assert hooks_of(model)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|streamed anew"):
        loss.backward()
    model.zero_grad()
    for each in (model, plain):
        each(X).square().sum().backward()
    assert_same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return F.linear(x, self.blocks[0].weight)  # type: ignore[arg-type]


def test_whoever_holds_a_weight_that_is_used_twice_stops_no_backward() -> None:
    model = UsedTwice()
    plain = copy.deepcopy(model)
    ts.offload(model, ram_budget=smallest_budget(model))
    aliases = [parameter.detach() for parameter in model.parameters()]
    earlier = model(X)
    for _ in range(2):
        model(X).square().sum().backward()
        plain(X).square().sum().backward()
    assert_same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
    assert_same(aliases, list(plain.parameters()))
    assert_same(earlier, plain(X))


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["script", "trace"])
@pytest.mark.parametrize("room", [1.0, 1.5, 50])
def test_scripted_modules_keep_their_weights(kind: str, room: float) -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(3)
        inner = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
        made = torch.jit.script(inner) if kind == "script" else torch.jit.trace(inner, X)  # type: ignore[no-untyped-call]
        return nn.Sequential(made, nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))

    model, plain = make(), make()
    ts.offload(model, ram_budget=int(room * smallest_budget(model)))
    left = ts.analyze(plain).left
    assert len(left) == 4 and all("ScriptModule" in reason for reason in left.values())
    for _ in range(2):
        assert_same(model(X), plain(X))
    ts.restore(model)
    assert_same(model(X), plain(X))


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_a_scripted_model_stays_as_it_is() -> None:
    plain = torch.jit.script(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)))
    model: Any = copy.deepcopy(plain)
    ts.offload(model, ram_budget="1GiB")
    assert_same(model(X), plain(X))


class OwnParameters(nn.Linear):
    """Takes a name of torch's for itself."""

    parameters = {"rank": 4}  # type: ignore[assignment] # noqa: RUF012


def test_plain_models_are_converted_as_ever() -> None:
    model = ts.offload(make_stack(2), ram_budget="1GiB")
    assert OwnParameters(4, 4).half().weight.dtype is torch.float16
    ts.restore(model)
    assert OwnParameters(4, 4).half().weight.dtype is torch.float16


def test_what_others_put_around_conversions_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ts.restore(ts.offload(make_stack(2), ram_budget="1GiB"))
    ours, calls = nn.Module._apply, []

    @functools.wraps(ours)
    def counted(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        calls.append(module)
        return ours(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "_apply", counted)
    model = offload_tightly(make_stack(2))
    nn.Linear(2, 2).half()
    assert len(calls) == 1
    with pytest.raises(ts.UnsupportedError, match="restore"):
        model.half()


def test_taking_over_thousands_of_modules_takes_seconds() -> None:
    """In proportion to them: half a second, where a look at all groups for each takes more than six."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6000)))
    begin = time.process_time()
    ts.offload(model, ram_budget=smallest_budget(model))
    assert time.process_time() - begin < 5
