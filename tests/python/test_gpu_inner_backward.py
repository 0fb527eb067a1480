"""Gradients that a forward asks for itself, which a real GPU's thread of torch's computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of
from test_gpu import DEVICE, budgets_of, tiny
from test_inner_backward import Descending, Energy, X, call, make

pytestmark = pytest.mark.needs_gpu


def step(model: nn.Module) -> list[torch.Tensor]:
    """What a step gives: the output, and the gradients of the input and of weights that got one."""
    model.zero_grad()
    x = X.to(DEVICE).requires_grad_()
    y = model(x)
    y.sum().backward()
    found = [y, x.grad, *(parameter.grad for parameter in model.parameters())]
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("way", ["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", [Energy, Descending])
def test_a_forward_does_not_wait_for_itself(kind: type[nn.Module], way: str) -> None:
    model = make(kind, way)
    plain = copy.deepcopy(model).to(DEVICE)
    ts.offload(model, **tiny(budgets_of(model, 5)[1]))
    assert hooks_of(model)
    for _ in range(3):
        with torch.no_grad():
            assert_same(model(X.to(DEVICE)), plain(X.to(DEVICE)))
        assert_same(step(model), step(plain))
    assert ts.stats(model).streamed_bytes > 0


def test_gradients_of_parked_weights_that_are_recomputed() -> None:
    model = make(Energy, "not reentrant")
    plain = copy.deepcopy(model).to(DEVICE)
    ts.offload(model, **tiny(budgets_of(model, 5)[1]))
    gradients = []
    for each in (model, plain):
        assert isinstance(each, Energy)
        y = X.to(DEVICE)
        for block in each.blocks:
            y = call(block, "not reentrant", y)
        weights = list(each.blocks.parameters())
        gradients.append(torch.autograd.grad(y.square().sum(), weights))
    assert_same(gradients[0], gradients[1])
