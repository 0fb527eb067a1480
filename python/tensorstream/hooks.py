"""The hooks on a model's modules: groups are leased for the time of a forward."""

from __future__ import annotations

import functools
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tensorstream.exceptions import UnsupportedError
from tensorstream.lent import LentGroup

if TYPE_CHECKING:
    from tensorstream.orchestrator import Orchestrator


class _Hook(functools.partial):  # type: ignore[type-arg]
    """A hook of ours on a module. A copy of the module gets one that does nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _no_hook

    def __reduce__(self) -> Any:
        return _make_no_hook, ()


def _make_no_hook() -> Any:
    return _no_hook


def _no_hook(*_: Any) -> None:
    """Stands for a hook of ours on a copy of an offloaded model, which is a plain model."""


_tracing_state = torch._C._get_tracing_state
_MODULE_CODE = nn.Module.__call__.__code__.co_filename


def _frame_of_call() -> FrameType:
    """The frame that runs a module's hooks: the nearest one of torch's own code for modules."""
    frame = sys._getframe()
    while frame.f_code.co_filename != _MODULE_CODE and frame.f_back is not None:
        frame = frame.f_back
    return frame


class Unit:
    """A hooked module: leases its groups for the time of its forward."""

    def __init__(self, orchestrator: Orchestrator, groups: list[LentGroup]) -> None:
        self._orchestrator = orchestrator
        self.groups = groups
        self._running: list[tuple[FrameType, list[LentGroup]]] = []
        self._handles: list[Any] = []

    def attach(self, module: nn.Module) -> None:
        """Registers the hooks; torch.compile calls them between graphs and does not trace them."""
        before, after = torch.compiler.disable(self.before), torch.compiler.disable(self.after)
        self._handles = [
            module.register_forward_pre_hook(_Hook(before), prepend=True),
            module.register_forward_hook(_Hook(after), always_call=True),
        ]

    def detach(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before(self, module: nn.Module, args: Any) -> None:
        """The pre-hook: leases the groups."""
        if _tracing_state() is not None:
            raise UnsupportedError(
                "torch.jit.trace would freeze streamed weights; restore the model first"
            )
        frame = _frame_of_call()
        self._orchestrator.enter(frame)
        held: list[LentGroup] = []
        self._running.append((frame, held))
        for lent in self.groups:
            if self._orchestrator.take(lent):
                held.append(lent)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The post-hook: gives them back; the output without views of their places."""
        if not self._running:
            return None
        frame, held = self._running.pop()
        try:
            result = self._give_back(held, output)
        finally:
            self._orchestrator.leave(frame, output)
        return None if result is output else result

    def _give_back(self, held: list[LentGroup], output: Any) -> Any:
        """Gives every group back, whatever fails."""
        try:
            while held:
                output = self._orchestrator.give_back(held.pop(), output)
        finally:
            if held:
                self._give_back(held, output)
        return output

    def forget(self) -> None:
        """Drops what an abandoned forward left."""
        self._running.clear()
