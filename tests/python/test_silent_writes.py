"""Writes to streamed weights that no version shows: below autograd, and by pointers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tensorstream
from conftest import assert_same
from fake_gpu import use_fake_gpu
from model_shapes import Stack, make_stack, row_ids
from parked_pair import Pair, make_pair
from tensorstream.weight import Weight


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """The same model twice."""
    return make_pair(request.param, tmp_path)


def _half_streamed(**options: Any) -> tuple[Stack, Stack]:
    """A model with room for six tenths of its weights, and its plain twin."""
    model = make_stack(3)
    plain = copy.deepcopy(model)
    total = sum(parameter.nbytes for parameter in model.parameters())
    tensorstream.offload(model, ram_budget=total * 6 // 10, prefetch="aggressive", **options)
    return model, plain


class _Within(TorchDispatchMode):
    """Runs `work` once, where torch's own code would: no version rises there."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self._work: Callable[[], object] | None = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.neg.default and self._work is not None:
            work, self._work = self._work, None
            work()
        return func(*args, **(kwargs or {}))


_SILENT_WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "mul_": lambda weight: weight.mul_(2.0),
    "aten.mul_": lambda weight: torch.ops.aten.mul_(weight, 2.0),
    "aten.mul_.Tensor": lambda weight: torch.ops.aten.mul_.Tensor(weight, torch.tensor(2.0)),
    "out=": lambda weight: torch.mul(weight, 2.0, out=weight),
    "_foreach_mul_": lambda weight: torch._foreach_mul_([weight], 2.0),
    "__imul__": lambda weight: weight.__imul__(2.0),
    "relu": lambda weight: nn.functional.relu(weight, inplace=True),
    "constant_": lambda weight: nn.init.constant_(weight, 0.125),
    "_foreach_mul_ by name": lambda weight: torch._foreach_mul_(self=[weight], scalar=2.0),
}


@pytest.mark.parametrize("write", list(_SILENT_WRITES))
@pytest.mark.parametrize("where", ["home", "no home", "RAM", "owned"])
def test_writes_that_raise_no_version_are_computed_with(
    monkeypatch: pytest.MonkeyPatch, where: str, write: str
) -> None:
    if "home" in where:
        use_fake_gpu(monkeypatch, homes=where == "home")
    model, plain = _half_streamed(compression="none")
    with torch.no_grad():
        for _ in range(2):
            model(row_ids())
        for block in range(3):
            for each in (model, plain):
                weight = each.blocks[block].up.weight
                if where == "owned":
                    weight.mul_(1.5)
                with _Within(lambda weight=weight: _SILENT_WRITES[write](weight)):
                    torch.ones(1).neg()
                del weight
            for _ in range(2):
                assert_same(model(row_ids()), plain(row_ids()), f"block {block}")


def _trained(model: Stack, make: Callable[..., torch.optim.Optimizer]) -> list[float]:
    """The losses of some steps."""
    optimizer = make(model.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(row_ids()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _of_bitsandbytes(*args: Any, **options: Any) -> Any:
    return pytest.importorskip("bitsandbytes").optim.AdamW(*args, **options)


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": functools.partial(torch.optim.SGD, fused=True),
    "AdamW": functools.partial(torch.optim.AdamW, fused=True),
    "bitsandbytes": _of_bitsandbytes,
}


@pytest.mark.parametrize("optimizer", list(_OPTIMIZERS))
@pytest.mark.parametrize("where", ["home", "no home", "RAM", "file"])
def test_steps_of_optimizers_that_raise_no_version_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, optimizer: str
) -> None:
    if "home" in where:
        use_fake_gpu(monkeypatch, homes=where == "home")
    options: dict[str, Any] = {}
    if where in {"no home", "file"}:
        options["checkpoint"] = tmp_path / "model.safetensors"
        save_file(make_stack(3).state_dict(), options["checkpoint"])
    model, plain = _half_streamed(**options)
    make = _OPTIMIZERS[optimizer]
    assert _trained(model, make) == _trained(plain, make)
    for (name, streamed), native in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert_same(streamed.detach(), native.detach(), name)


