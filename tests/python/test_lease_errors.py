"""What Python raises while a lease ends: the weights are parked, for their place is another group's soon."""

from __future__ import annotations

import copy
import sys
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from model_shapes import make_stack
from tensorstream import weight as weights
from tensorstream.lent import LentGroup
from tensorstream.orchestrator import orchestrator_of
from tensorstream.proxy import ParkedParameter
from tensorstream.weight import Weight


class Scale(nn.Module):
    """Writes to its own weight while that is lent, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(256, 256) * 0.05)
        self.writes = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.writes:
            with torch.no_grad():
                self.weight.mul_(1.125)
        return x @ self.weight


def test_an_interrupt_while_what_was_written_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(Scale() for _ in range(4)))
    plain = copy.deepcopy(model)
    offload_tightly(model)
    x = torch.randn(2, 256)
    with torch.no_grad():
        assert_same(model(x), plain(x), "before")
    first: Any = model[0]
    first.writes = True

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(LentGroup, "values", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model(x)
    assert isinstance(first.weight, ParkedParameter)
    first.writes = False
    with torch.no_grad():
        assert_same(model(x), plain(x), "what it wrote is lost")
    ts.restore(model)
    assert_same(first.weight, plain[0].weight, "restored")


@pytest.mark.parametrize(("owner", "step"), [(LentGroup, "values"), (Weight, "adopt")])
def test_an_interrupt_while_what_an_abandoned_forward_wrote_is_kept(
    owner: type, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(*(Scale() for _ in range(4)))
    plain = copy.deepcopy(model)
    offload_tightly(model)
    x = torch.randn(2, 256)
    first: Any = model[0]
    first.writes = True

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__matmul__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model(x)
        first.writes = False
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                model(x)
        assert isinstance(first.weight, ParkedParameter)
        assert_same(model(x), plain(x), "what it wrote is lost")
    ts.restore(model)
    assert_same(first.weight, plain[0].weight, "restored")


def test_an_interrupt_anywhere_in_a_read_of_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As backward reads a weight: at whatever line a signal's handler raises, the lease is given back."""
    use_fake_gpu(monkeypatch, homes=True)
    orchestrator = orchestrator_of(offload_tightly(make_stack(3)))
    weight = next(
        each for each in orchestrator._weights.values() if each.name == "blocks.1.up.weight"
    )
    engine, stream = orchestrator.engine, orchestrator.device.stream()
    assert engine.acquire(weight.group, stream)
    engine.release(weight.group, stream)

    def interrupted_at(line: int) -> bool:
        """Whether there are so many lines."""
        left = [line]

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename != weights.__file__:
                return None
            if event in ("line", "return"):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            weight.read_as_loaded()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    line = 1
    while interrupted_at(line):
        with pytest.raises(ts.LeaseError):  # nobody has one
            engine.release(weight.group, stream)
        line += 1
    assert line > 6
    assert_same(weight.read_as_loaded(), weight.read())
