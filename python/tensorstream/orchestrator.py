"""Attaches the engine to a model: hooks that lease groups, parameters that are lent and parked."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import weakref
from types import FrameType
from typing import Any

import torch
from torch import nn

from tensorstream import _native
from tensorstream.compute_device import ComputeDevice, move, move_gradient, open_device
from tensorstream.config import BACKENDS, PREFETCH, Config
from tensorstream.exceptions import BudgetError, ConfigError, IoError, UnsupportedError
from tensorstream.lent import LentGroup, without_views
from tensorstream.proxy import LentParameter
from tensorstream.saved import SavedHooks
from tensorstream.session import Session
from tensorstream.sources import (
    Sources,
    check_equal,
    find_sources,
    materialize_forms,
    sources_in_checkpoint,
)
from tensorstream.walk import FoundWeight, Walk, walk
from tensorstream.weight import Loans, Weight

logger = logging.getLogger("tensorstream")

# Which orchestrator runs which model: lets `stats(model)` find it without a mark on the model.
_orchestrators: weakref.WeakKeyDictionary[nn.Module, Orchestrator] = weakref.WeakKeyDictionary()


def orchestrator_of(model: nn.Module) -> Orchestrator:
    """The orchestrator of an offloaded model.

    Raises:
        ConfigError: The model is not offloaded.
    """
    found = _orchestrators.get(model) if isinstance(model, nn.Module) else None
    if found is None:
        raise ConfigError(
            f"this {type(model).__name__} is not offloaded; call tensorstream.offload(model) first"
        )
    return found


def is_offloaded(model: nn.Module) -> bool:
    """Whether `model` itself was given to offload()."""
    return model in _orchestrators


def _renew_locks() -> None:
    for orchestrator in list(_orchestrators.values()):
        orchestrator.renew_locks()


os.register_at_fork(after_in_child=_renew_locks)


class _Hook:
    """A hook of ours on a module. A copy of the module gets one that does nothing."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _no_hook

    def __reduce__(self) -> Any:
        return _make_no_hook, ()


def _make_no_hook() -> Any:
    return _no_hook


def _no_hook(*_: Any) -> None:
    """Stands for a hook of ours on a copy of an offloaded model, which is a plain model."""


_MODULE_CODE = nn.Module.__call__.__code__.co_filename


def _frame_of_call() -> FrameType:
    """The frame that runs a module's hooks: the nearest one of torch's own code for modules."""
    frame = sys._getframe()
    while frame.f_code.co_filename != _MODULE_CODE and frame.f_back is not None:
        frame = frame.f_back
    return frame


class _Unit:
    """A hooked module: leases its groups for the time of its forward."""

    def __init__(self, orchestrator: Orchestrator, groups: list[LentGroup]) -> None:
        self._orchestrator = orchestrator
        self._groups = groups
        self._running: list[tuple[FrameType, list[LentGroup]]] = []

    def attach(self, module: nn.Module) -> list[Any]:
        """Registers the hooks; torch.compile calls them between graphs and does not trace them."""
        before, after = torch.compiler.disable(self.before), torch.compiler.disable(self.after)
        return [
            module.register_forward_pre_hook(_Hook(before), prepend=True),
            module.register_forward_hook(_Hook(after), always_call=True),
        ]

    def before(self, module: nn.Module, args: Any) -> None:
        if torch._C._get_tracing_state() is not None:
            raise UnsupportedError(
                "torch.jit.trace would freeze streamed weights; restore the model first"
            )
        frame = _frame_of_call()
        self._orchestrator.session.enter(frame)
        held: list[LentGroup] = []
        self._running.append((frame, held))
        for lent in self._groups:
            if self._orchestrator.take(lent):
                held.append(lent)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self._running:
            return None
        frame, held = self._running.pop()
        result = output

        def give_back(lent: LentGroup) -> None:
            nonlocal result
            result = self._orchestrator.give_back(lent, result)

        with contextlib.ExitStack() as stack:  # every group is given back, whatever fails
            stack.callback(self._orchestrator.session.leave, frame)
            for lent in held:
                stack.callback(give_back, lent)
        return None if result is output else result

    def forget(self) -> None:
        """Drops what an abandoned forward left."""
        self._running.clear()


