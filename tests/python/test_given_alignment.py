"""Weights that are given other memory on the CPU, where products are rounded by where that begins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly
from tensorstream.forms import copy_at, line_offset_of

_SIZE = 129  # rows of which no two begin alike


def _made(folder: Path) -> tuple[nn.Module, Path]:
    """A model whose weights lie in a mapped file as no allocator would have them."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(_SIZE, _SIZE) for _ in range(4)))
    save_file(model.state_dict(), folder / "x.safetensors", {"padding": "x" * 5})
    model.load_state_dict(load_file(folder / "x.safetensors"), assign=True)
    return model, folder / "x.safetensors"


def _offset(parameter: torch.Tensor) -> int:
    """Where a value begins that somebody computes with."""
    return line_offset_of(parameter.data)


def _seen(model: nn.Module) -> list[int]:
    """Where weights begin in their forwards."""
    offsets: list[int] = []
    handles = [
        layer.register_forward_hook(
            lambda module, *_: offsets.extend(map(line_offset_of, module.parameters())),
            prepend=True,
        )
        for layer in model
    ]
    with torch.no_grad():
        model(torch.zeros(1, _SIZE))
    for handle in handles:
        handle.remove()
    return offsets


def _cloned(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _shifted(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = copy_at(parameter.data, 20)


def _set(model: nn.Module) -> None:
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.set_(copy_at(parameter.detach(), 36))


def _then_written(model: nn.Module) -> None:
    _shifted(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def _written(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def _loaded(model: nn.Module) -> None:
    _shifted(model)
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def _one(model: nn.Module) -> None:
    model[1].weight.data = copy_at(model[1].weight.data, 20)  # type: ignore[index,union-attr]


_EDITS = [_cloned, _shifted, _set, _then_written, _written, _loaded, _one]


@pytest.mark.parametrize("edit", _EDITS)
@pytest.mark.parametrize("budget", ["tight", "all", "moved down", "moved up"])
def test_weights_are_computed_with_where_they_were_given(
    budget: str, edit: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    plain, path = _made(tmp_path)
    model = copy.deepcopy(plain)
    model.load_state_dict(load_file(path), assign=True)
    if budget == "all":
        ts.offload(model, ram_budget="1GiB", checkpoint=path)
    else:
        offload_tightly(model, checkpoint=path)
    tight = ts.stats(model).budget_bytes
    if budget == "moved down":
        ts.set_budget(model, ram_budget="1GiB")
    for each in (plain, model):
        edit(each)
    if budget == "moved down":
        ts.set_budget(model, ram_budget=tight)
    elif budget == "moved up":
        ts.set_budget(model, ram_budget="1GiB")
    x = torch.randn(1, _SIZE)
    for number in range(2):
        expected = _seen(plain)
        assert _seen(model) == expected, f"forward {number}"
        with torch.no_grad():
            assert_same(model(x), plain(x))
    assert [_offset(each) for each in model.parameters()] == expected
    if budget != "all":
        ts.restore(model)
        assert [line_offset_of(each) for each in model.parameters()] == expected


def test_what_a_forward_writes_stays_where_it_was_given(tmp_path: Path) -> None:
    class Halving(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.mul_(0.5)
            return super().forward(x)

    plain = nn.Sequential(*(Halving(_SIZE, _SIZE) for _ in range(4)))
    save_file(plain.state_dict(), tmp_path / "x.safetensors")
    model: Any = copy.deepcopy(plain)
    offload_tightly(model, checkpoint=tmp_path / "x.safetensors")
    _shifted(plain)
    _shifted(model)
    for _ in range(3):
        x = torch.randn(1, _SIZE)
        expected = _seen(plain)
        assert _seen(model) == expected
        with torch.no_grad():
            assert_same(model(x), plain(x))
        assert_same(list(model.parameters()), list(plain.parameters()))


def test_gradients_of_weights_that_were_given_memory(tmp_path: Path) -> None:
    plain, path = _made(tmp_path)
    model = copy.deepcopy(plain)
    offload_tightly(model, checkpoint=path)
    for each in (plain, model):
        _shifted(each)
    for _ in range(2):
        x = torch.randn(3, _SIZE)
        for each in (plain, model):
            each.zero_grad()
            each(x).square().sum().backward()
        gradients = [[p.grad for p in each.parameters()] for each in (model, plain)]
        assert_same(*gradients)
        with torch.no_grad():
            for each in (plain, model):
                for parameter in each.parameters():
                    parameter.sub_(parameter.grad, alpha=1e-3)
        assert_same(list(model.parameters()), list(plain.parameters()))


def test_a_view_of_given_memory_may_be_kept(tmp_path: Path) -> None:
    plain, path = _made(tmp_path)
    model = copy.deepcopy(plain)
    offload_tightly(model, checkpoint=path)
    kept = []
    for each in (plain, model):
        _shifted(each)
        kept.append(each[1].weight.data)  # type: ignore[index,union-attr]
        with torch.no_grad():
            each(torch.zeros(1, _SIZE))
    for view in kept:
        view.mul_(3)
    x = torch.randn(1, _SIZE)
    with torch.no_grad():
        assert_same(model(x), plain(x))


def test_what_a_forward_writes_stays_where_it_was(tmp_path: Path) -> None:
    plain, path = _made(tmp_path)

    def halve(module: nn.Module, _: Any) -> None:
        with torch.no_grad():
            module.weight.mul_(0.5)  # type: ignore[operator,union-attr]

    for layer in plain:  # type: ignore[attr-defined]
        layer.register_forward_pre_hook(halve)
    model = copy.deepcopy(plain)
    model.load_state_dict(load_file(path), assign=True)
    offload_tightly(model, checkpoint=path)
    for _ in range(2):
        expected = _seen(plain)
        assert _seen(model) == expected
    assert [_offset(each) for each in model.parameters()] == expected
    ts.restore(model)
    assert [line_offset_of(each) for each in model.parameters()] == expected


@pytest.mark.parametrize("first", [0, 1, 7])
def test_gradients_beside_a_weight_in_one_storage(first: int, tmp_path: Path) -> None:
    """What is given is a part of a larger memory, of which a graph saves other parts too."""

    class Masked(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x @ self.weight[:64].t()
            beside = self.flat[-_SIZE:] if "flat" in vars(self) else x
            return super().forward(x) * beside + rows.sum()

    torch.manual_seed(0)
    plain = nn.Sequential(*(Masked(_SIZE, _SIZE) for _ in range(4)))
    save_file(plain.state_dict(), tmp_path / "x.safetensors")
    model = offload_tightly(copy.deepcopy(plain), checkpoint=tmp_path / "x.safetensors")
    for each in (plain, model):
        for layer in each:  # type: ignore[attr-defined]
            flat = torch.empty(first + _SIZE * _SIZE + _SIZE)
            flat[-_SIZE:] = 0.25
            flat[first : first + _SIZE * _SIZE] = layer.weight.detach().flatten()
            layer.flat = flat
            layer.weight.data = flat[first : first + _SIZE * _SIZE].view(_SIZE, _SIZE)
    for _ in range(2):
        x = torch.randn(3, _SIZE, generator=torch.Generator().manual_seed(1), requires_grad=True)
        found = []
        for each in (plain, model):
            x.grad = None
            each.zero_grad()
            each(x).square().mean().backward()
            found.append([x.grad, *(p.grad for p in each.parameters())])
        assert_same(found[1], found[0])


def test_a_bank_of_which_a_forward_takes_turns(tmp_path: Path) -> None:
    class Turning(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.turn = vars(self).get("turn", 0) + 1
            self.weight.data = self.bank[self.turn % 2]
            return super().forward(x)

    torch.manual_seed(0)
    plain = nn.Sequential(*(Turning(_SIZE, _SIZE) for _ in range(4)))
    model = offload_tightly(copy.deepcopy(plain))
    for each in (plain, model):
        generator = torch.Generator().manual_seed(2)
        for layer in each:  # type: ignore[attr-defined]
            layer.bank = torch.randn(2, _SIZE, _SIZE, generator=generator)
    x = torch.randn(1, _SIZE)
    with torch.no_grad():
        for number in range(4):
            assert_same(model(x), plain(x), f"forward {number}")
            assert_same(list(model.parameters()), list(plain.parameters()))
            for each in (plain, model):
                for layer in each:  # type: ignore[attr-defined]
                    layer.bank.mul_(1.5)
            assert_same(list(model.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("moves", ["u", "ud", "udu", "udud"])
@pytest.mark.parametrize("is_held", [False, True])
def test_budgets_that_move_up_and_down(moves: str, is_held: bool, tmp_path: Path) -> None:
    plain, path = _made(tmp_path)
    model = copy.deepcopy(plain)
    model.load_state_dict(load_file(path), assign=True)
    offload_tightly(model, checkpoint=path)
    tight = ts.stats(model).budget_bytes
    for each in (plain, model):
        _shifted(each)
    held = [[p.data for p in each.parameters()] for each in (plain, model)] if is_held else []
    for move in moves:
        ts.set_budget(model, ram_budget="1GiB" if move == "u" else tight)
        x = torch.randn(1, _SIZE)
        with torch.no_grad():
            assert_same(model(x), plain(x), move)
            for aliases in held:
                for alias in aliases:
                    alias.mul_(1.25)
            assert_same(model(x), plain(x), f"{move}, written through aliases")
        assert _seen(model) == _seen(plain)
    expected = [line_offset_of(each) for each in plain.parameters()]
    ts.restore(model)
    assert_same(list(model.parameters()), list(plain.parameters()))
    if moves.endswith("d"):
        assert [line_offset_of(each) for each in model.parameters()] == expected


def test_a_layout_that_a_forward_gives_begins_where_the_weight_did(tmp_path: Path) -> None:
    def transpose(module: nn.Module, _: Any) -> None:
        module.weight.data = module.weight.data.t()  # type: ignore[operator,union-attr]

    plain, path = _made(tmp_path)
    for layer in plain:  # type: ignore[attr-defined]
        layer.register_forward_pre_hook(transpose)
    model = copy.deepcopy(plain)
    model.load_state_dict(load_file(path), assign=True)
    plain.load_state_dict(load_file(path), assign=True)
    offload_tightly(model, checkpoint=path)
    for number in range(3):
        expected = _seen(plain)
        assert _seen(model) == expected, f"forward {number}"
        x = torch.randn(1, _SIZE)
        with torch.no_grad():
            assert_same(model(x), plain(x))
    ts.restore(model)
    assert [line_offset_of(each) for each in model.parameters()] == expected
