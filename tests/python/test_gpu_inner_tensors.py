"""Quantised weights on a real GPU: streamed by their inner tensors, or as buffers, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from coded_models import Coded, Rows, Shifted, X, make, make_packed
from conftest import assert_same, hooks_of
from test_gpu import DEVICE, budgets_of, tiny
from test_gpu_bitsandbytes import expected_of, prefill_and_decode
from test_torchao import make as make_torchao
from test_torchao import quietly

pytestmark = pytest.mark.needs_gpu
__all__ = ["quietly"]  # a fixture


def check_streamed(model: Any, x: torch.Tensor, expected: torch.Tensor, weight: Any) -> None:
    kind = type(weight)
    for budget in budgets_of(model, 4):
        ts.offload(model, **tiny(budget), self_check=True)
        for round_ in range(3):
            assert_same(model(x), expected, f"{budget} bytes, round {round_}")
        assert str(weight.device) == DEVICE
        assert isinstance(weight, kind)
        ts.restore(model)
        assert (weight.device.type, type(weight)) == ("cpu", kind)


@pytest.mark.parametrize("kind", [Rows, Shifted])
def test_wrappers_are_bit_identical(kind: type[Coded]) -> None:
    x = X.to(DEVICE)
    expected = make(kind).to(DEVICE)(x)
    model = make(kind)
    check_streamed(model, x, expected, model[0][0].weight)
    assert_same(model.to(DEVICE)(x), expected, "restored")


@pytest.mark.parametrize("kind", [Rows, Shifted])
def test_gradients_through_wrappers(kind: type[Coded]) -> None:
    model = ts.offload(make(kind), **tiny(budgets_of(make(kind), 3)[0]), self_check=True)
    gradients = []
    for of in (make(kind).to(DEVICE), model, model):
        x = X.to(DEVICE).requires_grad_()
        of(x).square().sum().backward()
        gradients.append(x.grad)
    assert_same(gradients[1:], gradients[:1] * 2)


def test_buffers_are_bit_identical() -> None:
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    expected = make_packed().to(DEVICE)(x)
    model = make_packed()
    check_streamed(model, x, expected, model[0][0].qweight)


@pytest.mark.parametrize("kind", ["int8", "float8", "int4"])
def test_weights_of_torchao(kind: str) -> None:
    model = make_torchao(kind)
    weight: Any = model.model.layers[0].mlp.up_proj.weight
    own = type(weight)
    expected = expected_of(make_torchao(kind).to(DEVICE))
    for budget in budgets_of(model, 4):
        ts.offload(model, **tiny(budget), self_check=True)
        assert hooks_of(model) or budget == budgets_of(make_torchao(kind), 2)[1]
        for round_ in range(2):
            assert_same(prefill_and_decode(model), expected, f"{budget} bytes, round {round_}")
        assert str(weight.device) == DEVICE
        assert isinstance(weight, own)
        assert isinstance(weight, nn.Parameter)
        ts.restore(model)
        assert (weight.device.type, type(weight)) == ("cpu", own)
