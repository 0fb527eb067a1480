"""Weights whose bytes are exchanged or sent past torch's functions: kept, copied, or an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import tensorstream as ts
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from model_shapes import make_stack, row_ids
from parked_pair import make_pair


@pytest.fixture(params=["memory", "file", "gpu"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "gpu":
        use_fake_gpu(monkeypatch, homes=True)
        return "memory"
    return str(request.param)


@pytest.mark.parametrize("how", ["method", "unbound", "storage"])
@pytest.mark.parametrize("then", ["forward", "read", "restore"])
def test_a_value_by_set_is_kept(how: str, then: str, source: str, tmp_path: Path) -> None:
    pair = make_pair(source, tmp_path)
    pair.check_forward("before")
    value = torch.full((256, 256), 0.25)
    with torch.no_grad():
        for weight in pair.weights:
            if how == "method":
                weight.set_(value.clone())
            elif how == "unbound":
                torch.Tensor.set_(weight, value.clone())
            else:
                weight.set_(value.clone().untyped_storage(), 0, (256, 256), (256, 1))
    if then == "read":
        assert_same(*pair.weights)
    if then == "restore":
        ts.restore(pair.streamed)
    pair.check_forward(then)
    assert_same(*pair.weights)


def test_a_value_by_set_that_cannot_be_the_weights_is_refused(tmp_path: Path) -> None:
    weight, _ = make_pair("memory", tmp_path).weights
    with torch.no_grad(), pytest.raises(ts.UnsupportedError, match="is streamed as"):
        weight.set_(torch.zeros(3))
    with pytest.raises(RuntimeError, match="leaf Variable"):
        weight.set_(torch.zeros(256, 256))


def test_parametrizations_come_off_with_their_value(source: str) -> None:
    del source

    def make() -> Any:
        torch.manual_seed(1)
        made = nn.Sequential(*[nn.Linear(256, 256) for _ in range(6)])
        parametrizations.orthogonal(made[2])
        return made

    plain, model = make(), offload_tightly(make())
    x = torch.randn(3, 256)
    with torch.no_grad():
        for one in (model, plain):
            one(x)
            parametrize.remove_parametrizations(one[2], "weight")
        assert_same(model[2].weight, plain[2].weight)
        assert_same(model(x), plain(x))


def test_a_model_that_is_sent_to_a_process_is_not_changed(source: str, tmp_path: Path) -> None:
    pair = make_pair(source, tmp_path)
    ForkingPickler.dumps(pair.streamed)
    junk = [torch.randn(256, 256) for _ in range(20)]
    pair.check_forward()
    del junk


@pytest.mark.parametrize(
    "read",
    [
        lambda weight: weight.norm(),
        lambda weight: weight.data.zero_(),
        lambda weight: nn.functional.linear(torch.ones(1, 256), weight),
    ],
)
def test_pinned_memory_in_a_forked_child_is_an_error(
    read: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=True)
    model: Any = offload_tightly(make_stack(3))
    weight = model.blocks[1].up.weight
    child = os.fork()
    if child == 0:
        try:
            read(weight)
        except ts.UnsupportedError:
            os._exit(7)
        finally:
            sys.stdout.flush()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(3)(row_ids()))


def test_a_parameter_of_a_parked_one_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    weight, plain = make_pair("memory", tmp_path).weights
    for make in (nn.Parameter, nn.Embedding.from_pretrained):
        with pytest.raises(ts.UnsupportedError, match=r"weight\.data"):
            make(weight)
    assert_same(nn.Parameter(weight.data), plain)
    assert_same(weight.detach(), plain)
