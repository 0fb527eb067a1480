"""Attaches the engine to a model: hooks that lease groups, parameters that are lent and parked."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Container, Iterable
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tensorstream import _native
from tensorstream.config import BACKENDS, PREFETCH, Config
from tensorstream.exceptions import ConfigError, UnsupportedError
from tensorstream.proxy import LentParameter, ParkedParameter
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
from tensorstream.weight import Loans, Weight, storage_users

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


class _Lent:
    """One streamed group: its weights and their views on the arena."""

    def __init__(self, group: int, weights: list[Weight], places: Iterable[Any]) -> None:
        self.group = group
        self.weights = weights
        self.views = [
            weight.view_of(torch.from_dlpack(place))
            for weight, place in zip(weights, places, strict=True)
        ]
        self.storages = [view.untyped_storage() for view in self.views]
        self.addresses = {
            storage.data_ptr(): weight
            for storage, weight in zip(self.storages, weights, strict=True)
        }
        self.versions = [0] * len(weights)
        self.depth = 0
        self.hooked = False
        # Holders of the views' storages when nobody else has one.
        self._users = [storage_users(storage) for storage in self.storages]

    def lend(self) -> None:
        """Makes the group's parameters usable ones on the arena."""
        for index, (weight, view) in enumerate(zip(self.weights, self.views, strict=True)):
            weight.lend(view)
            self.versions[index] = weight.parameter._version

    def park(self) -> list[tuple[Weight, torch.Tensor]]:
        """Parks the weights; those that were written to while they were lent, with their bytes."""
        with torch.inference_mode(False), torch.no_grad():
            written = [
                (weight, torch.clone(weight.parameter.detach()))
                for weight, view, version in zip(
                    self.weights, self.views, self.versions, strict=True
                )
                if weight.parameter._version != version
                or weight.parameter.data_ptr() != view.data_ptr()
            ]
        for weight in self.weights:
            weight.park()
        return written

    def escaped(self) -> list[int]:
        """Positions of weights of whose bytes in the arena somebody holds a view since the lease."""
        return [
            index
            for index, storage in enumerate(self.storages)
            if storage_users(storage) > self._users[index]
        ]

    def kept(self, returned: list[torch.Tensor]) -> str | None:
        """A weight of which somebody holds another view than those that the forward returned."""
        held = {id(view): view for view in returned}
        held.update({id(view._base): view._base for view in returned if view._base is not None})
        addresses = [view.untyped_storage().data_ptr() for view in held.values()]
        for index in self.escaped():
            storage = self.storages[index]
            known = addresses.count(storage.data_ptr())
            if storage_users(storage) > self._users[index] + known:
                return self.weights[index].name
        return None


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

    def __init__(self, orchestrator: Orchestrator, groups: list[_Lent]) -> None:
        self._orchestrator = orchestrator
        self._groups = groups
        self._running: list[tuple[FrameType, list[_Lent]]] = []

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
        held: list[_Lent] = []
        self._running.append((frame, held))
        for lent in self._groups:
            if self._orchestrator.take(lent):
                held.append(lent)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self._running:
            return None
        frame, held = self._running.pop()
        result = output

        def give_back(lent: _Lent) -> None:
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
        found = walk(model, config.keep_resident)
        backend = BACKENDS[config.backend]
        if checkpoint is None:
            sources = find_sources(found, backend)
        else:
            sources = sources_in_checkpoint(found, checkpoint, backend)
        if ram_counts:
            for tensor in sources.in_ram:
                found.tree.keep_resident(found.weights[tensor].names[0])
        budget_bytes = config.budget_bytes()  # once: what is available changes
        self.grouping: _native.Grouping = config.plan(found.tree, budget_bytes).grouping
        self.budget = _native.create_budget(budget_bytes)
        self.engine = self._open(found, sources)
        if checkpoint is not None:
            check_equal(found, self.engine)  # guard: checkpoint-equal
            materialize_forms(found, found.modules)
        self.loans = Loans()
        self.saved = SavedHooks()
        self.session = Session(self._reclaim)
        self.names = [weight.names for weight in found.weights]
        self._resident: list[FoundWeight] = []
        self._weights: dict[int, Weight] = {}
        self._lent: dict[int, _Lent] = {}
        self._units: list[_Unit] = []
        self._handles: list[Any] = []
        self._attach(model, found, sources)
        _orchestrators[model] = self
        self._warn_of_no_gain(sources)

    def _open(self, found: Walk, sources: Sources) -> _native.Engine:
        options = _native.EngineOptions()
        options.prefetch = PREFETCH[self.config.prefetch]
        checking = _native.Checking.ON if self.config.self_check else _native.Checking.OFF
        device = _native.host_device(checking, 0)
        return _native.Engine(
            device, self.budget, found.tree, self.grouping, sources.readers, options
        )

    def _attach(self, model: nn.Module, found: Walk, sources: Sources) -> None:
        for group, placement in enumerate(self.engine.plan.placements):
            members = [found.weights[tensor] for tensor in self.grouping.groups[group].tensors]
            if placement == _native.Placement.RESIDENT:
                self._settle_residents(group, members)
            else:
                weights = [self._make_weight(member) for member in members]
                if placement == _native.Placement.STREAMED:
                    self._lent[group] = _Lent(group, weights, self.engine.places(group))
                for weight in weights:
                    weight.take_over(sources.in_ram.get(weight.tensor))
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
        for member, place in zip(members, self.engine.places(group), strict=True):
            parameter = member.parameter
            view = torch.from_dlpack(place).view(parameter.dtype)
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
            engine=self.engine,
            loans=self.loans,
        )
        parameter._tensorstream_weight = weight  # type: ignore[attr-defined]
        self._weights[member.tensor] = weight
        return weight

    def _warn_of_no_gain(self, sources: Sources) -> None:
        if sources.in_ram and self._weights and self.config.torch_device.type == "cpu":
            logger.warning(
                "%d weights are in RAM already: streaming them to the CPU saves no memory. Save the "
                "model and load it with tensorstream.from_pretrained to stream it from disk",
                len(sources.in_ram),
            )

    def take(self, lent: _Lent) -> bool:
        """Leases a group and lends its weights. False where it has no place now: they stay parked."""
        if lent.depth == 0:
            if self.loans:
                with self.loans.lock:
                    for weight in lent.weights:
                        weight.end_pointing()  # guard: loans-settled
            if not self.engine.acquire(lent.group):
                return False
            try:
                lent.lend()
            except UnsupportedError:
                for weight in lent.weights:  # those before the one that failed
                    if isinstance(weight.parameter, LentParameter):
                        weight.park()
                self.engine.release(lent.group)
                raise
            lent.hooked = self.saved.push(lent.addresses)
        lent.depth += 1
        return True

    def give_back(self, lent: _Lent, output: Any) -> Any:
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
                output = _without_views(output, lent.addresses, returned)
        finally:
            self.engine.release(lent.group)
            self._keep(written)
        if self.loans:
            for weight in lent.weights:
                weight.check_unwritten()
        if escaped and output is not None:  # guard: kept-view
            self._check_kept(lent, returned)
        return output

    def _park(self, lent: _Lent) -> list[tuple[Weight, torch.Tensor]]:
        self.saved.pop(lent.addresses, lent.hooked)
        return lent.park()

    def _keep(self, written: list[tuple[Weight, torch.Tensor]]) -> None:
        """Makes what a forward wrote to its weights their bytes; their leases are over."""
        for weight, value in written:
            weight.check_form(value)
            weight.adopt(value)  # guard: written-in-forward

    def _check_kept(self, lent: _Lent, returned: list[torch.Tensor]) -> None:
        name = lent.kept(returned)
        if name is not None:
            raise UnsupportedError(
                f"a view of the streamed weight '{name}' was kept beyond its module's forward, and its "
                f"bytes will be replaced; keep it on the device: keep_resident=('{name}',)"
            )

    def _reclaim(self) -> None:
        """Gives back what a forward held that will never run its post-hooks."""
        for unit in self._units:
            unit.forget()
        written: list[tuple[Weight, torch.Tensor]] = []
        for lent in self._lent.values():
            if lent.depth:
                lent.depth = 0
                written += self._park(lent)
        self.engine.release_all()
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

    def streamed_from_disk_bytes(self) -> int:
        """Bytes of weights that only files hold now."""
        return self.engine.plan.streamed_bytes + self.engine.plan.on_demand_bytes

    def restore(self, model: nn.Module) -> None:
        """Gives every parameter memory of its own, takes the hooks off, ends the engine."""
        frame = sys._getframe()
        # After a forward of another thread, and instead of an abandoned one.
        self.session.enter(frame)
        self._reclaim()
        self.session.leave(frame)
        for weight in self._weights.values():
            with self.loans.lock:
                value = weight.truth()
            weight.free(value)
            del weight.parameter._tensorstream_weight  # type: ignore[attr-defined]
        for member in self._resident:
            member.parameter.data = member.parameter.data.clone()
        for handle in self._handles:
            handle.remove()
        del _orchestrators[model]


def _without_views(output: Any, places: Container[int], views: list[torch.Tensor]) -> Any:
    """`output` with clones in place of tensors in `places`; containers keep their types.

    What was replaced is appended to `views`.
    """

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, ParkedParameter):
            return leaf
        if torch._C._functorch.is_functorch_wrapped_tensor(leaf):
            return leaf  # has no storage to look at; whether it keeps a view is checked by count
        if leaf.layout is not torch.strided or leaf.untyped_storage().data_ptr() not in places:
            return leaf
        views.append(leaf)
        return leaf.clone()

    if isinstance(output, dict):
        for key, value in output.items():
            output[key] = _without_views(value, places, views)
        return output
    if isinstance(output, list):
        output[:] = [_without_views(value, places, views) for value in output]
        return output
    return pytree.tree_map(own, output)
