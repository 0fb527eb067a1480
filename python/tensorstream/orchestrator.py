"""Attaches the engine to a model: hooks that lease groups, parameters that are lent and parked."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from tensorstream import _native, conversions, registry, settled
from tensorstream.backward import OutermostForward, in_backward
from tensorstream.compute_device import ComputeDevice, open_device
from tensorstream.config import PRESSURE, Config
from tensorstream.fixed import complete
from tensorstream.forms import form_of
from tensorstream.fused import may_pack
from tensorstream.gate import Gate
from tensorstream.homes import bring_home
from tensorstream.hooks import HookedModule, refuse_moved_by_others, set_scripting
from tensorstream.interrupts import HeldBack
from tensorstream.lent import LentGroup, Written, keep_written
from tensorstream.loans import Loans
from tensorstream.moved import Moved
from tensorstream.packed import StoredPlace
from tensorstream.parts import as_module
from tensorstream.plain_objects import make_plain_class, mark
from tensorstream.registry import orchestrator_of
from tensorstream.restored import make_plain, values_in_ram
from tensorstream.saved import SavedHooks
from tensorstream.sources import Sources, check_equal, sources_of
from tensorstream.tiers import plan_tiers
from tensorstream.torch_pool import TorchPool
from tensorstream.walk import FoundWeight, Walk, walk
from tensorstream.weight import Weight

__all__ = ["Orchestrator", "orchestrator_of"]

logger = logging.getLogger("tensorstream")


def _ram_budget(config: Config) -> _native.Budget | None:
    """The ceiling of host memory beside a GPU, where the user gave one."""
    if config.ram_budget is None:
        return None
    return _native.create_budget(config.ram_budget_bytes())


class Orchestrator:
    """Runs one model, or the models of one pipeline, on the engine. Made by `offload`, ended by `restore`."""

    def __init__(
        self,
        model: Any,
        config: Config,
        checkpoint: str | None,
        *,
        ram_counts: bool,
        stored: Mapping[int, StoredPlace] | None = None,
    ) -> None:
        """Plans, opens the engine, parks and hooks. Nothing of `model` is changed where that fails."""
        module = as_module(model)
        registry.check_not_offloaded(model)
        refuse_moved_by_others(module)
        self.config = config
        self.device: ComputeDevice = open_device(config.torch_device, config.self_check)
        self.saved, self._forward = SavedHooks(), OutermostForward()
        self.session = _native.Session(self._reclaim, self._forward.waits_for_caller)
        self.loans = Loans(self.session.end_abandoned)
        # By the ids of the tree. The model is not to be kept alive from here.
        self._modules = [weakref.ref(each) for each in module.modules()]
        # Settled residents whose parameters are on the engine's memory, not on their own.
        self._resident: dict[int, settled.Resident] = {}
        # Whose parameters were put where their groups settled: elsewhere they have what somebody gave them.
        self._settled: set[int] = set()
        self._weights: dict[int, Weight] = {}
        self._lent: dict[int, LentGroup] = {}
        # Of each module with hooks of ours, by its id.
        self._hooked: dict[int, HookedModule] = {}
        self._gate = Gate(self._modules, self._hooked, self.session)
        self._place_moves = 0
        self._awaits_backward = False  # what follows a forward is done after its backward
        self._moved = Moved(self.device.torch_device)
        conversions.watch()
        with HeldBack() as held, registry.claimed(model):
            with self._gate.closed_to_others(sys._getframe(), held):
                with held.let_through():  # nothing of the model is changed until then
                    whole = checkpoint is not None  # where wrappers have other names
                    found = walk(module, config.keep_resident, stored or {}, apart=not whole)
                    sources = self._bind(found, checkpoint, stored or {}, ram_counts=ram_counts)
                self._take_over(found, sources, held)
                registry.register(model, self)
            if self.device.is_host:
                if self._weights:
                    sources.warn_of_no_gain()
            else:
                sources.readers.clear()  # what is in RAM goes as it is brought home
                sources.in_ram.clear()
                bring_home(self.engine, self._weights, self._tensors_of, held)

    def _bind(
        self,
        found: Walk,
        checkpoint: str | None,
        stored: Mapping[int, StoredPlace],
        *,
        ram_counts: bool,
    ) -> Sources:
        """Finds the weights' bytes, plans, and opens the engine."""
        opener = _native.FileOpener(self.config.file_backend, self.device.native)
        sources = sources_of(found, opener, checkpoint, stored)
        if ram_counts and self.device.is_host:
            for tensor in sources.in_ram:
                found.tree.keep_resident(found.weights[tensor].names[0])
        self._open(found, sources)
        if checkpoint is not None:
            check_equal(found, self.engine)  # guard: checkpoint-equal
        self._leases = _native.Leases(
            self,
            self.engine,
            self.session,
            self.saved.stack,
            self.device.lease_functions(self.loans.weights),
        )
        self.names = [weight.names for weight in found.weights]
        self._members, self._entries = found.weights, found.entries
        self._wrappers = found.wrappers
        self._modules[:] = [weakref.ref(each) for each in found.modules]
        self.pool = self.saved.pool = self._make_pool(found.tree.fixed_bytes - sources.device_bytes)
        return sources

    def _make_pool(self, fixed_bytes: int) -> TorchPool | None:
        memory = self.device.torch_memory()
        if memory is None:
            return None
        device = self.device
        ceiling = self.engine.ceiling(PRESSURE[self.config.pressure], device.index)
        room = max(1, self.budget.limit_bytes - self.budget.used_bytes + fixed_bytes)
        return TorchPool(ceiling, device.index, memory, (room, device.native.total_bytes))

    def begun(self) -> None:
        """A forward begins that is in no other."""
        self._forward.begin()
        pool = self.pool
        if pool is None:
            return
        if in_backward():  # guard: recomputed-forward
            pool.enter_backward()
            return
        if self._awaits_backward:
            self._end_forward(pool)
        if not pool.trains and torch.is_grad_enabled() and self._is_in_training():
            pool.prepare_training()
        pool.enter()

    def ended(self, output: Any) -> None:
        """It ends; `output` is None where it may have failed."""
        self._forward.end()
        pool = self.pool
        if pool is None:
            return
        if in_backward():  # guard: recomputed-forward
            if output is None:
                pool.explain()
            return
        pool.leave()
        if output is None:
            pool.explain()
        # What backward needs is no room for residents, and it uses again what the forward's pool has.
        self._awaits_backward = pool.watch(output)
        if not self._awaits_backward:
            self._end_forward(pool)

    def _is_in_training(self) -> bool:
        entries = (self._modules[entry]() for entry in self._entries)
        return any(entry is not None and entry.training for entry in entries)

    def _end_forward(self, pool: TorchPool) -> None:
        self._awaits_backward = False
        pool.forward_ended()
        self._leave_lost_places()

    def _leave_lost_places(self) -> None:
        """Takes the bytes away from parked parameters whose places went to others meanwhile."""
        moves = self.engine.place_moves
        if moves == self._place_moves:
            return
        self._place_moves = moves
        for lent in self._lent.values():
            if lent.place_number != self.engine.place_number(lent.group):  # guard: lost-place
                lent.leave_place()

    def _open(self, found: Walk, sources: Sources) -> None:
        """Plans, and opens the engine."""
        config, device = self.config, self.device
        budget_bytes = config.budget_bytes(device.native)  # once: what is available changes
        ram_budget = None if device.is_host else _ram_budget(config)
        ram_bytes = None if ram_budget is None else ram_budget.limit_bytes
        tiers = plan_tiers(config, found, sources, device, (budget_bytes, ram_bytes))
        self.backend = tiers.about  # how files are read, and why
        self.grouping: _native.Grouping = tiers.planned.grouping
        self._tensors_of = [list(members.tensors) for members in self.grouping.groups]
        self._group_of = {  # of each tensor, and its place there
            tensor: (group, position)
            for group, members in enumerate(self._tensors_of)
            for position, tensor in enumerate(members)
        }
        self.budget = _native.create_budget(budget_bytes)
        options = tiers.config.engine_options(device, tiers.disk_bytes_per_second)
        if ram_budget is not None:
            options.ram_budget = ram_budget
        self.engine = _native.Engine(
            device.native, self.budget, found.tree, self.grouping, sources.readers, options
        )

    def _take_over(self, found: Walk, sources: Sources, held: HeldBack) -> None:
        """Gives fixed tensors their values, parks weights and hooks; undoes all of it where that fails."""
        made = complete(found, sources.fixed, self.device.torch_device, given=sources.in_checkpoint)
        # On the host aliases would count as holders of the weights, and there is room to read them anew.
        undone = [] if self.device.is_host else found.weights
        before = [(weight.parameter, weight.parameter.data) for weight in undone]
        try:
            self._wrappers.take_apart(self.device.torch_device)
            self._attach(sources.in_ram)
            if not self.device.is_host:
                self._moved.bring(found.modules[0])
            self._hook()
            held.check()
        except BaseException:
            for hooked in self._hooked.values():
                hooked.detach()
            set_scripting(self._modules, refused=False)
            if self.device.is_host:
                weights, residents = self._weights.values(), self._resident.values()
                values = values_in_ram(weights, residents, self.loans.lock, is_host=True)
                make_plain(values)  # guard: undone-on-the-host
            for parameter, data in before:
                make_plain_class(parameter)
                parameter.data = data
            self._wrappers.put_together()
            self._moved.undo()
            made.undo()
            raise

    def _attach(self, in_ram: dict[int, torch.Tensor]) -> None:
        """Puts parameters where the engine has their groups, or parks them."""
        placements = self.engine.plan.placements
        for group, tensors in enumerate(self._tensors_of):
            if self.engine.settled(group):
                self._settle(group)
                continue
            weights = [self._weights.get(each) or self._park(each, in_ram) for each in tensors]
            if placements[group] == _native.Placement.ON_DEMAND:
                self._lent.pop(group, None)
            elif group not in self._lent:
                self._lent[group] = LentGroup(group, weights)
        self._wrappers.follow()

    def _settle(self, group: int) -> None:
        """Puts parameters of a settled group on the engine's memory, unless that is where they are."""
        lent = self._lent.pop(group, None)
        if lent is not None:
            lent.leave_place()
        places = self.device.places(self.engine, group)
        for tensor, place in zip(self._tensors_of[group], places, strict=True):
            member = self._members[tensor]
            parameter = member.parameter
            view = place.view(parameter.dtype)
            weight = self._weights.pop(tensor, None)
            if weight is not None:
                member.form = weight.form
                owned = weight.owned
                make_plain_class(parameter)
                if owned is not None and (weight.lies_apart or owned.data_ptr() == view.data_ptr()):
                    parameter.data = owned
                    weight.leave()
                    self._settled.add(tensor)
                    continue
            elif tensor in self._settled and settled.has_left(self._resident.get(tensor)):
                continue  # guard: exchanged-memory
            if view.data_ptr() != parameter.data_ptr():
                parameter.data = view.as_strided(member.form.shape, member.form.stride())
                self._resident[tensor] = settled.Resident.of(member)
            if weight is not None:
                weight.leave()
            self._settled.add(tensor)

    def _park(self, tensor: int, in_ram: dict[int, torch.Tensor]) -> Weight:
        weight = self._make_weight(self._members[tensor])
        weight.take_over(in_ram.get(tensor))
        self._resident.pop(tensor, None)
        return weight

    def _hook(self) -> None:
        """Hooks the modules whose groups are leased, and all entries where any weight is parked."""
        # A strict ceiling over torch's part holds whatever is resident.
        strict = self.pool is not None and self.config.pressure == "strict"
        wanted: dict[int, list[LentGroup]] = {}
        if self._weights or strict:
            wanted = {entry: [] for entry in self._entries}
        for hook in self.grouping.hooks:
            groups = [self._lent[group] for group in hook.groups if group in self._lent]
            if groups:
                wanted.setdefault(hook.module, []).extend(groups)
        for module, reference in enumerate(self._modules):
            if self._weights and may_pack(reference()):
                wanted.setdefault(module, [])
        for module in [module for module in self._hooked if module not in wanted]:
            self._hooked.pop(module).detach()
        for module, groups in wanted.items():
            if module in self._hooked:
                self._hooked[module].lease(groups)
                continue
            found = self._modules[module]()
            if found is not None:
                self._hooked[module] = HookedModule(self._leases, found, groups)
        set_scripting(self._modules, refused=bool(self._weights))

    @torch.inference_mode(False)  # parameters made in it could be saved by no graph
    def set_budget(self, limit_bytes: int) -> None:
        """Moves the ceiling, and the groups with it.

        Raises:
            BudgetError: It is too small, and nothing changes.
            ConfigError: This thread runs a forward of the model.
            LeaseError: A backward of another thread reads a weight for ten seconds, and nothing changes.
            UnsupportedError: Somebody holds memory that would go, and nothing changes.
        """
        frame = sys._getframe()
        with HeldBack() as held, self._gate.closed(frame, held):
            self.device.finish()  # the engine reads what work under way writes to settled weights
            will_settle = self.engine.settled_under(limit_bytes)
            written: dict[int, torch.Tensor] = {}
            with self.loans.kept_still(held.check):  # who writes to a weight waits
                try:
                    self._leave(will_settle, written)
                    self.engine.set_budget(limit_bytes, held.check)
                finally:
                    self._follow(written)
            if not self.device.is_host:
                bring_home(self.engine, self._weights, self._tensors_of, held)

    def _leave(self, will_settle: list[bool], replaced: dict[int, torch.Tensor]) -> None:
        """Parks the parameters of groups that will not be settled any more.

        Adds to `replaced` the values, by tensor, that were put in the place of the engine's.
        """
        settled.check_no_views(self._lent.values())
        leaving: list[int] = []
        places: list[torch.Tensor] = []
        for group, stays in enumerate(will_settle):
            tensors = self._tensors_of[group]
            if self.engine.settled(group) and not stays:
                leaving += tensors
                places += self.device.places(self.engine, group)
            elif stays and not self.engine.settled(group):
                settled.check_returned([self._weights[each] for each in tensors], self.loans.lock)
        in_place = {
            tensor: self._members[tensor].parameter.data_ptr() == place.data_ptr()
            for tensor, place in zip(leaving, places, strict=True)
        }
        places.clear()  # or they would be holders of what is to go
        on_engine = {tensor for tensor in leaving if in_place[tensor] and tensor in self._resident}
        for tensor in leaving:
            settled.check_can_leave(self._members[tensor], self._resident.get(tensor))
        for tensor in leaving:
            member = self._members[tensor]
            member.form = form_of(member.parameter)  # guard: became-another
            if tensor in on_engine:
                self._make_weight(member).park_settled()
                del self._resident[tensor]
                continue
            value = member.parameter.detach()
            if not in_place[tensor]:
                replaced[tensor] = value
            self._park(tensor, {tensor: value} if in_place[tensor] else {})

    def _follow(self, replaced: dict[int, torch.Tensor]) -> None:
        """Puts parameters where the engine has their groups now."""
        for tensor, value in replaced.items():
            if not self.engine.settled(self._group_of[tensor][0]):
                self._weights[tensor].take_memory(value)
        self._attach({})
        for tensor, value in replaced.items():
            if tensor not in self._weights:  # it did not leave after all
                self._members[tensor].parameter.data = value
        self._leave_lost_places()
        self._hook()

    def _make_weight(self, member: FoundWeight) -> Weight:
        weight = Weight(
            member.parameter,
            member.names,
            member.tensor,
            self._group_of[member.tensor],
            form=member.form,
            line_offset=member.line_offset if self.device.is_host else 0,
            engine=self.engine,
            device=self.device,
            loans=self.loans,
        )
        mark(member.parameter, weight, is_buffer=member.is_buffer)
        self._weights[member.tensor] = weight
        return weight

    def known_ids(self) -> set[int]:
        """The identities of parameters by which a model is this one: the streamed, or all where none is."""
        streamed = {id(wrapper.outer) for wrapper in self._wrappers if wrapper.is_streamed}
        streamed |= {id(weight.parameter) for weight in self._weights.values()}
        return streamed or {id(member.parameter) for member in self._members}

    def settle_loans(self, lent: LentGroup) -> None:
        """Before a group is leased while somebody may hold true values of weights."""
        with self.loans.lock:
            for weight in lent.weights:
                weight.end_pointing()  # guard: loans-settled

    def move(self, lent: LentGroup, place_number: int) -> None:
        """A group that was just leased is on another place than before."""
        places = self.device.places(self.engine, lent.group)
        lent.move(place_number, places, self.engine.has_own_place(lent.group))

    def keep(self, written: list[Written]) -> None:
        """Makes what a forward wrote to its weights their bytes; their leases are over."""
        keep_written(written)

    def _reclaim(self) -> None:
        """Gives back what a forward held that will never run its post-hooks."""
        self._forward.end()
        if self.pool is not None:
            self.pool.leave()
        self.device.follow(self._leases.last_stream)  # its work still reads what is given back here
        for hooked in self._hooked.values():
            hooked.forget()
        abandoned: list[LentGroup] = []
        for lent in self._lent.values():
            if lent.depth:  # guard: abandoned-forward
                abandoned.append(lent)
        self._leases.abandon(abandoned)

    def renew_locks(self) -> None:
        """In a forked child: threads of the parent may have held the locks, and are not here."""
        self.session = _native.Session(self._reclaim, self._forward.waits_for_caller)
        self.loans.enter_child(self.session.end_abandoned)
        self._leases.renew(self.session)
        self._gate.renew(self.session)

    def restored_bytes(self) -> int:
        """Bytes of RAM that restore() takes."""
        plan = self.engine.plan
        on_device = 0 if self.device.is_host else plan.resident_bytes
        return plan.streamed_bytes + plan.kept_weights_bytes + plan.on_demand_bytes + on_device

    @torch.inference_mode(False)
    def restore(self, model: Any) -> None:
        """Gives every parameter memory of its own, takes the hooks off, ends the engine."""
        frame = sys._getframe()
        with HeldBack() as held:
            if not self._gate.is_amidst(frame):
                with self._gate.closed(frame, held):
                    self._restore(model, held)
                return
            self.session.enter(frame)  # this thread's own forward goes on plain
            self._restore(model, held)
            self.session.leave(frame)

    def _restore(self, model: Any, held: HeldBack) -> None:
        self._reclaim()
        self.device.finish()
        with self.loans.kept_still(held.check):
            # What can fail, or be given up, comes before anything is changed.
            with held.let_through():
                weights, residents = self._weights.values(), self._resident.values()
                values = values_in_ram(weights, residents, self.loans.lock, self.device.is_host)
                self._wrappers.check_can_move(torch.device("cpu"))
            make_plain(values)
            self._wrappers.put_together()
            for weight in self._weights.values():
                weight.leave()
        if not self.device.is_host:
            self._moved.put_back(as_module(model))
        for hooked in self._hooked.values():
            hooked.detach()
        set_scripting(self._modules, refused=False)
        registry.forget(self)
        self._let_go()

    def _let_go(self) -> None:
        """Ends the engine now: objects in cycles would keep its memory until they are collected."""
        for hooked in self._hooked.values():
            hooked.forget()
        for held in (self._hooked, self._lent, self._weights, self._resident, self._wrappers):
            held.clear()
        self.pool = self.saved.pool = None  # what tensors hold of it stays with them
        self._leases.let_go()
        self._gate.is_over = True
        del self.engine
