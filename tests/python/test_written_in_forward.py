"""What a forward writes to its weight, of which somebody holds an alias."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from tensorstream.orchestrator import orchestrator_of


class Halving(nn.Linear):
    """Halves its weight in each forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.mul_(0.5)
        return super().forward(x)


@pytest.mark.parametrize("where", ["file", "gpu", "gpu without homes"])
@pytest.mark.parametrize("alias", [lambda w: w.data, lambda w: w.detach()[0]])
def test_what_a_forward_writes_is_kept_beside_an_alias(
    where: str,
    alias: Callable[[torch.Tensor], torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if where.startswith("gpu"):
        use_fake_gpu(monkeypatch, homes=where == "gpu")
    plain = nn.Sequential(Halving(256, 256), nn.Linear(256, 256), nn.Linear(256, 256))
    model = copy.deepcopy(plain)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    offload_tightly(model, checkpoint=tmp_path / "x.safetensors" if where == "file" else None)
    held, plain_held = alias(model[0].weight), alias(plain[0].weight)
    x = torch.randn(2, 256)
    with torch.no_grad():
        for number in range(3):
            assert_same(model(x), plain(x), f"forward {number}")
            assert_same(model[0].weight, plain[0].weight, f"weight after forward {number}")
            assert_same(held, plain_held, f"alias after forward {number}")
        held.zero_()
        plain_held.zero_()
        assert_same(model(x), plain(x), "after a write through the alias")
        del held
        assert_same(model(x), plain(x), "without the alias")
        assert_same(model(x), plain(x), "without the alias, again")
    assert not orchestrator_of(model).loans.weights, "the alias is gone, and its memory is kept"


def test_a_write_that_may_be_the_alias_s_is_refused_and_the_weight_is_as_before() -> None:
    """A model in RAM that computes there: its parameters and their aliases have one version."""
    model = nn.Sequential(Halving(256, 256), nn.Linear(256, 256), nn.Linear(256, 256))
    before = model[0].weight.detach().clone()
    offload_tightly(model)
    held = model[0].weight.data
    for _ in range(2):
        with pytest.raises(ts.UnsupportedError, match="alias"):
            model(torch.randn(2, 256))
        assert_same(model[0].weight, before)
        assert_same(held, before)
    del held
    model(torch.randn(2, 256))
    assert_same(model[0].weight, before / 2)


def test_what_is_refused_of_one_weight_is_kept_of_the_others() -> None:
    class HalvingBoth(Halving):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.bias.mul_(0.5)
            return super().forward(x)

    model = nn.Sequential(HalvingBoth(256, 256), nn.Linear(256, 256), nn.Linear(256, 256))
    weight, bias = (each.detach().clone() for each in model[0].parameters())
    offload_tightly(model)
    held = model[0].weight.data
    with pytest.raises(ts.UnsupportedError, match="alias"):
        model(torch.randn(2, 256))
    assert_same([model[0].weight, held, model[0].bias], [weight, weight, bias / 2])
