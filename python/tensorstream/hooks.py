"""The hooks on a model's modules: groups are leased for the time of a forward."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tensorstream import _native
from tensorstream.exceptions import UnsupportedError
from tensorstream.fused import COUNTS_HOOKS, WHOLE, may_pack, refuse_packing, refuse_parked
from tensorstream.lent import LentGroup
from tensorstream.tracing import refuse_tracing, set_eval_frame

_MODULE_CODE = nn.Module.__call__.__code__.co_filename


class _ScriptedError(UnsupportedError, AttributeError):
    """A hook was asked for its name, as torch.jit.script does; for hasattr() it has none."""


class _Hook(functools.partial):  # type: ignore[type-arg]
    """A hook of ours on a module. A copy of the module gets one that does nothing."""

    @property
    def __name__(self) -> str:
        raise _ScriptedError(
            "torch.jit.script cannot compile modules with streamed weights; restore the model first"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _no_hook

    def __reduce__(self) -> Any:
        return _make_no_hook, ()


def _make_no_hook() -> Any:
    return _no_hook


def _no_hook(*_: Any) -> None:
    """Stands for a hook of ours on a copy of an offloaded model, which is a plain model."""


class UncountedHooks(OrderedDict[int, Any]):
    """Hooks of a module that computes otherwise where it has some: ours run and are not counted."""

    def __len__(self) -> int:
        return sum(not isinstance(hook, _Hook) and hook is not _no_hook for hook in self.values())

    def __bool__(self) -> bool:
        return any(True for _ in self)


def _hide_hooks(module: nn.Module) -> None:
    """Has hooks that follow not counted. Where the user has some, torch counts those anyway."""
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        if not vars(module)[name]:
            vars(module)[name] = UncountedHooks()


def _show_hooks(module: nn.Module) -> None:
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        if isinstance(vars(module)[name], UncountedHooks) and not vars(module)[name]:
            vars(module)[name] = OrderedDict()


class _UnscriptedHooks(OrderedDict[int, Any]):
    """The hooks of a module with streamed weights that another one leases, and which has none of ours.

    torch.jit.script alone asks for their `values()`, and for the names of these: it would compile the
    module with what stands in its weights' place. A copy is that of any hooks.
    """

    refuses = True

    def values(self) -> Any:
        """The hooks, and one that has no name."""
        hooks = list(super().values())
        return [*hooks, _Hook(_no_hook)] if self.refuses else hooks

    def __reduce__(self) -> Any:
        return OrderedDict, (list(self.items()),)


def set_scripting(modules: Sequence[weakref.ref[nn.Module]], *, refused: bool) -> None:
    """Whether torch.jit.script refuses modules with weights and no hooks, as it does those with ours."""
    for module in (reference() for reference in modules):
        hooks = None if module is None else vars(module).get("_forward_hooks")
        if isinstance(hooks, _UnscriptedHooks):
            hooks.refuses = refused  # the user's handles know them
            if not refused and not hooks:
                vars(module)["_forward_hooks"] = OrderedDict()
        elif refused and type(hooks) is OrderedDict and not hooks and _has_weights(module):
            vars(module)["_forward_hooks"] = _UnscriptedHooks()


def _has_weights(module: nn.Module | None) -> bool:
    """Whether it has some of its own, as no module of TorchScript has."""
    return any(value is not None for value in vars(module).get("_parameters", {}).values())


def refuse_moved_by_others(model: nn.Module) -> None:
    """Checks that no hook of accelerate's puts weights of its own into the model at each forward.

    Raises:
        UnsupportedError: One does.
    """
    for name, module in model.named_modules():
        if _puts_weights(getattr(module, "_hf_hook", None)):
            raise UnsupportedError(
                f"accelerate offloads the weights of '{name or type(model).__name__}' (cpu_offload, "
                "disk_offload, dispatch_model, or device_map= and max_memory= of transformers): load the "
                "model without them, or by tensorstream.from_pretrained; or have its weights in RAM by "
                "accelerate.hooks.remove_hook_from_submodules(model)"
            )


def _puts_weights(hook: Any) -> bool:
    """Whether a hook of accelerate's does; some are several in sequence."""
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))


class StoppingHook:
    """A hook on one module, before all others: for the time in which its forwards are not to begin."""

    def __init__(self, module: nn.Module, stop: Callable[..., None]) -> None:
        """`stop` is called with the module, and the arguments by position and by name."""
        self._module = module
        if isinstance(module, COUNTS_HOOKS):  # guard: uncounted-hooks
            _hide_hooks(module)
        self._handle = module.register_forward_pre_hook(_Hook(stop), prepend=True, with_kwargs=True)

    def detach(self) -> None:
        """Takes it off."""
        self._handle.remove()
        if isinstance(self._module, COUNTS_HOOKS):
            _show_hooks(self._module)


class HookedModule:
    """The hooks of one module. Torch.compile calls them between graphs."""

    def __init__(self, leases: _native.Leases, module: nn.Module, groups: list[LentGroup]) -> None:
        self._unit = _native.Unit(leases, groups, _MODULE_CODE, refuse_tracing, set_eval_frame)
        self._module = weakref.ref(module)
        if isinstance(module, COUNTS_HOOKS):  # guard: uncounted-hooks
            _hide_hooks(module)
        self._handles = [
            module.register_forward_pre_hook(_Hook(self._unit.before), prepend=True),
            module.register_forward_hook(_Hook(self._unit.after), always_call=True),
        ]
        if may_pack(module):
            check = module.register_forward_pre_hook(_Hook(refuse_packing), with_kwargs=True)
            self._handles.append(check)
        if isinstance(module, WHOLE):
            self._handles.append(module.register_forward_pre_hook(_Hook(refuse_parked)))

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Does what the hooks before a forward do, for a call that may have begun when there were none."""
        self._unit.begin(module, args)
        if may_pack(module):
            refuse_packing(module, args, kwargs)

    def lease(self, groups: list[LentGroup]) -> None:
        """Leases these groups from now on."""
        self._unit.groups = groups

    def detach(self) -> None:
        """Takes the hooks off."""
        self._unit.attached = False  # for a call that waits in one of them
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        module = self._module()
        if isinstance(module, COUNTS_HOOKS):
            _show_hooks(module)

    def forget(self) -> None:
        """Drops what an abandoned forward left."""
        self._unit.forget()
