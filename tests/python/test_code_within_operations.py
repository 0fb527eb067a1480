"""Code that runs within an operation on a streamed weight sees the true values of all others.

The handler of a signal that saves the model, as clusters send before they take a machine away, runs
wherever the thread is; hooks for saved tensors and modes run within torch's operations.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tensorstream
from conftest import assert_same, offload_tightly
from fake_gpu import use_fake_gpu
from model_shapes import Stack, make_stack, row_ids
from parked_pair import Pair, make_pair
from tensorstream import restored
from tensorstream.exceptions import ConfigError, LeaseError, UnsupportedError
from tensorstream.proxy import weight_of
from tensorstream.weight import Weight

_PACKAGE = os.path.dirname(tensorstream.__file__)


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """The same model twice."""
    return make_pair(request.param, tmp_path)


def assert_all_true(pair: Pair, what: str) -> None:
    """What is read of the streamed model is what the plain one has."""
    seen = {name: value.clone() for name, value in pair.streamed.state_dict().items()}
    for name, value in pair.plain.state_dict().items():
        assert_same(seen[name], value, f"{name} {what}")


def test_hooks_for_saved_tensors_see_true_values(pair: Pair) -> None:
    packed = []

    def pack(saved: torch.Tensor) -> torch.Tensor:
        assert_all_true(pair, "while a tensor is packed")
        packed.append(saved)
        return saved

    def product(model: Stack) -> torch.Tensor:
        return (model.blocks[1].up.weight @ model.blocks[2].down.weight).sum()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        streamed = product(pair.streamed)
    assert packed, "nothing was saved"
    assert_same(streamed, product(pair.plain), "product")


@pytest.fixture
def checkpoint_on_signal(pair: Pair) -> Iterator[list[str]]:
    """SIGUSR1 reads the whole model; what went wrong."""
    faults: list[str] = []

    def handle(_signal: int, _frame: FrameType | None) -> None:
        try:
            assert_all_true(pair, "in a handler")
        except AssertionError as error:
            faults.append(str(error))

    before = signal.signal(signal.SIGUSR1, handle)
    yield faults
    signal.signal(signal.SIGUSR1, before)


class RaisesSignal(TorchDispatchMode):
    """Raises SIGUSR1 in each operation, also in what reads a weight."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("use", ["sum", "matmul", "embedding", "copy", "foreach", "rows"])
def test_handlers_of_signals_within_an_operation_see_true_values(
    pair: Pair, checkpoint_on_signal: list[str], use: str
) -> None:
    weight = pair.streamed.blocks[1].up.weight
    ids = row_ids()
    uses: dict[str, Any] = {
        "sum": weight.sum,
        "matmul": lambda: torch.nn.functional.linear(torch.ones(2, weight.shape[1]), weight),
        "embedding": lambda: pair.streamed.table(ids),
        "copy": lambda: weight.detach().clone(),
        "foreach": lambda: torch._foreach_norm(list(pair.streamed.parameters())),
        "rows": lambda: weight[:2].mul(2),
    }
    with RaisesSignal():
        uses[use]()
    assert not checkpoint_on_signal, checkpoint_on_signal[0]