def _ram_budget(config: Config) -> _native.Budget | None:
    """The ceiling of host memory beside a GPU, where the user gave one."""
    if config.ram_budget is None:
        return None
    return _native.create_budget(config.ram_budget_bytes())


class Orchestrator:
    """Runs one model on the engine. Made by `offload`, ended by `restore`."""

    def __init__(
        self, model: nn.Module, config: Config, checkpoint: str | None, ram_counts: bool
    ) -> None:
        """Plans, opens the engine, parks and hooks. Nothing of `model` is changed where that fails."""
        if is_offloaded(model):
            raise ConfigError(
                "this model is offloaded already; call tensorstream.restore(model) first"
            )
        self.config = config
        self.device: ComputeDevice = open_device(config.torch_device, config.self_check)
        found = walk(model, config.keep_resident)
        backend = BACKENDS[config.backend]
        if checkpoint is None:
            sources = find_sources(found, backend)
        else:
            sources = sources_in_checkpoint(found, checkpoint, backend)
        if ram_counts and self.device.is_host:
            for tensor in sources.in_ram:
                found.tree.keep_resident(found.weights[tensor].names[0])
        budget_bytes = config.budget_bytes(self.device.native)  # once: what is available changes
        self.grouping: _native.Grouping = config.plan(found.tree, budget_bytes).grouping
        self.budget = _native.create_budget(budget_bytes)
        self.engine = self._open(found, sources)
        if checkpoint is not None:
            check_equal(found, self.engine)  # guard: checkpoint-equal
            materialize_forms(found, found.modules, self.device.torch_device)
        self.loans = Loans()
        self.saved = SavedHooks()
        self.session = Session(self._reclaim)
        self.names = [weight.names for weight in found.weights]
        self._resident: list[FoundWeight] = []
        self._weights: dict[int, Weight] = {}
        self._lent: dict[int, LentGroup] = {}
        self._units: list[_Unit] = []
        self._handles: list[Any] = []
        self._last_stream: Any = None
        # What was moved to the device, and where it was.
        self._moved: list[tuple[torch.Tensor, torch.device]] = []
        self._attach_or_undo(model, found, sources)
        _orchestrators[model] = self
        if self.device.is_host:
            self._warn_of_no_gain(sources)
        else:
            sources.readers.clear()  # what is in RAM goes as it is brought home
            sources.in_ram.clear()
            self._bring_home()

    def _open(self, found: Walk, sources: Sources) -> _native.Engine:
        options = _native.EngineOptions()
        options.prefetch = PREFETCH[self.config.prefetch]
        ram_budget = None if self.device.is_host else _ram_budget(self.config)
        if ram_budget is not None:
            options.ram_budget = ram_budget
        return _native.Engine(
            self.device.native, self.budget, found.tree, self.grouping, sources.readers, options
        )

    def _attach_or_undo(self, model: nn.Module, found: Walk, sources: Sources) -> None:
        # On the host nothing is allocated here, and aliases would count as holders of the weights.
        undone = [] if self.device.is_host else found.weights
        before = [(weight.parameter, weight.parameter.data) for weight in undone]
        try:
            self._attach(model, found, sources)
        except BaseException:
            for handle in self._handles:
                handle.remove()
            for parameter, data in before:
                parameter.__class__ = nn.Parameter
                parameter.data = data
                parameter.__dict__.pop("_tensorstream_weight", None)
            for tensor, device in self._moved:
                move(tensor, device)
            raise

    def _attach(self, model: nn.Module, found: Walk, sources: Sources) -> None:
        for group, placement in enumerate(self.engine.plan.placements):
            members = [found.weights[tensor] for tensor in self.grouping.groups[group].tensors]
            if placement == _native.Placement.RESIDENT:
                self._settle_residents(group, members)
            else:
                weights = [self._make_weight(member) for member in members]
                if placement == _native.Placement.STREAMED:
                    self._lent[group] = LentGroup(
                        group, weights, self.device.places(self.engine, group)
                    )
                for weight in weights:
                    weight.take_over(sources.in_ram.get(weight.tensor))
        if not self.device.is_host:
            self._move_what_stays(model)
        if not self._weights:
            return
        root = _Unit(self, [])
        self._units.append(root)
        self._handles += root.attach(model)
        for hook in self.grouping.hooks:
            groups = [self._lent[group] for group in hook.groups if group in self._lent]
            if groups:
                unit = _Unit(self, groups)
                self._units.append(unit)
                self._handles += unit.attach(found.modules[hook.module])

    def _settle_residents(self, group: int, members: list[FoundWeight]) -> None:
        """Puts resident parameters on the engine's memory, unless that is where they are."""
        places = self.device.places(self.engine, group)
        for member, place in zip(members, places, strict=True):
            parameter = member.parameter
            view = place.view(parameter.dtype)
            if view.data_ptr() != parameter.data_ptr():
                parameter.data = view.as_strided(member.form.shape, member.form.stride())
                self._resident.append(member)

    def _make_weight(self, member: FoundWeight) -> Weight:
        parameter = member.parameter
        weight = Weight(
            parameter,
            member.names,
            member.tensor,
            form=member.form,
            line_offset=member.line_offset if self.device.is_host else 0,
            engine=self.engine,
            device=self.device,
            loans=self.loans,
        )
        parameter._tensorstream_weight = weight  # type: ignore[attr-defined]
        self._weights[member.tensor] = weight
        return weight

    def _move_what_stays(self, model: nn.Module) -> None:
        """Puts buffers, and parameters that cannot be streamed, on the device."""
        target = self.device.torch_device
        kept = [tensor for tensor in model.buffers() if tensor.device != target]
        kept += [
            parameter
            for parameter in model.parameters()
            if not hasattr(parameter, "_tensorstream_weight") and parameter.device != target
        ]
        for tensor in kept:
            self._moved.append((tensor, tensor.device))
            move(tensor, target)

    def _bring_home(self) -> None:
        """Moves what is streamed into pinned host memory, as far as there is room."""
        for group, placement in enumerate(self.engine.plan.placements):
            if placement == _native.Placement.RESIDENT:
                continue
            try:
                self.engine.bring_home(group)
            except (BudgetError, IoError) as error:
                logger.warning(
                    "host memory holds only a part of the weights; the others are read from where they "
                    "are at each use, which is slower: %s",
                    error,
                )
                break
            for tensor in self.grouping.groups[group].tensors:
                self._weights[tensor].come_home()

    def _warn_of_no_gain(self, sources: Sources) -> None:
        if sources.in_ram and self._weights:
            logger.warning(
                "%d weights are in RAM already: streaming them to the CPU saves no memory. Save the "
                "model and load it with tensorstream.from_pretrained to stream it from disk",
                len(sources.in_ram),
            )

    def take(self, lent: LentGroup) -> bool:
        """Leases a group and lends its weights. False where it has no place now: they stay parked."""
        if lent.depth == 0:
            if self.loans:
                with self.loans.lock:
                    for weight in lent.weights:
                        weight.end_pointing()  # guard: loans-settled
            torch.get_num_threads()  # only then does torch tell OpenMP its number for this thread
            if not self.engine.acquire(lent.group, self.device.stream()):
                return False
            self.device.settle()
            self._last_stream = self.device.current()
            try:
                lent.lend()
            except UnsupportedError:
                for weight in lent.weights:  # those before the one that failed
                    if isinstance(weight.parameter, LentParameter):
                        weight.park()
                self.engine.release(lent.group, self.device.stream())
                raise
            lent.hooked = self.saved.push(lent.addresses)
        lent.depth += 1
        return True

    def give_back(self, lent: LentGroup, output: Any) -> Any:
        """Parks a group's weights and gives the lease back; `output` without views of the arena."""
        lent.depth -= 1
        if lent.depth > 0:
            return output
        returned: list[torch.Tensor] = []
        written: list[tuple[Weight, torch.Tensor]] = []
        escaped = False
        try:
            written = self._park(lent)
            escaped = bool(lent.escaped())
            if escaped:  # guard: returned-view
                output = without_views(output, lent.addresses, returned)
        finally:
            self.engine.release(lent.group, self.device.stream())
            self._keep(written)
        if torch.is_autocast_enabled(self.device.torch_device.type):
            torch.clear_autocast_cache()  # casts of weights that are gone
        if self.loans:
            for weight in lent.weights:
                weight.check_unwritten()
        if escaped and output is not None:  # guard: kept-view
            self._check_kept(lent, returned)
        return output

    def _park(self, lent: LentGroup) -> list[tuple[Weight, torch.Tensor]]:
        self.saved.pop(lent.addresses, lent.hooked)
        return lent.park()

    def _keep(self, written: list[tuple[Weight, torch.Tensor]]) -> None:
        """Makes what a forward wrote to its weights their bytes; their leases are over."""
        for weight, value in written:
            weight.check_form(value)
            weight.adopt(value)  # guard: written-in-forward

    def _check_kept(self, lent: LentGroup, returned: list[torch.Tensor]) -> None:
        name = lent.kept(returned)
        if name is not None:
            raise UnsupportedError(
                f"a view of the streamed weight '{name}' was kept beyond its module's forward, and its "
                f"bytes will be replaced; keep it on the device: keep_resident=('{name}',)"
            )

    def _reclaim(self) -> None:
        """Gives back what a forward held that will never run its post-hooks."""
        self.device.follow(self._last_stream)  # its work still reads what is given back here
        for unit in self._units:
            unit.forget()
        written: list[tuple[Weight, torch.Tensor]] = []
        for lent in self._lent.values():
            if lent.depth:
                lent.depth = 0
                written += self._park(lent)
        self.engine.release_all(self.device.stream())
        self._keep(written)

    def renew_locks(self) -> None:
        """In a forked child: threads of the parent may have held the locks, and are not here."""
        self.loans.lock = threading.RLock()
        self.session = Session(self._reclaim)

    @property
    def backend(self) -> str:
        """How files are read, and why."""
        if self.config.backend == "auto":
            return "pread (auto: a file truncated under a mapping would end the process)"
        return f"{self.config.backend} (asked for)"

    def restored_bytes(self) -> int:
        """Bytes of RAM that restore() takes."""
        plan = self.engine.plan
        on_device = 0 if self.device.is_host else plan.resident_bytes
        return plan.streamed_bytes + plan.on_demand_bytes + on_device

    def restore(self, model: nn.Module) -> None:
        """Gives every parameter memory of its own, takes the hooks off, ends the engine."""
        frame = sys._getframe()
        # After a forward of another thread, and instead of an abandoned one.
        self.session.enter(frame)
        self._reclaim()
        self.session.leave(frame)
        ram = torch.device("cpu")
        values: list[tuple[Weight, torch.Tensor]] = []
        for weight in self._weights.values():  # what can fail comes before anything is changed
            with self.loans.lock:
                values.append((weight, weight.truth() if self.device.is_host else weight.on_host()))
        for weight, value in values:
            weight.free(value)
            move_gradient(weight.parameter, ram)
            del weight.parameter._tensorstream_weight  # type: ignore[attr-defined]
        for member in self._resident:
            value = member.parameter.data
            member.parameter.data = value.clone() if self.device.is_host else value.cpu()
            move_gradient(member.parameter, ram)
        if not self.device.is_host:
            self._move_back(model)
        for handle in self._handles:
            handle.remove()
        del _orchestrators[model]
        self._let_go()

    def _move_back(self, model: nn.Module) -> None:
        """Puts what stayed on the device, and what came there since, where the model was."""
        for tensor, device in self._moved:
            move(tensor, device)
        for tensor in [*model.buffers(), *model.parameters()]:
            if tensor.device == self.device.torch_device:
                move(tensor, torch.device("cpu"))

    def _let_go(self) -> None:
        """Ends the engine now: objects in cycles would keep its memory until they are collected."""
        for unit in self._units:
            unit.forget()
        for held in (self._units, self._handles, self._lent, self._weights, self._resident):
            held.clear()
        del self.engine
