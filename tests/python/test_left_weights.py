"""Weights that were streamed and are plain now: what graphs saved of them before, and who else has them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, smallest_budget
from fake_gpu import use_fake_gpu
from flexible_model import X, make_flexible
from tensorstream.orchestrator import orchestrator_of


@pytest.fixture(params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "gpu":
        use_fake_gpu(monkeypatch, homes=True)
    return name


def streamed() -> tuple[Any, int]:
    """A model whose weights are streamed, and the budget from which they are not."""
    model = make_flexible()
    estimate = ts.estimate_memory(model)
    ts.offload(model, ram_budget=estimate.smallest_budget_bytes)
    return model, 2 * estimate.everything_fits_bytes


def settle(model: nn.Module, everything: int, how: str) -> None:
    if how == "restored":
        ts.restore(model)
    else:
        ts.set_budget(model, ram_budget=everything)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("how", ["settled", "restored"])
def test_a_write_between_forward_and_backward_shows(device: str, how: str) -> None:
    model, everything = streamed()
    loss = model(X).square().mean()
    settle(model, everything, how)
    with torch.no_grad():
        model.blocks[1].up.weight.mul_(3)
    with pytest.raises(RuntimeError, match=r"blocks\.1\.up\.weight' was written to, or"):
        loss.backward()


@pytest.mark.parametrize("how", ["settled", "restored"])
def test_gradients_are_the_plain_ones_where_nothing_was_written(device: str, how: str) -> None:
    plain = make_flexible()
    plain(X).square().mean().backward()
    model, everything = streamed()
    loss = model(X).square().mean()
    settle(model, everything, how)
    loss.backward()
    for mine, its in zip(gradients(model), gradients(plain), strict=True):
        assert_same(mine, its)


def test_a_write_to_a_weight_that_is_streamed_again_shows(device: str) -> None:
    model, everything = streamed()
    loss = model(X).square().mean()
    smallest = ts.stats(model).budget_bytes
    ts.set_budget(model, ram_budget=everything)
    ts.set_budget(model, ram_budget=smallest)
    with torch.no_grad():
        model.blocks[1].up.weight.mul_(3)
    with pytest.raises(RuntimeError, match="was written to, or streamed anew"):
        loss.backward()


class Scaled(nn.Module):
    """Graphs save its weight itself, and not a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(256, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_graph_that_saved_a_settled_weight_itself_sees_that_it_left(device: str) -> None:
    model = nn.Sequential(*(Scaled() for _ in range(6)))
    smallest = smallest_budget(model)
    ts.offload(model, ram_budget=smallest)
    ts.set_budget(model, ram_budget="1GiB")
    loss = model(torch.rand(256, 256)).sum()
    ts.set_budget(model, ram_budget=smallest)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_budget_moved_in_inference_mode_leaves_weights_that_train(device: str) -> None:
    model, everything = streamed()
    with torch.inference_mode():
        ts.set_budget(model, ram_budget=everything)
    model(X).square().mean().backward()
    with torch.inference_mode():
        ts.restore(model)
    model(X).square().mean().backward()


def test_what_a_state_dict_holds_is_no_write() -> None:
    plain = make_flexible()
    plain(X).square().mean().backward()
    model, everything = streamed()
    kept = model.state_dict()
    loss = model(X).square().mean()
    ts.set_budget(model, ram_budget=everything)
    loss.backward()
    for mine, its in zip(gradients(model), gradients(plain), strict=True):
        assert_same(mine, its)
    for name, value in plain.state_dict().items():
        assert_same(kept[name], value)


def test_a_write_to_what_a_state_dict_holds_shows() -> None:
    model, everything = streamed()
    kept = model.state_dict()
    loss = model(X).square().mean()
    ts.set_budget(model, ram_budget=everything)
    kept["blocks.1.up.weight"].mul_(3)
    with pytest.raises(RuntimeError, match="was written to, or"):
        loss.backward()


def test_the_budget_of_an_engine_that_is_over_closes_no_gate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model may have another engine by then, and gates that wait for one another never open."""
    model, everything = streamed()
    before = orchestrator_of(model)
    ts.restore(model)

    def close(*_: Any) -> None:
        raise AssertionError("it was closed")

    monkeypatch.setattr(type(before._gate), "_close", close)
    with pytest.raises(ts.ConfigError, match="restored the model"):
        before.set_budget(everything)


def test_a_wrapper_of_an_offloaded_model_is_refused() -> None:
    model = make_flexible()
    ts.offload(model, ram_budget="1GiB")  # without hooks
    with pytest.raises(ts.ConfigError, match="offloaded already"):
        ts.offload(nn.Sequential(model), ram_budget="1GiB")


def test_a_module_that_another_engine_streams_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_fake_gpu(monkeypatch, homes=True)
    one = make_flexible()
    two = nn.Sequential(one.blocks[0], make_flexible().blocks[1])
    plain_one, plain_two = copy.deepcopy(one), copy.deepcopy(two)
    smallest, smallest_of_one = smallest_budget(two), smallest_budget(one)
    ts.offload(one, ram_budget=smallest_of_one)
    ts.set_budget(one, ram_budget="1GiB")
    ts.offload(two, ram_budget=smallest)
    with torch.no_grad():
        assert_same(two(X), plain_two(X))
        with pytest.raises(ts.UnsupportedError, match="streamed by another offloaded model"):
            ts.set_budget(one, ram_budget=smallest_of_one)
        assert_same(two(X), plain_two(X))
        ts.restore(one)
        for _ in range(2):
            assert_same(two(X), plain_two(X))
            assert_same(one(X), plain_one(X))


def test_another_class_of_a_weight_has_its_value(device: str) -> None:
    model, _ = streamed()
    weight, plain = model.blocks[1].up.weight, make_flexible().blocks[1].up.weight
    assert_same(weight.as_subclass(torch.Tensor) + 0, plain + 0)
    for each in (weight, plain):
        each.as_subclass(torch.Tensor).square().sum().backward()
    assert_same(weight.grad, plain.grad)
