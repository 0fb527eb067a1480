"""Keeps forwards away while weights change their places: those too that no hook sees.

Modules whose weights all stay have no hooks, so that their forwards enter no session. What is about to
move weights puts a hook on each of them, at which forwards that begin now wait; and waits until no
other thread has the call of such a module on its stack, as a session does for forwards that it knows.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
import torch.autograd.graph
from torch import nn

from tensorstream import _native
from tensorstream.backward import in_backward
from tensorstream.exceptions import ConfigError
from tensorstream.fused import COUNTS_HOOKS
from tensorstream.hooks import HookedModule, StoppingHook
from tensorstream.interrupts import HeldBack

_CALL = nn.Module._call_impl.__code__
_CALLS = (_CALL.co_name, nn.Module._wrapped_call_impl.__code__.co_name)
_BACKWARD = torch.autograd.graph._engine_run_backward.__code__
# How often it looks whether others are done: a forward without hooks wakes nobody.
_LOOK_EVERY_S = 0.002
_LOOK_AGAIN_S = 0.05

_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


class Gate:
    """That of one model. Any thread may close it; one at a time does.

    Attributes:
        is_over: Whether the model was restored.
    """

    def __init__(
        self,
        modules: Sequence[weakref.ref[nn.Module]],
        hooked: Mapping[int, HookedModule],
        session: _native.Session,
    ) -> None:
        """`hooked` are those with hooks of ours, by their place in `modules`, as they are at any time."""
        self._modules = modules
        self._hooked = hooked
        self.is_over = False
        self.renew(session)
        _gates.add(self)

    def renew(self, session: _native.Session) -> None:
        """Takes another session, in a forked child: who had the gate closed is not there."""
        self._session = session
        self._turn = threading.Lock()
        self._closing: set[int] = set()  # threads that close it, or wait for their turn to
        self._changed = threading.Condition()
        self._is_closed = False
        # Threads that have calls under way which have not begun; several times where handlers make some.
        self._waiting: list[int] = []
        self._numbers: dict[int, int] = {}  # of the modules, by id
        self._seen: set[int] = set()  # ids of those whose calls enter the session

    @contextlib.contextmanager
    def closed(self, frame: FrameType, held: HeldBack) -> Iterator[None]:
        """Nobody else runs the model meanwhile; `frame` is the caller's, by which the session knows it.

        Raises:
            ConfigError: The calling thread runs the model, or computes gradients, or has it closed already,
                as in a handler of a signal; or the model is restored.
        """
        if self.is_amidst(frame):  # guard: amidst-unhooked-forward
            raise _amidst()
        me = threading.get_ident()
        if me in self._closing:  # guard: closed-by-itself
            raise ConfigError(
                "this thread is moving the model's weights already: call set_budget() or restore() again "
                "when it has returned, not in a handler of a signal meanwhile"
            )
        try:
            self._closing.add(me)
            with self._closed_in_turn(frame, held):
                yield
        finally:
            self._closing.discard(me)

    @contextlib.contextmanager
    def _closed_in_turn(self, frame: FrameType, held: HeldBack) -> Iterator[None]:
        turn = self._turn  # a handler may fork, and the child has another
        while not turn.acquire(timeout=0.05):
            held.check()
        stops: list[StoppingHook] = []
        try:
            self._check_not_over()  # guard: two-gates
            while self._waiting:  # whom it let go has its forward before it is closed again
                time.sleep(_LOOK_EVERY_S)
                held.check()
            self._close(stops)
            self._enter_alone(frame, held)
            try:
                self._check_not_over()  # by a forward of its own
                yield
            finally:
                self._session.leave(frame)
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()
            for stop in stops:
                stop.detach()
            turn.release()

    def _check_not_over(self) -> None:
        """Raises ConfigError where the model was restored: another engine's gate may be closing."""
        if self.is_over:
            raise ConfigError("another thread restored the model meanwhile")

    def closed_to_others(
        self, frame: FrameType, held: HeldBack
    ) -> contextlib.AbstractContextManager[None]:
        """closed(), but a forward that the calling thread is in goes on, with weights as they are then."""
        return contextlib.nullcontext() if self.is_amidst(frame) else self.closed(frame, held)

    def is_amidst(self, frame: FrameType) -> bool:
        """Whether the calling thread, in `frame`, runs a module of the model, or computes gradients."""
        if in_backward():
            return True
        parts = {id(reference()) for reference in self._modules} - {id(None)}
        return any(id(module) in parts for module in _called(frame))

    def _close(self, stops: list[StoppingHook]) -> None:
        modules = [reference() for reference in self._modules]
        alive = {number: module for number, module in enumerate(modules) if module is not None}
        self._numbers = {id(module): number for number, module in alive.items()}
        self._seen = {id(module) for number, module in alive.items() if number in self._hooked}
        with self._changed:
            self._is_closed = True
        within: set[int] = set()
        for module in alive.values():
            if isinstance(module, COUNTS_HOOKS):  # hooks of what is in it would be counted
                within.update(id(part) for part in module.modules() if part is not module)
        for module in alive.values():
            scripted = isinstance(module, torch.jit.ScriptModule)  # which takes no hook
            if not scripted and id(module) not in self._seen and id(module) not in within:
                stops.append(StoppingHook(module, self._stop))

    def _enter_alone(self, frame: FrameType, held: HeldBack) -> None:
        while True:
            while self._others_run():  # guard: unhooked-forwards
                time.sleep(_LOOK_EVERY_S)
                held.check()
            with held.let_through():
                entered = self._session.enter_alone(frame)
            if not entered:
                raise _amidst()
            if self._others_run():  # guard: unhooked-forwards
                self._session.leave(frame)  # they may be waiting for it
                continue
            return

    def _others_run(self) -> bool:
        me = threading.get_ident()
        with self._changed:
            calls = _native.calls_of_threads(_CALLS, _CALL.co_filename, _BACKWARD)
            return any(
                self._runs(called)
                for thread, called in calls
                if thread != me and thread not in self._waiting
            )

    def _runs(self, called: list[Any]) -> bool:
        """Whether a thread computes gradients, or is in a forward that no session knows."""
        if any(call is _BACKWARD for call in called):
            return True
        known = [id(part) for part in map(_uncompiled, called) if id(part) in self._numbers]
        return bool(known) and known[-1] not in self._seen

    def _stop(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """Before a forward: waits, unless it is part of one that is waited for.

        Torch gives no `kwargs` where the hook was taken off since it looked for hooks.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename == _CALL.co_filename:
            frame = frame.f_back  # the call that this is
        begun = _called(frame, until=Gate._wait_until_open.__code__)
        if in_backward() or any(id(called) in self._numbers for called in begun):
            return
        me = threading.get_ident()
        if me in self._closing:  # guard: run-within-closing
            raise ConfigError(
                "this thread is moving the model's weights (set_budget, restore): run the model when that "
                "has returned, not in a handler of a signal meanwhile"
            )
        self._wait_until_open(me)
        places = (place for place, found in enumerate(self._modules) if found() is module)
        hooked = self._hooked.get(next(places, -1))
        if hooked is not None:  # torch may have looked for hooks before it had any
            hooked.begin(module, args, kwargs or {})

    def _wait_until_open(self, thread: int) -> None:
        # A handler may fork, and the child has others.
        changed, waiting = self._changed, self._waiting
        with changed:
            waiting.append(thread)
            try:
                while self._is_closed:
                    # A handler that waits as well, just before this does, has the wake-up of both.
                    changed.wait(_LOOK_AGAIN_S)
            finally:
                waiting.remove(thread)


def _called(frame: FrameType | None, until: CodeType | None = None) -> Iterator[object]:
    """The modules whose calls `frame`, of the calling thread, is in, innermost first; none beyond `until`."""
    while frame is not None:
        code = frame.f_code
        if code is until:  # guard: within-unbegun-forward
            return
        if code.co_name in _CALLS and code.co_filename == _CALL.co_filename:
            yield _uncompiled(frame.f_locals.get("self"))
        frame = frame.f_back


def _uncompiled(module: object) -> object:
    """The module itself, of a model that was compiled."""
    return getattr(module, "_orig_mod", module)


def _amidst() -> ConfigError:
    return ConfigError(
        "this thread is in a forward of the model, or computes gradients: set its budget before or after it"
    )


def _enter_child() -> None:
    """In a forked child: those too of models that a thread is about to offload, which is not there."""
    for gate in list(_gates):
        gate.renew(gate._session)


os.register_at_fork(after_in_child=_enter_child)
