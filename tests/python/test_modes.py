"""Modes of torch's that a user has on: they see operations, and none of what streaming weights takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tensorstream as ts
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from model_shapes import Stack, make_stack, row_ids


class FunctionsCopy(TorchFunctionMode):
    """Gives copies of what functions return: the same numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.clone() if type(result) is torch.Tensor else result


class OperatorsCopy(TorchDispatchMode):
    """The same of operators, below autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = isinstance(result, torch.Tensor) and not func._schema.is_mutable
        return result.clone() if copies else result


@pytest.fixture(params=["RAM", "home", "no home"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Stack, Stack]:
    """The same model twice, the first streamed."""
    if request.param != "RAM":
        use_fake_gpu(monkeypatch, homes=request.param == "home")
    model = make_stack(3)
    plain = copy.deepcopy(model)
    offload_tightly(model)
    return model, plain


@pytest.mark.parametrize("mode", [FunctionsCopy, OperatorsCopy])
def test_a_model_computes_in_a_mode_that_copies_and_after_it(
    pair: tuple[Stack, Stack], mode: type[Any]
) -> None:
    model, plain = pair
    with torch.no_grad():
        with mode():
            assert_same(model(row_ids()), plain(row_ids()), "in the mode")
        for _ in range(2):
            assert_same(model(row_ids()), plain(row_ids()), "after it")


def test_what_is_written_in_a_mode_that_copies_is_kept(pair: tuple[Stack, Stack]) -> None:
    model, plain = pair
    with torch.no_grad():
        for each in pair:
            with FunctionsCopy():
                each.blocks[1].up.weight.mul_(2.0)
        assert_same(model(row_ids()), plain(row_ids()), "after the write")
    ts.restore(model)
    assert_same(model.blocks[1].up.weight, plain.blocks[1].up.weight, "the weight")


def test_modes_are_as_they_were(pair: tuple[Stack, Stack]) -> None:
    model, _ = pair
    with FunctionsCopy() as outer, FunctionsCopy() as inner, torch.no_grad():
        model(row_ids())
        assert model.blocks[1].up.weight.sum().isfinite()
        assert torch._C._get_function_stack_at(0) is outer
        assert torch._C._get_function_stack_at(1) is inner
    assert torch._C._len_torch_function_stack() == 0
