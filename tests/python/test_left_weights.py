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
    smallest = smallest_budget(two)
    ts.offload(one, ram_budget="1GiB")
    ts.offload(two, ram_budget=smallest)
    with torch.no_grad():
        assert_same(two(X), plain_two(X))
        ts.restore(one)
        for _ in range(2):
            assert_same(two(X), plain_two(X))
            assert_same(one(X), plain_one(X))


def test_another_class_of_a_weight_has_its_value(device: str) -> None:
    model, _ = streamed()
    weight = model.blocks[1].up.weight
    assert_same(weight.as_subclass(torch.Tensor) + 0, make_flexible().blocks[1].up.weight + 0)
