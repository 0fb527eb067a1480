"""Views of streamed weights that outlive their forward: true as they were, or refused."""

from __future__ import annotations

import _thread
import copy
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly

X = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))


class Keeps(nn.Module):
    """Returns or keeps a view of its weight."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner = nn.Linear(256, 256)
        self.how = how
        self.kept: object = None

    def forward(self, x: torch.Tensor) -> object:
        y = self.inner(x)
        row = self.inner.weight[3]
        keep = {
            "keep": lambda: row,
            "keep a clone": row.clone,
            "keep its storage": row.untyped_storage,
        }
        if self.how in keep:
            self.kept = keep[self.how]()
            return y
        outputs = {
            "tensor": row,
            "base and view": (row, self.inner.weight.detach().t()[1], row),
            "tuple": (y, (row, 1)),
            "list": [y, row],
            "dict": {"row": row, "y": y},
            "parameter": (y, self.inner.weight),
        }
        return outputs[self.how]


class Several(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Keeps(how) for _ in range(5))

    def forward(self, x: torch.Tensor) -> list[object]:
        return [part(x) for part in self.parts]


@pytest.mark.parametrize("how", ["tensor", "base and view", "tuple", "list", "dict", "parameter"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_view_that_is_returned_outlives_its_weight(
    how: str, mode: Callable[[], torch.autograd.grad_mode.no_grad]
) -> None:
    model = Several(how)
    plain = copy.deepcopy(model)
    offload_tightly(model, self_check=True)
    with mode():
        got, expected = model(X), plain(X)
        model(X + 1)
        assert_same(got, expected, "all groups were loaded again in between")
        kept = model.parts[0].inner.weight
        assert how != "parameter" or got[0][1] is kept
        assert [type(part) for part in got] == [type(part) for part in expected]


@pytest.mark.parametrize("how", ["keep", "keep its storage"])
def test_a_view_kept_on_the_side_is_refused(how: str) -> None:
    model = Several(how)
    offload_tightly(model)
    with torch.no_grad(), pytest.raises(ts.UnsupportedError) as raised:
        model(X)
    assert "keep_resident=('parts.0.inner.weight',)" in str(raised.value)
    for part in model.parts:
        part.kept, part.how = None, "keep a clone"
    plain = copy.deepcopy(model)
    with torch.no_grad():
        assert_same(model(X), plain(X), "usable after the refusal")
    ts.restore(model)
    model.parts[0].how = how
    ts.offload(
        model,
        ram_budget=ts.plan(
            model, ram_budget="1GiB", keep_resident=("parts.0.inner.weight",)
        ).smallest_budget_bytes,
        keep_resident=("parts.0.inner.weight",),
    )
    with torch.no_grad():
        assert_same(model(X), plain(X), "kept resident, as the message says")


def test_a_view_kept_on_the_side_is_refused_also_while_a_graph_is_held() -> None:
    model = Several("keep a clone")
    offload_tightly(model)
    held = model(X)
    for part in model.parts:
        part.kept, part.how = None, "keep"
    with torch.no_grad(), pytest.raises(ts.UnsupportedError, match="keep_resident"):
        model(X)
    del held


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_kept_view_of_any_weight_of_a_group_is_refused(bias: bool, name: str) -> None:
    class Keeping(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = getattr(self, name if bias else "weight").data[:]
            return super().forward(x)

    model = offload_tightly(nn.Sequential(*(Keeping(256, 256, bias=bias) for _ in range(4))))
    with torch.no_grad(), pytest.raises(ts.UnsupportedError, match="was kept beyond"):
        model(torch.zeros(1, 256))


def test_a_value_may_be_asked_for_by_no_frame_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a finalizer of C's, or a thread that begins with it, calls detach()."""
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    model = offload_tightly(nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))))
    before, end = _thread._count(), time.monotonic() + 30
    _thread.start_new_thread(model[0].weight.detach, ())  # type: ignore[union-attr]
    while _thread._count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert errors == []
