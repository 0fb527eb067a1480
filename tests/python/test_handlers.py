"""Handlers of signals, and code that a collection runs, at moments that are not whole."""

from __future__ import annotations

import copy
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from children import in_child
from conftest import assert_same, offload_tightly
from model_shapes import make_stack, row_ids
from tensorstream import interrupts, registry
from tensorstream.interrupts import HeldBack
from tensorstream.lent import LentGroup
from tensorstream.weight import Weight

PATIENCE_S = 30


class Counts(nn.Module):
    """A block that adds one to its weights at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 64))
        self.other = nn.Parameter(torch.zeros(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.add_(1)
            self.other.add_(1)
        return x + self.weight[0, 0] + self.other[0, 0]


@pytest.fixture
def handled() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Sets what the handler of SIGUSR1 does; not within itself."""
    usual, within = signal.getsignal(signal.SIGUSR1), []

    def set_handler(act: Callable[[], Any]) -> None:
        def handle(*_: Any) -> None:
            if not within:
                within.append(1)
                act()
                within.clear()

        signal.signal(signal.SIGUSR1, handle)

    yield set_handler
    signal.signal(signal.SIGUSR1, usual)


def at_lines_of(*functions: Any) -> Callable[[FrameType, str, Any], Any]:
    """A trace that raises SIGUSR1 at each line of some functions."""
    codes = {function.__code__ for function in functions}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code not in codes:
            return None
        signal.raise_signal(signal.SIGUSR1)
        return trace

    return trace


@pytest.mark.parametrize("action", ["run", "save"])
def test_what_a_forward_wrote_is_kept_beside_a_handler(
    action: str, handled: Callable[[Callable[[], Any]], None]
) -> None:
    """It runs or saves the model as the forward that wrote ends: its own uses find what was written."""
    model = offload_tightly(nn.Sequential(*(Counts() for _ in range(4))))
    runs, saved = [0], []

    def act() -> None:
        if action == "run":
            model(torch.zeros(1))
            runs[0] += 1
        else:
            saved.append({name: value[0, 0].item() for name, value in model.state_dict().items()})

    handled(act)
    with torch.no_grad():
        for _ in range(10):
            sys.settrace(at_lines_of(LentGroup.values, Weight.keep))
            try:
                model(torch.zeros(1))
            finally:
                sys.settrace(None)
            runs[0] += 1
        ts.restore(model)
    assert saved or runs[0] > 10
    values = {parameter[0, 0].item() for parameter in model.parameters()}
    assert values == {float(runs[0])}


def end_interrupted(held: HeldBack, place: int) -> bool:
    """Ends it, with SIGINT at one of its lines; whether it has so many."""
    codes = {
        function.__code__
        for function in (HeldBack.__exit__, HeldBack._put_back, HeldBack._put_back_each)
    }
    lines = 0

    def trace(frame: FrameType, *_: Any) -> Any:
        nonlocal lines
        if frame.f_code not in codes:
            return None
        lines += 1
        if lines == place + 1:
            signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        held.__exit__(None, None, None)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return lines > place


def test_all_handlers_are_put_back_whatever_one_of_them_raises() -> None:
    """Wherever it comes as they are put back; and what was noted runs."""
    ran: list[int] = []

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    usual = [signal.signal(signal.SIGINT, interrupt)]
    usual.append(signal.signal(signal.SIGTERM, lambda *_: ran.append(1)))
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        place = 0
        while True:
            held = HeldBack()
            held.__enter__()
            signal.raise_signal(signal.SIGTERM)
            more = end_interrupted(held, place)
            assert {number: signal.getsignal(number) for number in before} == before, place
            place += 1
            assert len(ran) == place
            if not more:
                break
        assert place > 10
    finally:
        interrupts._holding.clear()
        signal.signal(signal.SIGINT, usual[0])
        signal.signal(signal.SIGTERM, usual[1])


