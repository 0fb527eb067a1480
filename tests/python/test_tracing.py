"""What records operations on streamed weights instead of running them is refused."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import tensorstream as ts
from conftest import assert_same, offload_tightly
from flexible_model import X, make_flexible
from model_shapes import SHAPES
from tensorstream import tracing


def _made_by_fx(model: nn.Module) -> Any:
    return make_fx(model)(X)


def _under_fake_tensors(model: nn.Module) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model(torch.ones(3, 256))


RECORDERS: dict[str, Callable[[nn.Module], Any]] = {
    "jit": lambda model: torch.jit.trace(model, X),
    "script": torch.jit.script,
    "export": lambda model: torch.export.export(model, (X,)),
    "make_fx": _made_by_fx,
    "fake tensors": _under_fake_tensors,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.(trace|script):DeprecationWarning")
@pytest.mark.parametrize("state", ["new", "run before"])
@pytest.mark.parametrize("recorder", RECORDERS)
def test_what_records_weights_instead_of_using_them_is_refused(recorder: str, state: str) -> None:
    """It would freeze them in a graph, or leave tensors without bytes in their place."""
    plain = make_flexible()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    with torch.no_grad():
        if state == "run before":
            model(X)
        with pytest.raises(ts.UnsupportedError, match="restore the model first"):
            RECORDERS[recorder](model)
        assert_same(model(X), plain(X), "afterwards")
        assert_same(list(model.parameters()), list(plain.parameters()), "the weights")


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_parts_of_what_is_leased_as_one_are_not_scripted_either() -> None:
    plain: Any = SHAPES["llama"].make(4)
    model: Any = copy.deepcopy(plain)
    ts.offload(model, ram_budget=ts.estimate_memory(model).smallest_budget_bytes * 3)
    attention = model.model.layers[1].self_attn
    handle = attention.o_proj.register_forward_hook(lambda *_: None)
    for part in (attention.q_proj, attention.k_proj):
        assert not part._forward_hooks, "another module has its hooks"
        with pytest.raises(ts.UnsupportedError, match="restore the model first"):
            torch.jit.script(part)
    handle.remove()
    copied = torch.jit.script(copy.deepcopy(attention.q_proj))
    ts.restore(model)
    assert {type(module._forward_hooks) for module in model.modules()} == {OrderedDict}
    linear = plain.model.layers[1].self_attn.q_proj
    x = torch.ones(2, linear.in_features, dtype=linear.weight.dtype)
    for made in (copied, torch.jit.script(attention.q_proj)):
        assert_same(made(x), linear(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("recorder", ["jit", "make_fx", "fake tensors"])
def test_the_same_of_a_weight_used_without_its_module(recorder: str) -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_flexible()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.inner.blocks[1].up.weight)

    model, plain = Direct(), Direct()
    offload_tightly(model.inner)
    with torch.no_grad():
        with pytest.raises(ts.UnsupportedError, match="restore the model first"):
            RECORDERS[recorder](model)
        assert_same(model(X), plain(X), "afterwards")


def test_a_parked_weight_is_refused_where_its_stream_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = offload_tightly(make_flexible())
    weight = model.blocks[2].up.weight
    with torch.no_grad():
        plain = weight.sum()
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(tracing, "_is_capturing", lambda: True)
        with pytest.raises(ts.UnsupportedError, match="captured into a CUDA graph"):
            weight.sum()
        monkeypatch.undo()
        assert_same(weight.sum(), plain)