@pytest.fixture
def operator() -> Iterator[Any]:
    """Doubles its first argument, as its schema says and its name does not."""
    library = torch.library.Library("tensorstream_test", "FRAGMENT")
    library.define("twice(Tensor(a!) x, Tensor y) -> ()")

    def twice(x: torch.Tensor, _: torch.Tensor) -> None:
        numbers = x.numpy()
        numbers *= 2

    library.impl("twice", twice, "CPU")
    yield torch.ops.tensorstream_test.twice
    library._destroy()


@pytest.mark.parametrize("overload", [False, True])
@pytest.mark.parametrize("homes", [True, False])
def test_an_operator_writes_to_what_its_schema_says(
    monkeypatch: pytest.MonkeyPatch, operator: Any, homes: bool, overload: bool
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    model, plain = _half_streamed(compression="none")
    call = operator.default if overload else operator
    with torch.no_grad():
        for block in range(3):
            model(row_ids())
            for each in (model, plain):
                call(each.blocks[block].up.weight, each.blocks[block].down.weight)
            assert_same(model(row_ids()), plain(row_ids()), f"block {block}")


@pytest.mark.parametrize("homes", [True, False])
def test_running_statistics_that_are_streamed_are_computed_with(
    monkeypatch: pytest.MonkeyPatch, homes: bool
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    model, plain = _half_streamed(compression="none")
    x = torch.ones(5, model.blocks[0].up.bias.shape[0]).cumsum(0)
    with torch.no_grad():
        for block in range(3):
            model(row_ids())
            for each in (model, plain):
                means = each.blocks[block].up.bias
                nn.functional.batch_norm(x, means, torch.ones(x.shape[1]), training=True)
                del means
            assert_same(model(row_ids()), plain(row_ids()), f"block {block}")


_STATISTICS: dict[str, Callable[..., object]] = {
    "batch_norm": lambda x, mean, variance: nn.functional.batch_norm(
        x, mean, variance, training=True
    ),
    "torch.batch_norm": lambda x, mean, variance: torch.batch_norm(
        x, None, None, mean, variance, True, 0.1, 1e-5, False
    ),
    "update": lambda x, mean, variance: torch.batch_norm_update_stats(x, mean, variance, 0.1),
    "aten update": torch.ops.aten.batch_norm_update_stats,
}


@pytest.mark.parametrize("name", list(_STATISTICS))
def test_statistics_are_written_by_whatever_updates_them(pair: Pair, name: str) -> None:
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    for model in (pair.streamed, pair.plain):
        means, variances = model.blocks[0].up.bias, model.blocks[1].up.bias
        more = (0.1,) if name == "aten update" else ()
        with torch.no_grad():
            _STATISTICS[name](x, means, variances, *more)
    for block in range(2):
        streamed, plain = (
            model.blocks[block].up.bias.detach() for model in (pair.streamed, pair.plain)
        )
        assert_same(streamed, plain, f"{name} {block}")


def test_what_only_reads_a_weight_does_not_read_it_twice(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = pair.streamed.blocks[1].up.weight
    average = torch.zeros_like(pair.plain.blocks[1].up.weight)
    monkeypatch.setattr(Weight, "holds", None)
    with torch.no_grad():
        average.copy_(weight)
        torch._foreach_lerp_([average], [weight], 0.5)
        assert_same(average, pair.plain.blocks[1].up.weight.detach(), "the average")


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_write_past_versions_to_an_alias_that_is_gone_counts(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """A kernel writes by a pointer: to memory that the device reads, where nobody compares it."""
    use_fake_gpu(monkeypatch, homes=True)
    model, plain = _half_streamed(compression="none")
    with torch.no_grad():
        for _ in range(3):
            model(row_ids())
        for each in (model, plain):
            alias = each.blocks[block].up.weight.data
            alias.data.mul_(2.0)
            del alias
        assert_same(model(row_ids()), plain(row_ids()), "after the write")
