"""What Python raises while a lease ends: the weights are parked, for their place is another group's soon."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly
from tensorstream.lent import LentGroup
from tensorstream.proxy import ParkedParameter


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
