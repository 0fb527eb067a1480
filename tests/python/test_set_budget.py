"""A budget that moves: the same bytes at each, never above it, and errors that leave the model as it was."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, save
from model_shapes import SHAPES, make_stack, row_ids
from tensorstream.orchestrator import orchestrator_of
from tensorstream.proxy import ParkedParameter


def parked(model: nn.Module) -> int:
    return sum(isinstance(p, ParkedParameter) for p in model.parameters())


def reach(model: Any) -> tuple[int, int]:
    """The smallest budget that works for an offloaded model, and the one that holds everything."""
    with pytest.raises(ts.BudgetError) as refused:
        ts.set_budget(model, ram_budget=1)
    plan = orchestrator_of(model).engine.plan
    smallest = refused.value.needed_bytes
    return smallest, smallest + plan.everything_fits_bytes - plan.smallest_budget_bytes


@pytest.mark.parametrize("source", ["file", "memory"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_every_budget_gives_the_same_bytes(name: str, source: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    plain: Any = shape.make(4)
    path = save(plain, tmp_path / name)
    model: Any = type(plain).from_pretrained(path) if source == "file" else shape.make(4)
    with torch.no_grad():
        expected = plain(**shape.inputs())
        offload_tightly(model)
        smallest, fits = reach(model)
        for step in (4, 0, 2, 1, 4, 3, 0):
            budget = smallest + (fits - smallest) * step // 4
            assert ts.set_budget(model, ram_budget=budget) is model
            for round_ in range(2):
                assert_same(model(**shape.inputs()), expected, f"step {step}, forward {round_}")
            stats = ts.stats(model)
            assert stats.budget_bytes == budget
            assert stats.held_bytes <= budget
        assert_same(list(model.state_dict().values()), list(plain.state_dict().values()))
        ts.restore(model)
        assert_same(model(**shape.inputs()), expected, "restored")
    assert hooks_of(model) == []


def test_more_makes_more_resident_and_everything_takes_the_hooks_off() -> None:
    model: Any = offload_tightly(make_stack(6))
    smallest, fits = reach(model)
    before = parked(model)
    for step in range(1, 5):
        ts.set_budget(model, ram_budget=smallest + (fits - smallest) * step // 4)
        assert parked(model) <= before
        before = parked(model)
    assert before == 0
    assert hooks_of(model) == []
    assert all(type(p) is nn.Parameter for p in model.parameters())
    ts.set_budget(model, ram_budget=smallest)
    assert parked(model) > 0
    assert hooks_of(model)


def test_a_budget_that_is_too_small_names_the_smallest_and_changes_nothing() -> None:
    model: Any = make_stack(5)
    ts.offload(model, ram_budget=ts.estimate_memory(model).smallest_budget_bytes * 2)
    smallest, _ = reach(model)
    kinds = [type(p) for p in model.parameters()]
    before = ts.stats(model)
    with pytest.raises(ts.BudgetError, match=str(smallest)) as raised:
        ts.set_budget(model, ram_budget=smallest - 1)
    assert raised.value.needed_bytes == smallest
    assert [type(p) for p in model.parameters()] == kinds
    after = ts.stats(model)
    assert (after.budget_bytes, after.held_bytes) == (before.budget_bytes, before.held_bytes)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(5)(row_ids()))
    ts.set_budget(model, ram_budget=smallest)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(5)(row_ids()))


@pytest.mark.parametrize("how", ["in place", "data", "load_state_dict"])
def test_what_was_written_to_a_resident_is_kept(how: str, tmp_path: Path) -> None:
    model: Any = offload_tightly(make_stack(4))
    plain = make_stack(4)
    smallest, fits = reach(model)
    with torch.no_grad():
        for round_ in range(3):
            ts.set_budget(model, ram_budget=fits)
            for one in (model, plain):
                weight = one.blocks[round_].up.weight
                if how == "in place":
                    weight.mul_(1.5)
                elif how == "data":
                    weight.data = torch.full_like(weight, 0.25 + round_)
                else:
                    values = {name: value * 0.5 for name, value in plain.state_dict().items()}
                    one.load_state_dict(values)
            ts.set_budget(model, ram_budget=smallest)
            assert_same(model(row_ids()), plain(row_ids()), f"round {round_}")
            model.blocks[3].down.bias.add_(1)  # and to a streamed one
            plain.blocks[3].down.bias.add_(1)
        ts.set_budget(model, ram_budget=fits)
        assert_same(model(row_ids()), plain(row_ids()))


def test_amidst_a_forward_of_this_thread_it_is_refused() -> None:
    model: Any = offload_tightly(make_stack(4))
    smallest, fits = reach(model)
    raised: list[Exception] = []

    def set_it(*_: Any) -> None:
        try:
            ts.set_budget(model, ram_budget=fits)
        except ts.ConfigError as error:
            raised.append(error)

    handle = model.blocks[2].register_forward_hook(set_it)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(4)(row_ids()))
        handle.remove()
        assert "in a forward of the model" in str(raised[0])
        assert ts.stats(model).budget_bytes == smallest
        ts.set_budget(model, ram_budget=fits)
        assert_same(model(row_ids()), make_stack(4)(row_ids()))


def test_a_forward_of_another_thread_is_waited_for() -> None:
    model: Any = offload_tightly(make_stack(4))
    _, fits = reach(model)
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        inside.set()
        assert go_on.wait(30)

    handle = model.blocks[1].register_forward_hook(hold)
    outputs: list[torch.Tensor] = []

    def run() -> None:
        with torch.no_grad():
            outputs.append(model(row_ids()))

    forward = threading.Thread(target=run)
    forward.start()
    assert inside.wait(30)
    handle.remove()
    setting = threading.Thread(target=ts.set_budget, args=(model,), kwargs={"ram_budget": fits})
    setting.start()
    setting.join(0.2)
    assert setting.is_alive()
    go_on.set()
    forward.join()
    setting.join()
    assert parked(model) == 0
    with torch.no_grad():
        assert_same(outputs, make_stack(4)(row_ids()))
        assert_same(model(row_ids()), make_stack(4)(row_ids()))


def test_a_value_that_somebody_holds_stays_true_or_the_budget_stays(tmp_path: Path) -> None:
    shape = SHAPES["llama"]
    path = save(shape.make(3), tmp_path / "llama")
    model: Any = ts.from_pretrained(path, ram_budget="1GiB")
    smallest, fits = reach(model)
    ts.set_budget(model, ram_budget=smallest)
    weight = next(p for p in model.parameters() if isinstance(p, ParkedParameter))
    held = weight.detach()
    with pytest.raises(ts.UnsupportedError, match="holds the value"):
        ts.set_budget(model, ram_budget=fits)
    assert isinstance(weight, ParkedParameter)
    del held
    ts.set_budget(model, ram_budget=fits)
    assert type(weight) is nn.Parameter
    view = weight.data[0]
    with pytest.raises(ts.UnsupportedError, match="holds a view"):
        ts.set_budget(model, ram_budget=smallest)
    assert type(weight) is nn.Parameter
    del view
    ts.set_budget(model, ram_budget=smallest)
    with torch.no_grad():
        assert_same(model(**shape.inputs()), shape.make(3)(**shape.inputs()))


def test_a_resident_of_another_shape_or_type_cannot_be_streamed_again() -> None:
    model: Any = offload_tightly(make_stack(3))
    smallest, fits = reach(model)
    ts.set_budget(model, ram_budget=fits)
    kept = model.blocks[1].up.weight.data
    model.blocks[1].up.weight.data = kept.half()
    with pytest.raises(ts.UnsupportedError, match=r"blocks\.1\.up\.weight"):
        ts.set_budget(model, ram_budget=smallest)
    model.blocks[1].up.weight.data = kept
    del kept
    ts.set_budget(model, ram_budget=smallest)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(3)(row_ids()))


def test_gradients_after_it_are_those_of_the_plain_model() -> None:
    model: Any = offload_tightly(make_stack(4))
    plain = make_stack(4)
    smallest, fits = reach(model)
    for budget in (fits, smallest, (smallest + fits) // 2):
        ts.set_budget(model, ram_budget=budget)
        for one in (model, plain):
            one.zero_grad()
            one(row_ids()).sum().backward()
        assert_same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vram_budget": "1GiB"}, "is ram_budget"),
        ({}, "nothing is given"),
        ({"vram_budget": "1GiB", "ram_budget": "1GiB"}, "is ram_budget"),
        ({"ram_budget": "much"}, "ram_budget"),
        ({"ram_budget": True}, "ram_budget"),
    ],
)
def test_a_budget_that_it_cannot_have(options: dict[str, Any], text: str) -> None:
    model: Any = offload_tightly(make_stack(3))
    with pytest.raises(ts.ConfigError, match=text):
        ts.set_budget(model, **options)


def test_of_a_model_that_is_not_offloaded() -> None:
    with pytest.raises(ts.ConfigError, match="not offloaded"):
        ts.set_budget(make_stack(2), ram_budget="1GiB")
