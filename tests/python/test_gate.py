"""Models whose weights all stay have no hooks: what moves weights waits for their forwards, too."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly
from model_shapes import make_stack, row_ids
from tensorstream import _native
from tensorstream.hooks import HookedModule
from tensorstream.orchestrator import Orchestrator, orchestrator_of

PATIENCE_S = 30


def resident(model: Any, **options: Any) -> Any:
    """Offloaded with a budget that holds everything."""
    ts.offload(model, ram_budget="1GiB", **options)
    assert hooks_of(model) == []
    return model


def smallest_of(model: Any) -> int:
    """The smallest budget that an offloaded model can be given."""
    with pytest.raises(ts.BudgetError) as refused:
        ts.set_budget(model, ram_budget=1)
    return refused.value.needed_bytes


class Held:
    """A hook of the user's, in which a forward stops until it is let go."""

    def __init__(self, module: nn.Module) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self._handle = module.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self._handle.remove()
        self.inside.set()
        assert self.go_on.wait(PATIENCE_S)


def in_thread(run: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs it on a thread; what it gives or raises is added to the list."""
    results: list[Any] = []

    def call() -> None:
        try:
            with torch.no_grad():
                results.append(run())
        except (RuntimeError, AssertionError, ts.TensorStreamError) as error:
            results.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, results


@pytest.mark.parametrize("how", ["set_budget", "restore"])
def test_a_forward_without_hooks_is_waited_for(how: str) -> None:
    model = resident(make_stack(4))
    smallest = smallest_of(model)
    held = Held(model.blocks[1])
    forward, outputs = in_thread(lambda: model(row_ids()))
    assert held.inside.wait(PATIENCE_S)
    move = {
        "set_budget": lambda: ts.set_budget(model, ram_budget=smallest),
        "restore": lambda: ts.restore(model),
    }[how]
    moving, moved = in_thread(move)
    moving.join(0.2)
    assert moving.is_alive()
    later, outputs_later = in_thread(lambda: model(row_ids()))
    later.join(0.1)
    assert later.is_alive(), "a forward that begins meanwhile waits"
    held.go_on.set()
    for thread in (forward, moving, later):
        thread.join(PATIENCE_S)
    assert moved == [model]
    with torch.no_grad():
        expected = make_stack(4)(row_ids())
        assert_same(outputs, expected)
        assert_same(outputs_later, expected)
        assert_same(model(row_ids()), expected)
    assert bool(hooks_of(model)) == (how == "set_budget")


@pytest.mark.parametrize("source", ["memory", "file"])
def test_what_is_written_while_an_offload_waits_is_kept(source: str, tmp_path: Path) -> None:
    model, plain = make_stack(4), make_stack(4)
    if source == "file":
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        held_values = load_file(tmp_path / "model.safetensors")
        for name, parameter in model.named_parameters():
            parameter.data = held_values[name]
    held = Held(model.blocks[1])

    def forward() -> torch.Tensor:
        output: torch.Tensor = model(row_ids())
        return output

    def double(either: Any) -> None:
        for parameter in either.blocks[3].parameters():
            parameter.data = parameter.data * 2

    handle = model.blocks[2].register_forward_hook(lambda *_: double(model))
    running, _ = in_thread(forward)
    assert held.inside.wait(PATIENCE_S)
    offloading, offloaded = in_thread(lambda: offload_tightly(model))
    offloading.join(0.2)
    held.go_on.set()
    for thread in (running, offloading):
        thread.join(PATIENCE_S)
    handle.remove()
    assert offloaded == [model]
    double(plain)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))


def test_of_two_offloads_of_one_model_one_is_refused() -> None:
    model, plain = make_stack(4), make_stack(4)
    held = Held(model.blocks[1])
    forward, _ = in_thread(lambda: model(row_ids()))
    assert held.inside.wait(PATIENCE_S)
    threads, results = zip(
        *(in_thread(lambda: offload_tightly(model)) for _ in range(2)), strict=True
    )
    time.sleep(0.1)
    held.go_on.set()
    for thread in (forward, *threads):
        thread.join(PATIENCE_S)
    outcomes = [result for each in results for result in each]
    refused = [outcome for outcome in outcomes if outcome is not model]
    assert len(outcomes) == 2
    assert len(refused) == 1
    assert isinstance(refused[0], ts.ConfigError)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        ts.restore(model)
        assert_same(model(row_ids()), plain(row_ids()))


def test_a_forward_that_begins_where_hooks_were_put_on_leases_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, plain = make_stack(4), make_stack(4)
    hook, hooked = Orchestrator._hook, threading.Event()

    def hook_and_wait(orchestrator: Orchestrator) -> None:
        hook(orchestrator)
        hooked.set()
        time.sleep(0.3)

    monkeypatch.setattr(Orchestrator, "_hook", hook_and_wait)
    offloading, _ = in_thread(lambda: offload_tightly(model))
    assert hooked.wait(PATIENCE_S)
    x = torch.randn(2, 256)
    forward, outputs = in_thread(lambda: model.blocks[1].up(x))
    for thread in (offloading, forward):
        thread.join(PATIENCE_S)
    with torch.no_grad():
        assert_same(outputs, [plain.blocks[1].up(x)])
        assert {lent.depth for lent in orchestrator_of(model)._lent.values()} == {0}
        assert_same(model(row_ids()), plain(row_ids()))


def test_an_offload_waits_for_forwards_of_the_plain_model() -> None:
    model, plain = make_stack(4), make_stack(4)
    held = Held(model.blocks[1])
    forward, outputs = in_thread(lambda: model(row_ids()))
    assert held.inside.wait(PATIENCE_S)
    offloading, offloaded = in_thread(lambda: offload_tightly(model))
    offloading.join(0.2)
    assert offloading.is_alive()
    later, outputs_later = in_thread(lambda: model(row_ids()))
    later.join(0.1)
    held.go_on.set()
    for thread in (forward, offloading, later):
        thread.join(PATIENCE_S)
    assert offloaded == [model]
    with torch.no_grad():
        for output in (*outputs, *outputs_later, model(row_ids())):
            assert_same(output, plain(row_ids()))
    assert ts.stats(model).acquires


def test_an_offload_in_the_models_own_forward_goes_on() -> None:
    model, plain = make_stack(4), make_stack(4)
    handle = model.blocks[1].register_forward_hook(lambda *_: offload_tightly(model) and None)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        handle.remove()
        assert_same(model(row_ids()), plain(row_ids()))


def test_a_call_of_a_part_is_waited_for() -> None:
    model = resident(make_stack(4))
    smallest = smallest_of(model)
    held = Held(model.blocks[1].up)
    x = torch.randn(3, 256)
    forward, outputs = in_thread(lambda: model.blocks[1](x))
    assert held.inside.wait(PATIENCE_S)
    moving, moved = in_thread(lambda: ts.set_budget(model, ram_budget=smallest))
    moving.join(0.2)
    assert moving.is_alive()
    held.go_on.set()
    forward.join(PATIENCE_S)
    moving.join(PATIENCE_S)
    assert moved == [model]
    with torch.no_grad():
        assert_same(outputs, make_stack(4).blocks[1](x))


def test_amidst_its_own_forward_without_hooks_the_budget_stays() -> None:
    model = resident(make_stack(3))
    smallest = smallest_of(model)
    raised: list[Exception] = []

    def set_it(*_: Any) -> None:
        with pytest.raises(ts.ConfigError, match="in a forward of the model") as refused:
            ts.set_budget(model, ram_budget=smallest)
        raised.append(refused.value)

    handle = model.blocks[1].register_forward_hook(set_it)
    with torch.no_grad():
        assert_same(model(row_ids()), make_stack(3)(row_ids()))
    handle.remove()
    assert len(raised) == 1
    assert hooks_of(model) == []


def test_gradients_that_another_thread_computes_are_waited_for() -> None:
    model, plain = resident(make_stack(3)), make_stack(3)
    smallest = smallest_of(model)
    inside, go_on = threading.Event(), threading.Event()

    def hold(gradient: torch.Tensor) -> None:
        inside.set()
        assert go_on.wait(PATIENCE_S)

    def train() -> None:
        with torch.enable_grad():
            loss = model(row_ids()).pow(2).sum()
            loss.register_hook(hold)
            loss.backward()

    training, trained = in_thread(train)
    assert inside.wait(PATIENCE_S)
    moving, moved = in_thread(lambda: ts.set_budget(model, ram_budget=smallest))
    moving.join(0.2)
    assert moving.is_alive()
    go_on.set()
    training.join(PATIENCE_S)
    moving.join(PATIENCE_S)
    assert (trained, moved) == ([None], [model])
    plain(row_ids()).pow(2).sum().backward()
    assert_same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


def test_a_forward_that_waits_while_all_comes_to_stay() -> None:
    """It waits at a hook that is gone when its turn comes."""
    model: Any = offload_tightly(make_stack(4))
    held = Held(model.blocks[1])
    first, outputs = in_thread(lambda: model(row_ids()))
    assert held.inside.wait(PATIENCE_S)
    threads = [in_thread(lambda: model(row_ids())) for _ in range(2)]
    moving, moved = in_thread(lambda: ts.set_budget(model, ram_budget="1GiB"))
    moving.join(0.1)
    threads += [in_thread(lambda: model(row_ids())) for _ in range(2)]
    held.go_on.set()
    for thread in (first, moving, *(thread for thread, _ in threads)):
        thread.join(PATIENCE_S)
    assert moved == [model]
    with torch.no_grad():
        expected = make_stack(4)(row_ids())
        assert_same([outputs, *(results for _, results in threads)], [expected] * 5)
        assert_same(model(row_ids()), expected)


def test_budgets_that_move_under_running_forwards() -> None:
    model: Any = offload_tightly(make_stack(6))
    plain = make_stack(6)
    smallest, fits = smallest_of(model), ts.estimate_memory(plain).everything_fits_bytes
    over = threading.Event()

    def move() -> None:
        moves = 0
        while not over.wait(0.001):
            moves += 1
            ts.set_budget(model, ram_budget=(smallest, 2 * fits, (smallest + fits) // 2)[moves % 3])

    with torch.no_grad():
        expected = plain(row_ids())
        moving, moved = in_thread(move)
        try:
            for _ in range(100):
                assert_same(model(row_ids()), expected)
        finally:
            over.set()
            moving.join(PATIENCE_S)
    assert moved == [None]


@contextlib.contextmanager
def collections(noted: Callable[[FrameType | None], None]) -> Iterator[None]:
    """Garbage is collected at each chance meanwhile; `noted` gets the frame that it is collected in."""

    def note(phase: str, _: Any) -> None:
        if phase == "start":
            noted(sys._getframe(1))

    often = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*often)
        gc.callbacks.remove(note)


def test_nothing_is_collected_while_stacks_are_read() -> None:
    """A collection may let others run on: a frame that is looked for would be gone (CPython 3.11)."""
    places: list[CodeType | None] = []

    def read(collects: bool) -> list[Any]:
        if collects:
            return [[] for _ in range(3)]
        called: list[Any] = _native.calls_of_threads(("_call_impl",), torch_file, read.__code__)
        return called

    torch_file = nn.Module._call_impl.__code__.co_filename
    other = nn.Sequential(nn.Linear(2, 2))
    held = Held(other[0])
    running, _ = in_thread(lambda: other(torch.ones(2)))
    assert held.inside.wait(PATIENCE_S)
    with collections(lambda frame: places.append(frame and frame.f_code)):
        read(True)
        collected = places.count(read.__code__)
        called = read(False)
    assert places.count(read.__code__) == collected > 0
    assert gc.isenabled()
    held.go_on.set()
    running.join(PATIENCE_S)
    assert [other[0], other] in [modules for _, modules in called]


def test_a_forward_in_a_handler_waits_as_the_one_that_it_comes_in_does() -> None:
    """What the handler interrupts waits, and has not begun: it is none that this one is a part of."""
    model, ids = resident(make_stack(4)), row_ids()
    expected, smallest = model(ids), smallest_of(model)
    held = Held(model.blocks[1])
    first, _ = in_thread(lambda: model(ids))
    assert held.inside.wait(PATIENCE_S)
    moving, moved = in_thread(lambda: ts.set_budget(model, ram_budget=smallest))
    in_handler: list[Any] = []

    def handle(*_: Any) -> None:
        releasing = threading.Timer(0.3, held.go_on.set)
        releasing.start()
        in_handler.extend([model(ids), list(moved)])

    usual = signal.signal(signal.SIGALRM, handle)
    timeout = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        output = model(ids)
    finally:
        signal.signal(signal.SIGALRM, usual)
        signal.setitimer(signal.ITIMER_REAL, *timeout)
    for thread in (first, moving):
        thread.join(PATIENCE_S)
    assert in_handler[1] == moved == [model]
    assert_same([output, in_handler[0]], [expected] * 2)


def test_a_forward_in_a_handler_of_a_forward_that_has_begun_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was let go, and has the session: who waits for that cannot be waited for."""
    model, ids = resident(make_stack(4)), row_ids()
    expected, smallest = model(ids), smallest_of(model)
    held = Held(model.blocks[1])
    first, _ = in_thread(lambda: model(ids))
    assert held.inside.wait(PATIENCE_S)
    moving = [in_thread(lambda: ts.set_budget(model, ram_budget=smallest))]
    begin = HookedModule.begin
    in_handler: list[Any] = []

    def begin_and_raise(self: HookedModule, *arguments: Any) -> None:
        begin(self, *arguments)
        if threading.current_thread() is threading.main_thread() and not in_handler:
            signal.raise_signal(signal.SIGUSR1)

    def handle(*_: Any) -> None:
        moving.append(in_thread(lambda: ts.set_budget(model, ram_budget="1GiB")))
        time.sleep(0.3)  # it has closed the gate, and waits for this forward
        stopped = next(
            each for each in model.modules() if each._forward_pre_hooks and each is not model
        )
        in_handler.append(stopped)
        with contextlib.suppress(ts.TensorStreamError, RuntimeError):
            stopped(torch.zeros(1, 256))

    monkeypatch.setattr(HookedModule, "begin", begin_and_raise)
    usual = signal.signal(signal.SIGUSR1, handle)
    releasing = threading.Timer(0.5, held.go_on.set)
    while not moving[0][0].is_alive():
        time.sleep(0.001)
    time.sleep(0.2)
    releasing.start()
    try:
        output = model(ids)
    finally:
        signal.signal(signal.SIGUSR1, usual)
    first.join(PATIENCE_S)
    for thread, _ in moving:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert len(in_handler) == 1
    assert_same(output, expected)


def test_a_handler_of_a_signal_within_set_budget_is_told_so() -> None:
    """Its thread has the gate closed, or waits for its turn: it cannot wait for itself."""
    model = resident(make_stack(3))
    ids = row_ids()
    expected = model(ids)
    held = Held(model.blocks[0])
    thread, results = in_thread(lambda: model(ids))
    assert held.inside.wait(PATIENCE_S)
    errors: list[ts.TensorStreamError] = []
    changes: list[Callable[[], Any]] = [
        lambda: ts.set_budget(model, ram_budget="2GiB"),
        lambda: ts.restore(model),
        lambda: model(ids),
    ]

    def give_up(*_: Any) -> None:
        held.go_on.set()
        raise TimeoutError("it waits for itself")

    def handle(*_: Any) -> None:
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, 5)
        for change in changes:
            with pytest.raises(ts.ConfigError, match="moving the model's weights") as raised:
                change()
            errors.append(raised.value)
        held.go_on.set()

    gate = orchestrator_of(model)._gate

    def interrupt() -> None:
        while not gate._closing:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        ts.set_budget(model, ram_budget="512MiB")  # waits for the forward
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    thread.join(PATIENCE_S)
    assert len(errors) == 3
    assert_same(results[0], expected, "the forward that was waited for")
    assert ts.stats(model).budget_bytes == 512 << 20
    ts.restore(model)
