"""Memory of the engine that somebody holds where a budget would take it away."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, smallest_budget
from tensorstream.forms import copy_at

_SIZE = 256
_LAYER_BYTES = _SIZE * _SIZE * 4


def _models(folder: Path, resident: int) -> tuple[Any, Any, int]:
    """A plain model, the same with some resident layers, and the smallest budget."""
    torch.manual_seed(0)
    plain = nn.Sequential(*(nn.Linear(_SIZE, _SIZE) for _ in range(5)))
    model = copy.deepcopy(plain)
    smallest = smallest_budget(model)
    save_file(model.state_dict(), folder / "x.safetensors")
    budget = smallest + resident * (_LAYER_BYTES + 4096)
    ts.offload(model, ram_budget=budget, checkpoint=folder / "x.safetensors")
    return plain, model, smallest


def test_values_of_residents_that_were_set_aside(tmp_path: Path) -> None:
    plain, model, smallest = _models(tmp_path, 2)
    stored = [p.data for p in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.detach() * 0.5
    with pytest.raises(ts.UnsupportedError, match=r"holds a view of '\d.weight'"):
        ts.set_budget(model, ram_budget=smallest)
    for parameter, value in zip(model.parameters(), stored, strict=True):
        parameter.data = value
    assert_same(stored, list(plain.parameters()))
    del stored, value, parameter
    ts.set_budget(model, ram_budget=smallest)
    x = torch.randn(2, _SIZE)
    with torch.no_grad():
        assert_same(model(x), plain(x))


@pytest.mark.parametrize("budgets", ["up", "down", "down and up"])
def test_weights_that_go_round_between_layers(budgets: str, tmp_path: Path) -> None:
    plain, model, smallest = _models(tmp_path, 2)
    for each in (plain, model):
        values = [layer.weight.data for layer in each]
        for layer, value in zip(each, values[1:] + values[:1], strict=True):
            layer.weight.data = value
        del values, value, layer
    for budget in [smallest if each == "down" else "1GiB" for each in budgets.split(" and ")]:
        try:
            ts.set_budget(model, ram_budget=budget)
        except ts.UnsupportedError as error:
            assert "somebody holds" in str(error)
        assert_same(dict(model.state_dict()), dict(plain.state_dict()))
        x = torch.randn(2, _SIZE)
        with torch.no_grad():
            assert_same(model(x), plain(x))
    assert_same(dict(ts.restore(model).state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("others", [False, True])
def test_a_view_that_a_failed_forward_kept(*, others: bool, tmp_path: Path) -> None:
    class Failing(nn.Linear):
        fails = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.fails:
                self.kept = self.weight.data
                raise KeyError("its own")
            return super().forward(x)

    torch.manual_seed(0)
    plain = nn.Sequential(*(Failing(_SIZE, _SIZE) for _ in range(5)))
    save_file(plain.state_dict(), tmp_path / "x.safetensors")
    model: Any = copy.deepcopy(plain)
    smallest = smallest_budget(model)
    ts.offload(model, ram_budget=smallest, checkpoint=tmp_path / "x.safetensors")
    x = torch.randn(2, _SIZE)
    with pytest.raises(KeyError):
        model(x)
    for layer in (*plain, *model):
        layer.fails = False
    if others:  # the view's place is theirs, and its group comes to another one
        with torch.no_grad():
            model[1:](x)
    gc.collect()
    with pytest.raises(
        ts.UnsupportedError, match=r"holds a view of the streamed weight '0.weight'"
    ):
        ts.set_budget(model, ram_budget=smallest * 2)
    del model[0].kept
    ts.set_budget(model, ram_budget=smallest * 2)
    with torch.no_grad():
        assert_same(model(x), plain(x))


@pytest.mark.parametrize("resident", [0, 2, 4])
@pytest.mark.parametrize("layer", range(5))
@pytest.mark.parametrize("settled_with", ["smallest", "more"])
def test_what_is_written_to_given_memory_stays_when_the_budget_moves(
    resident: int, layer: int, settled_with: str, tmp_path: Path
) -> None:
    plain, model, smallest = _models(tmp_path, 0)
    for each in (plain, model):
        each[layer].weight.data = copy_at(each[layer].weight.data, 20)
    budget = smallest + resident * (_LAYER_BYTES + 4096)
    ts.set_budget(model, ram_budget=budget)
    for each in (plain, model):
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.mul_(0.5)
    ts.set_budget(model, ram_budget=budget if settled_with == "smallest" else "1GiB")
    assert_same(dict(model.state_dict()), dict(plain.state_dict()))
    x = torch.randn(2, _SIZE)
    with torch.no_grad():
        assert_same(model(x), plain(x))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("resident", [0, 2, 4])
def test_aliases_of_residents_outlive_a_restore(
    resident: int, *, given: bool, tmp_path: Path
) -> None:
    plain, model, _ = _models(tmp_path, resident)
    for each in (plain, model):
        aliases = [p.data for p in each.parameters()]
        if given:
            aliases = [alias.clone() for alias in aliases]
            for parameter, alias in zip(each.parameters(), aliases, strict=True):
                parameter.data = alias
        if each is model:
            ts.restore(model)
        for alias in aliases:
            alias.add_(1)
    assert_same(dict(model.state_dict()), dict(plain.state_dict()))


def test_a_weight_that_was_swapped_is_not_settled(tmp_path: Path) -> None:
    _, model, _ = _models(tmp_path, 0)
    other = torch.randn(_SIZE, _SIZE)
    torch.utils.swap_tensors(model[2].weight, nn.Parameter(other.clone()))
    with pytest.raises(ts.UnsupportedError, match=r"'2.weight' was exchanged"):
        ts.set_budget(model, ram_budget="1GiB")
    assert_same(model[2].weight, other)
    assert_same(ts.restore(model)[2].weight, other)
