"""Ctrl-C while a model is moved or restored: it works on, and the same call again succeeds."""

from __future__ import annotations

import linecache
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly
from fake_gpu import use_fake_gpu
from model_shapes import make_stack, row_ids
from tensorstream import _native
from tensorstream.interrupts import HeldBack


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a shell's background job, which is started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class InterruptAtLine:
    """Raises SIGINT at the n-th line of the package that the thread runs."""

    def __init__(self, line: int) -> None:
        self._left = line

    def __enter__(self) -> InterruptAtLine:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    @property
    def came(self) -> bool:
        return self._left <= 0

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if "/tensorstream/" not in frame.f_code.co_filename:
            return None
        # An error of this function itself, where a block is left, would keep its end from being run: a signal
        # does not come there.
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not source.lstrip().startswith("with "):
            self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self._trace


def offloaded(where: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """A model with the smallest budget, and that."""
    model: Any = make_stack(3)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    if where == "gpu":
        use_fake_gpu(monkeypatch, homes=True)
        smallest = max(smallest, 2 << 20)
        return ts.offload(model, ram_budget=smallest), smallest
    if where == "file":
        path = folder / "model.safetensors"
        save_file(model.state_dict(), path)
        return offload_tightly(model, checkpoint=path), smallest
    return offload_tightly(model), smallest


@pytest.mark.parametrize("where", ["memory", "file", "gpu"])
@pytest.mark.parametrize("what", ["more", "less", "restore"])
def test_an_interrupted_call_leaves_a_model_that_works(
    what: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_stack(3)
    line, tried = 1, 0
    with torch.no_grad():
        expected = plain(row_ids())
        while True:
            model, smallest = offloaded(where, tmp_path, monkeypatch)
            assert_same(model(row_ids()), expected)
            budget = "1GiB" if what == "more" else smallest
            if what == "less":
                ts.set_budget(model, ram_budget="1GiB")
            interrupt = InterruptAtLine(line)
            try:
                with interrupt:
                    if what == "restore":
                        ts.restore(model)
                    else:
                        ts.set_budget(model, ram_budget=budget)
            except KeyboardInterrupt:
                tried += 1
            if not interrupt.came:
                break
            assert_same(list(model.parameters()), list(plain.parameters()), f"line {line}")
            assert_same(model(row_ids()), expected, f"line {line}")
            if what != "restore":
                ts.set_budget(model, ram_budget=budget)
                assert_same(model(row_ids()), expected, f"line {line}, again")
            if what != "restore" or any(
                type(p) is not torch.nn.Parameter for p in model.parameters()
            ):
                ts.restore(model)
            assert_same(model(row_ids()), expected, f"line {line}, restored")
            line += 211
    assert tried > 2


@pytest.mark.parametrize("where", ["memory", "meta", "gpu"])
def test_an_interrupted_offload_leaves_a_model_that_works(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_stack(3)
    options: dict[str, Any] = {"ram_budget": ts.estimate_memory(plain).smallest_budget_bytes}
    if where == "meta":
        options["checkpoint"] = tmp_path / "model.safetensors"
        save_file(plain.state_dict(), options["checkpoint"])
    if where == "gpu":
        use_fake_gpu(monkeypatch, homes=True)
        options["ram_budget"] = max(options["ram_budget"], 2 << 20)
    line, tried = 1, 0
    with torch.no_grad():
        expected = plain(row_ids())
        while True:
            model: Any = make_stack(3).to("meta" if where == "meta" else "cpu")
            interrupt = InterruptAtLine(line)
            try:
                with interrupt:
                    ts.offload(model, **options)
            except KeyboardInterrupt:
                tried += 1
            if not interrupt.came:
                break
            if not is_offloaded(model):
                assert hooks_of(model) == []
                assert len({parameter.device for parameter in model.parameters()}) == 1
                assert {type(parameter) for parameter in model.parameters()} == {torch.nn.Parameter}
                ts.offload(model, **options)
            assert_same(model(row_ids()), expected, f"line {line}")
            ts.restore(model)
            line += 97
    assert tried > 5


def is_offloaded(model: Any) -> bool:
    try:
        ts.stats(model)
    except ts.ConfigError:
        return False
    return True


def test_a_wait_for_a_forward_can_be_given_up() -> None:
    model: Any = make_stack(3)
    ts.offload(model, ram_budget="1GiB")
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        inside.set()
        assert go_on.wait(30)

    handle = model.blocks[1].register_forward_hook(hold)
    forward = threading.Thread(target=model, args=(row_ids(),))
    forward.start()
    assert inside.wait(30)
    handle.remove()
    alarm = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        ts.restore(model)
    go_on.set()
    forward.join()
    alarm.join()
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(3)(row_ids()))


def test_handlers_are_as_they_were_and_run_in_order() -> None:
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    usual = signal.signal(signal.SIGUSR1, note)
    try:
        with HeldBack() as held:
            signal.raise_signal(signal.SIGUSR1)
            assert came == []
            held.check()
            assert came == [signal.SIGUSR1]
            with held.let_through():
                signal.raise_signal(signal.SIGUSR1)
                assert len(came) == 2
            signal.raise_signal(signal.SIGUSR1)
            assert len(came) == 2
        assert len(came) == 3
        for restarts in (True, False):  # as asyncio's handlers have it, and as others
            signal.siginterrupt(signal.SIGUSR1, not restarts)
            with HeldBack():
                pass
            assert _native.restarts_calls(signal.SIGUSR1) == restarts
        with pytest.raises(KeyboardInterrupt), HeldBack():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGUSR1) is note
    finally:
        signal.signal(signal.SIGUSR1, usual)
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


def test_a_handler_that_raises_while_others_are_taken_leaves_all_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    take = signal.signal

    def raises_at_sigterm(number: int, handler: Any) -> Any:
        if number == signal.SIGTERM and handler != signal.SIG_DFL:
            monkeypatch.setattr(signal, "signal", take)
            raise SystemExit
        return take(number, handler)

    take(signal.SIGTERM, lambda *_: None)
    try:
        monkeypatch.setattr(signal, "signal", raises_at_sigterm)
        with pytest.raises(SystemExit), HeldBack():
            pass
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        take(signal.SIGTERM, signal.SIG_DFL)


def test_no_signal_is_lost_where_the_handler_of_another_raises() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), HeldBack():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