def test_a_forward_does_not_use_a_place_of_before_a_write_past_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has a lease of the group, as a backward of another thread, keeps its place as it is."""
    use_fake_gpu(monkeypatch, homes=True)
    model = make_stack(3)
    plain = copy.deepcopy(model)
    offload_tightly(model, prefetch="aggressive")
    with torch.no_grad():
        for _ in range(2):
            model(row_ids())
    weight = weight_of(model.blocks[1].up.weight)
    raised: list[BaseException] = []

    def within_a_lease(*_: Any) -> None:
        value = weight.parameter.detach()
        value.numpy()[:] *= 2
        with torch.no_grad(), pytest.raises(LeaseError) as error:
            model(row_ids())
        raised.append(error.value)

    weight.engine.on_lease(weight.group, weight._device.stream(), within_a_lease)
    assert raised
    with torch.no_grad():
        plain.blocks[1].up.weight.mul_(2)
        assert_same(model(row_ids()), plain(row_ids()), "afterwards")


class ReadsAtLines:
    """Reads all weights at every n-th line that the thread runs of the package."""

    def __init__(self, model: nn.Module, every: int) -> None:
        self._model, self._every = model, every
        self._lines = self.reads = 0
        self.faults: list[str] = []

    def __enter__(self) -> ReadsAtLines:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        self._lines += event == "line"
        if event == "line" and self._lines % self._every == 0:
            sys.settrace(None)
            self._read(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
            sys.settrace(self._trace)
        return self._trace

    def _read(self, line: str) -> None:
        self.reads += 1
        for name, value in self._model.state_dict().items():
            if not value.clone().isfinite().all():
                self.faults.append(f"{name} at {line}")


def train(model: nn.Module) -> None:
    """Two steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(row_ids()).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_what_is_read_within_an_operation_does_not_undo_what_it_writes(
    pair: Pair, checkpoint_on_signal: list[str]
) -> None:
    for model in (pair.plain, pair.streamed):
        weight = model.blocks[1].up.weight
        weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.SGD([weight], lr=1.0, foreach=False)
        if model is pair.plain:
            optimizer.step()
            continue
        checkpoint_on_signal.clear()
        with RaisesSignal():
            optimizer.step()
    assert_all_true(pair, "after the step")
    pair.check_forward()


def test_an_alias_that_is_taken_within_an_operation_is_the_weights(pair: Pair) -> None:
    held: list[torch.Tensor] = []

    class Takes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            held.append(pair.streamed.blocks[1].up.weight.detach())
            return func(*args, **(kwargs or {}))

    weight, plain = pair.weights
    with torch.no_grad(), Takes():
        weight[:2].add_(1)
    with torch.no_grad():
        plain[:2].add_(1)
        plain[0].mul_(3)
    held[0][0].mul_(3)
    assert_same(weight.detach(), plain.detach(), "after a write through the alias")
    pair.check_forward()