def test_a_child_of_another_thread_has_its_handlers() -> None:
    """The thread that holds signals back is not there."""
    ran: list[int] = []

    def is_handled() -> bool:
        signal.raise_signal(signal.SIGTERM)
        return ran == [1]

    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(in_child(is_handled)))
    usual = signal.signal(signal.SIGTERM, lambda *_: ran.append(2))
    left = HeldBack()  # as an interrupt leaves one whose handlers are back
    left.__enter__()
    left.__exit__(None, None, None)
    interrupts._holding.append(left)
    signal.signal(signal.SIGTERM, lambda *_: ran.append(1))
    try:
        with HeldBack(), HeldBack():
            thread.start()
            thread.join(PATIENCE_S)
            assert in_child(is_handled) == 1, "in a child of the thread itself they are held back"
            assert ran == []
        assert results == [0]
        assert ran == []
        assert interrupts._holding[-1] is left
    finally:
        interrupts._holding.remove(left)
        signal.signal(signal.SIGTERM, usual)


def test_a_child_that_is_forked_while_a_model_is_being_offloaded() -> None:
    model, ids = make_stack(3), row_ids()
    expected = model(ids)
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        inside.set()
        assert go_on.wait(PATIENCE_S)

    handle = model.blocks[0].register_forward_pre_hook(hold)
    running = threading.Thread(target=lambda: model(ids))
    running.start()
    assert inside.wait(PATIENCE_S)
    handle.remove()
    offloading = threading.Thread(target=lambda: ts.offload(model, ram_budget="1GiB"))
    offloading.start()
    while not registry._claimed:
        time.sleep(0.001)
    time.sleep(0.05)  # it has closed the gate, and waits for the forward

    def use() -> bool:
        return torch.equal(model(ids), expected)

    def offload_it() -> bool:
        ts.offload(model, ram_budget="1GiB")
        return use()

    assert in_child(use) == 0
    assert in_child(offload_it) == 0
    results: list[int] = []
    other = threading.Thread(target=lambda: results.append(in_child(offload_it)))
    with registry._locked():
        other.start()
        other.join(PATIENCE_S)
    assert results == [0]
    go_on.set()
    running.join(PATIENCE_S)
    offloading.join(PATIENCE_S)
    assert_same(model(ids), expected)


def test_what_a_collection_runs_may_offload() -> None:
    """Amid an offload of the same thread, which looks at what is offloaded."""
    model = make_stack(2)
    others = [make_stack(1) for _ in range(3)]  # before: torch's generator takes no call within one
    within, offloaded = [], 0

    def offload_another(phase: str, _: Any) -> None:
        nonlocal offloaded
        if (
            phase == "stop"
            and not within
            and registry.claimed.__wrapped__.__code__ in codes_of_stack()
        ):
            within.append(1)
            other = others[offloaded % 3]
            ts.restore(ts.offload(other, ram_budget="1GiB"))
            offloaded += 1
            within.clear()

    often = gc.get_threshold()
    gc.callbacks.append(offload_another)
    gc.set_threshold(1, 1, 1)
    try:
        ts.offload(model, ram_budget="1GiB")
    finally:
        gc.set_threshold(*often)
        gc.callbacks.remove(offload_another)
    assert offloaded > 0
    assert_same(model(row_ids()), make_stack(2)(row_ids()))


def codes_of_stack() -> set[CodeType]:
    frame: FrameType | None = sys._getframe(1)
    codes = set()
    while frame is not None:
        codes.add(frame.f_code)
        frame = frame.f_back
    return codes


def test_models_are_found_while_others_come_and_go() -> None:
    usual = sys.getswitchinterval()
    # Not made in threads: torch's generator keeps its lock while it waits for the GIL.
    plain = make_stack(1)
    over, errors = threading.Event(), []

    def come_and_go() -> None:
        try:
            while not over.is_set():
                ts.restore(ts.offload(copy.deepcopy(plain), ram_budget="1GiB"))
        except (RuntimeError, ts.TensorStreamError) as error:
            errors.append(error)

    kept = [ts.offload(make_stack(1), ram_budget="1GiB") for _ in range(10)]
    wrapped = nn.Sequential(kept[0])
    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            registry.orchestrators()
            ts.stats(wrapped)
    finally:
        sys.setswitchinterval(usual)
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert errors == []