def test_what_an_operation_wrote_before_it_was_interrupted_is_written(pair: Pair) -> None:
    class Interrupts(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.add_.Tensor:
                raise KeyboardInterrupt
            return result

    for weight in pair.weights:
        with pytest.raises(KeyboardInterrupt), torch.no_grad(), Interrupts():
            weight.add_(1)
    assert_all_true(pair, "after the interrupt")


def test_hooks_of_a_weights_own_backward_see_true_values(pair: Pair) -> None:
    weight, plain = pair.weights
    for one, model in ((weight, pair.streamed), (plain, pair.plain)):
        other = model.blocks[0].up.weight
        one.register_hook(lambda gradient, other=other: gradient * other.detach().norm())
        one.backward(torch.ones_like(one))
    assert_same(weight.grad, plain.grad, "gradient")


def test_a_weight_without_a_gradient_gets_none(pair: Pair) -> None:
    class Ignores(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
            return grads[0], None

    for weight in pair.weights:
        Ignores.apply(torch.ones(2, requires_grad=True), weight).sum().backward()
        assert weight.grad is None


def test_running_statistics_that_are_streamed_are_written(pair: Pair) -> None:
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    for model in (pair.streamed, pair.plain):
        means, variances = model.blocks[0].up.bias, model.blocks[1].up.bias
        with torch.no_grad():
            nn.functional.batch_norm(x, means, variances, training=True)
    assert_all_true(pair, "after the statistics")


def test_a_weight_in_a_container_of_its_own_class_is_refused(pair: Pair) -> None:
    class Hidden(list[Any]):
        pass

    weight, _ = pair.weights
    with pytest.raises(UnsupportedError, match=r"an argument of cat\(\)"):
        torch.cat(Hidden([weight, weight]))


@pytest.mark.parametrize("every", [17, 41])
def test_weights_are_true_wherever_a_step_of_training_is(pair: Pair, every: int) -> None:
    with ReadsAtLines(pair.streamed, every) as reads:
        train(pair.streamed)
    train(pair.plain)
    assert reads.reads > 100
    assert_all_true(pair, "after training")
    assert not reads.faults, f"{len(reads.faults)} of {reads.reads}, the first: {reads.faults[0]}"


@pytest.mark.parametrize("failing", [0, 1])
def test_an_operation_ends_for_all_weights_where_one_cannot_be_kept(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise LeaseError("in use")

    parameters = [pair.streamed.blocks[i].up.weight for i in range(2)]
    weights = [weight_of(parameter) for parameter in parameters]
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(weights[failing], "adopt", refuse)
        with pytest.raises(LeaseError, match="in use"):
            torch._foreach_add_(parameters, 1.0)
    assert [weight._operations for weight in weights] == [0, 0]
    other = 1 - failing
    assert_same(parameters[other].detach(), pair.plain.blocks[other].up.weight + 1.0, "the other")


def test_an_operation_ends_for_all_weights_where_a_source_cannot_be_read(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    means, variances = pair.streamed.blocks[0].up.bias, pair.streamed.blocks[1].up.bias
    weights = [weight_of(means), weight_of(variances)]
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(type(weights[0]), "holds", fail)
        reads = weights[0].owned is None
        with pytest.raises(OSError, match="disk is gone") if reads else contextlib.nullcontext():
            nn.functional.batch_norm(torch.randn(5, 256), means, variances, training=True)
    assert [weight._operations for weight in weights] == [0, 0]


def test_what_an_operation_within_another_wrote_is_taken_over_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameter = pair.streamed.blocks[1].up.weight
    is_source = weight_of(parameter).owned is not None
    adopt = Weight.adopt
    adopted: list[Weight] = []

    def count(weight: Weight, *args: Any, **options: Any) -> None:
        adopted.append(weight)
        adopt(weight, *args, **options)

    monkeypatch.setattr(Weight, "adopt", count)

    class Writes(TorchDispatchMode):
        wrote = False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.sum.default and not self.wrote:
                self.wrote = True
                parameter.mul_(2.0)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Writes():
        total = parameter.sum()
    assert set(adopted) == {weight_of(parameter)}
    assert len(adopted) == 1 or is_source, "what is its source is looked at each time"
    expected = pair.plain.blocks[1].up.weight.detach() * 2.0
    assert_same(parameter.detach(), expected, "what was written within")
    assert_same(total, expected.sum(), "the sum after it")


def test_a_weight_that_is_lent_meanwhile_is_computed_with(pair: Pair) -> None:
    """Another thread's forward lends it between torch's look at it and ours."""
    parameter = pair.streamed.blocks[1].up.weight
    lent = pair.plain.blocks[1].up.weight  # as it is then: no parked parameter
    with torch.no_grad():
        total = type(parameter).__torch_function__(torch.Tensor.sum, (), (lent,))
        assert_same(total, lent.sum(), "the sum")


@pytest.mark.parametrize("move", ["restore", "set_budget"])
@pytest.mark.parametrize("homes", [True, False])
def test_restore_within_an_operation_is_refused_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, homes: bool, move: str
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    model = make_stack(3)
    plain = copy.deepcopy(model)
    offload_tightly(model)
    told: list[Exception] = []

    class Restores(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.add_.Tensor and not told:
                try:
                    if move == "restore":
                        tensorstream.restore(model)
                    else:
                        tensorstream.set_budget(model, vram_budget="1GiB")
                except ConfigError as error:
                    told.append(error)
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        with Restores():
            model.blocks[1].up.weight.add_(1.0)
        plain.blocks[1].up.weight.add_(1.0)
        assert "call set_budget() or restore() when that has returned" in str(told[0])
        assert_same(model.blocks[1].up.weight.detach(), plain.blocks[1].up.weight, "the weight")
        tensorstream.restore(model)
        assert_same(model(row_ids()), plain(row_ids()), "restored after it")


def test_on_the_host_restore_leaves_gradients_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may be about to let go of them."""
    pair.streamed(row_ids()).sum().backward()
    monkeypatch.setattr(restored, "move_gradient", None)
    tensorstream.restore(pair.streamed)
    assert pair.streamed.blocks[0].up.weight.grad is not None
