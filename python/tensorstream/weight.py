"""The streamed weights of a model: where each one's bytes are while nobody leases its group.

A true value that an operation keeps hold of (a view, `detach()`, a NumPy array) is a *loan*: it is
compared with the source before the weight is used again, and becomes the weight's source when it
was written to. A raw address is a loan until the weight is used next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import increment_version

from tensorstream import _native
from tensorstream.compute_device import ComputeDevice
from tensorstream.exceptions import ConfigError, LeaseError, UnsupportedError
from tensorstream.forms import (
    check_kind,
    check_memory,
    empty_at,
    form_of,
    is_shared,
    line_offset_of,
    poison_like,
)
from tensorstream.generations import Generations
from tensorstream.loans import Alias, Loans
from tensorstream.places import refuse_place
from tensorstream.proxy import LentParameter, ParkedParameter
from tensorstream.tracing import as_plain, plain_tensors, version_of


class Weight:
    """One streamed tensor of a model: its parameter, its place in the engine, its loan.

    Attributes:
        parameter: The model's Parameter object, parked or lent.
        names: Every name that the model has for it.
        tensor: Its id in the engine.
        group: Its group in the engine.
    """

    def __init__(
        self,
        parameter: torch.Tensor,
        names: list[str],
        tensor: int,
        group: tuple[int, int],
        *,
        form: torch.Tensor,
        line_offset: int,
        engine: _native.Engine,
        device: ComputeDevice,
        loans: Loans,
    ) -> None:
        """`form` has the weight's shape, strides and type, on the meta device; `group` its place there, too.

        `line_offset` is the byte of a cache line at which its value begins in RAM.
        """
        self.parameter = parameter
        self.names = names
        self.tensor = tensor
        self.group, self._position = group
        self.form = form
        self._line_offset = line_offset
        # Where its value began when it was given other memory, if not where its place does.
        self._own_offset: int | None = None
        self.size_bytes = form.nbytes
        self.engine = engine
        self._device = device
        self._loans = loans
        # What its parameter has in the place of its bytes.
        self.poison = poison_like(form, device.torch_device)
        self._home: torch.Tensor | None = None
        self._loan: torch.Tensor | None = None
        self._loan_version = 0
        self._parameter_version: int | None = None  # when the loan was noted
        self._alias: Alias | None = None
        self._operations = 0  # under way with the loan
        self._pointed_at: torch.Tensor | None = None
        self._was_pointed_at = False  # since the loan was compared
        self._owned: torch.Tensor | None = None
        # The group that lends it, where one does.
        self.lent: Callable[[], Any] = lambda: None
        self.generations = Generations()

    @property
    def name(self) -> str:
        """Its first name in the model."""
        return self.names[0]

    def take_over(self, in_ram: torch.Tensor | None) -> None:
        """Parks a plain parameter; `in_ram` is its value where that is the weight's source already.

        Whoever holds the parameter's memory keeps an alias of the weight.
        """
        self._count_as_written()
        if not self._device.is_host:  # the memory that it had is no alias of what the device uses
            self.park()
            return
        value = self.parameter.detach() if in_ram is None else in_ram
        if in_ram is not None:  # guard: apart-once-settled
            self._begins_at(line_offset_of(in_ram))
        self._owned = in_ram
        self.park()
        self._watch(value)

    def park_settled(self) -> None:
        """Parks a parameter whose memory is the engine's, and goes: nobody has an alias of it."""
        self._count_as_written()
        self.park()

    def _count_as_written(self) -> None:
        """A graph that has saved the parameter itself would find what stands in the place of its bytes."""
        if not self.parameter.is_inference():
            increment_version(self.parameter)  # guard: saved-before-parking

    def come_home(self) -> None:
        """Makes the bytes in its group's home, if they are pinned there, the weight's true value."""
        place = self._device.home(self.engine, self.tensor, self.size_bytes)
        if place is not None:
            self._lie_in(place)

    def _lie_in(self, home: torch.Tensor) -> None:
        """Has the memory of `home`, seen with the weight's form, be its true value."""
        form = self.form
        with torch.inference_mode(False):
            view = torch.empty(0, dtype=form.dtype, device=home.device)
            view.set_(home.untyped_storage(), 0, form.shape, form.stride())
        self._home = self._owned = view

    @property
    def is_home(self) -> bool:
        """Whether the device reads the weight where it lies in host memory."""
        return self._home is not None

    @property
    def owned(self) -> torch.Tensor | None:
        """The memory that is the weight's source, where that is a tensor's."""
        return self._owned

    @property
    def is_lent_out(self) -> bool:
        """Whether somebody may hold the weight's true value."""
        return self._loan is not None

    def park(self) -> None:
        """Takes the bytes away from the parameter."""
        self.parameter.__class__ = nn.Parameter
        self.parameter.data = self.poison
        self.parameter.__class__ = ParkedParameter

    def leave(self) -> None:
        """The parameter is a plain one now: graphs that saved the weight before may still read it."""
        holders = [self.parameter] if self._loan is None else [self.parameter, self._loan]
        self.generations.leave(holders)
        self._loan = self._pointed_at = None
        self._loans.discard(self)

    @property
    def lies_apart(self) -> bool:
        """Whether it is computed with where it lies in RAM: products are rounded by where that begins."""
        return self._own_offset is not None

    @property
    def _offset(self) -> int:
        """The byte of a cache line at which its value begins in RAM."""
        return self._line_offset if self._own_offset is None else self._own_offset

    def _begins_at(self, offset: int) -> None:
        self._own_offset = None if offset == self._line_offset else offset

    def view_of(self, place: torch.Tensor) -> torch.Tensor:
        """The weight on a place: uint8 (size_bytes,) on the device, seen with its type, shape, strides."""
        if self._owned is not None and self.lies_apart:  # guard: given-alignment
            return self._owned.detach()
        return place.view(self.form.dtype).as_strided(self.form.shape, self.form.stride())

    def take_set(self) -> None:
        """Takes over what was put in the place of the parameter's bytes past torch's functions.

        Raises:
            UnsupportedError: It cannot be the weight's value; it stays where it is.
        """
        parameter = self.parameter
        if type(parameter) is not ParkedParameter:
            return
        lent = self.lent()
        address = as_plain(torch.Tensor.data_ptr, parameter)
        if address == self.poison.data_ptr() or (lent is not None and address in lent.addresses):
            return
        value = as_plain(torch.Tensor.detach, parameter)
        self.check_form(value)
        self.park()
        self.assign(value)  # guard: taken-set

    def _check_process(self) -> None:
        if self._home is not None:
            self._loans.check_process(self.name)

    def truth(self) -> torch.Tensor:
        """The weight's true value, shared with whoever holds it already."""
        self.take_set()
        self.settle(reads=True)
        if self._loan is not None:
            return self._loan
        if self._owned is not None:
            return self._owned
        return self.read()

    def read(self) -> torch.Tensor:
        """A fresh copy of the weight's bytes, of its shape, strides and type."""
        self._check_process()
        with plain_tensors():
            if self._home is not None:
                return torch.clone(self._home)
            return self._read_on_host().to(self.poison.device)

    def read_as_loaded(self) -> torch.Tensor:
        """The same, from the place of its group on the device, where it has one.

        Groups that are asked for so are loaded ahead in the order of the last time, as for forwards.
        """
        if self._device.is_host:  # a source is as near as the place
            return self.read()
        stream = self._device.stream()
        value = self.engine.on_lease(self.group, stream, self._read_place)
        return value if isinstance(value, torch.Tensor) else self.read()

    def _read_place(self) -> torch.Tensor:
        if self._device.settle is not None:
            self._device.settle()
        place = self._device.place(self.engine, self.group, self._position)
        with plain_tensors():
            return torch.clone(self.view_of(place))

    def on_host(self) -> torch.Tensor:
        """The weight's true value in RAM of its own, whatever the device has room for."""
        self.take_set()
        self.settle(reads=True)
        value = self._loan if self._loan is not None else self._owned
        if value is not None:
            return value.detach().to("cpu", copy=True)
        return self._read_on_host()

    def _read_on_host(self) -> torch.Tensor:
        with plain_tensors():
            value = empty_at(self.form, self._offset)
        self.engine.read_tensor(self.tensor, value.data_ptr(), self.size_bytes)
        return value

    def begin_use(self) -> torch.Tensor:
        """The true value for an operation, which operations within it share: after_use() has to follow."""
        self._operations += 1
        try:
            value = self.truth()
            if self._loan is not None:  # also of code that ran while it was read
                return self._loan
            self._loan, self._loan_version = value, value._version
            self._loans.add(self)
            return value
        except BaseException:
            self._operations -= 1
            raise

    def after_use(self, value: torch.Tensor, version: int) -> None:
        """Takes note of what an operation did with `value`, which begin_use() gave at `version`."""
        self._operations -= 1
        known = self._loan_version if value is self._loan and version >= 0 else version
        if value._version not in (version, known):  # or one within it has seen to it
            self.adopt(value)
        self._watch(value)

    def _watch(self, value: torch.Tensor) -> None:
        """Makes `value` a loan where somebody else holds its memory, and ends one that nobody does."""
        if value is self._home and is_shared(value):  # guard: written-past-versions
            self._was_pointed_at = True
        if self._is_held(value):
            self._loan, self._loan_version = value, value._version
            self._parameter_version = version_of(self.parameter)
            self._loans.add(self)
        elif self._loan is value:
            self._loan = None
            self._loans.discard(self)

    def _is_held(self, value: torch.Tensor) -> bool:
        """Whether an operation under way shares it, or somebody else its memory."""
        return self._operations > 0 or is_shared(value, self._views_on(value))

    def _views_on(self, value: torch.Tensor) -> int:
        """How many of what it is lent as, and is while it is parked, lie in the memory of `value`."""
        lent = self.lent()
        if lent is None or not self.lies_apart:
            return 0
        own = as_plain(torch.Tensor.untyped_storage, self.parameter)
        return int(lent.views_on(value)) + (own is value.untyped_storage())

    def watch_apart(self) -> None:
        """Makes its memory a loan where it lies apart and a forward's view of it is kept, as torch has it."""
        if self._owned is not None and self.lies_apart:
            with self._loans.lock:
                self._watch(self._owned)  # guard: kept-apart

    def point_at(self, value: torch.Tensor) -> None:
        """Keeps `value`, which truth() gave, for an address in it: nobody else may hold it."""
        self._pointed_at = value.detach()
        self._was_pointed_at = True

    def end_pointing(self) -> None:
        """Settles the loan before the weight is used: addresses given out are void from now on."""
        self._pointed_at = None
        self.take_set()
        self.settle()

    def settle(self, *, reads: bool = False) -> None:
        """Makes what was written to a loan the weight's bytes, and ends a loan nobody holds.

        With `reads`, for who only reads the weight, one that cannot be taken over now, since its group is in
        use or is moved, stays a loan: it has the bytes.
        """
        self._check_process()
        loan = self._loan
        if loan is None or type(self.parameter) is LentParameter:
            return  # in use: settled before the next one
        if self._is_written(loan):
            # Past its version a graph does not see what is written to a plain weight either.
            counts = loan is not self._owned or loan._version != self._loan_version
            if self.lies_apart:  # guard: written-through-a-kept-view
                counts = counts or version_of(self.parameter) != self._parameter_version
            try:
                self.adopt(loan, counts=counts)
            except (LeaseError, ConfigError):
                if counts or not reads:  # guard: settled-before-use
                    raise
                return
        is_held_home = loan is self._home and is_shared(loan)
        self._was_pointed_at = self._pointed_at is not None or is_held_home
        self._loan_version = loan._version
        if self._alias is not None:
            self._alias.note()
        if not self._is_held(loan):
            self._loan = None
            self._loans.discard(self)

    def _is_written(self, loan: torch.Tensor) -> bool:
        if loan._version != self._loan_version:
            return True
        if loan is self._home:
            # Past its version pointers reach it, and `data` of what somebody holds, or held.
            return self._was_pointed_at or is_shared(loan)
        # Owned memory is the source already: what was loaded of it is not. Other memory is compared: it
        # may have been written past torch, through NumPy or a pointer.
        return loan is self._owned or not self.holds(loan)

    def holds(self, value: torch.Tensor) -> bool:
        """Whether the weight's source has the bytes of `value`."""
        with plain_tensors():  # a forward under torch.func may be about to begin
            host = value if self._device.is_host else value.cpu()
        return bool(self.engine.holds(self.tensor, host.data_ptr(), self.size_bytes))

    def keep(self, value: torch.Tensor, version: int) -> None:
        """Makes what a forward wrote to the parameter, at `version`, the weight's, also for who has an alias.

        Raises:
            UnsupportedError: `value` cannot be the weight's.
        """
        self.check_form(value)
        if self._loan is not None:  # guard: written-beside-an-alias
            with plain_tensors():
                if value.stride() != self._loan.stride():  # it lies as the forward left it
                    self._loan = self._loan.as_strided(value.shape, value.stride())
                value = self._loan.copy_(value)
            self._loan_version = value._version
        self.adopt(value, written_at=version)  # guard: written-in-forward

    def check_unwritten(self) -> None:
        """Raises UnsupportedError where a loan was written to while the weight was in use."""
        by_alias = self._alias is not None and self._alias.is_written()
        if self._loan is not None and (by_alias or self._loan._version != self._loan_version):
            raise UnsupportedError(
                f"the streamed weight '{self.name}' was written to through an alias taken before its "
                "module's forward, while that forward ran, or beside one that cannot be told from it: write "
                "before it or after it, or let go of the alias"
            )

    def settle_if_returned(self) -> None:
        """settle(), where nobody holds the loan any more."""
        if self._loan is not None and not self._is_held(self._loan):
            self.settle(reads=True)

    def is_as_saved(self, generation: int, version: int) -> bool:
        """Whether a graph that saved the weight then, while it was lent at that version, has its value."""
        if self.is_lent_out:  # may have been written to since, and nothing has used the weight
            with self._loans.lock:
                self.take_set()
                self.settle()  # guard: written-before-backward
        return self.generations.is_now(generation, version)

    def adopt(
        self, value: torch.Tensor, *, counts: bool = True, written_at: int | None = None
    ) -> None:
        """Makes `value`, of the weight's type and shape, its source from now on.

        `counts` says whether that is another value for the graphs of earlier forwards; `written_at` is the
        parameter's version where the forward wrote it that just ended.
        """
        self._take_form_of(value)
        if self._device.is_host:
            self.engine.replace_tensor(self.tensor, value.data_ptr(), self.size_bytes, value)
            self._owned = value
            if self.lies_apart:
                self._make_views_anew()
        elif self._home is not None:
            if value.data_ptr() != self._home.data_ptr():
                with plain_tensors():
                    self._home.copy_(value)
            self.engine.note_write(self.tensor, self._device.stream())
        else:
            with plain_tensors():
                host = value.detach().to("cpu", copy=True)
            self.engine.replace_tensor(self.tensor, host.data_ptr(), self.size_bytes, host)
        if counts:
            self.generations.begin_next(written_at)

    def assign(
        self, value: torch.Tensor, written_at: int | None = None, alias: Alias | None = None
    ) -> None:
        """`parameter.data = value`; of a forward's that just ended, at `written_at`, with who gave it.

        Raises:
            UnsupportedError: `value` is of another type, shape or device, or another weight is lent there.
        """
        if value is self.parameter:
            return
        self._check_process()
        if isinstance(value, ParkedParameter):
            value = value.data
        loan = self._loan
        same = loan is not None and value.data_ptr() == loan.data_ptr()
        if same and value.shape == self.form.shape and value.stride() == self.form.stride():
            return  # what was borrowed is put back: writes to it are seen by settle()
        self.check_form(value)
        refuse_place(value, self.name)
        with torch.inference_mode(False), torch.no_grad():
            kept = value.detach()
            if kept.is_inference():
                kept = torch.clone(kept)
        self._leave_home_if_held()
        self._loan = None
        self._loans.discard(self)
        self.take_memory(kept, written_at)
        self._alias = alias
        self._watch(kept)

    def take_memory(self, value: torch.Tensor, written_at: int | None = None) -> None:
        """Adopts what the parameter was given in the place of its memory."""
        if self._device.is_host:
            self._begins_at(line_offset_of(value))
            self._make_views_anew()
        self.adopt(value, written_at=written_at)

    def _leave_home_if_held(self) -> None:
        """Leaves the home to whoever holds its bytes: they are the weight's no more."""
        self._pointed_at = None
        if self._home is None:
            return
        if is_shared(self._home):  # guard: home-held
            self._home = self._owned = None

    def check_form(self, value: torch.Tensor) -> None:
        """Raises UnsupportedError where `value` cannot be the weight's."""
        self.check_kind(value.dtype, value.device, value.shape)
        check_memory(value, self.name)

    def check_kind(
        self, dtype: torch.dtype, device: torch.device, shape: torch.Size | None = None
    ) -> None:
        """Raises UnsupportedError where the weight has another type, place or shape (None: its own)."""
        shape = self.form.shape if shape is None else shape
        own = (self.form.shape, self.form.dtype, self.poison.device)
        check_kind(self.name, own, (shape, dtype, device))

    def _take_form_of(self, value: torch.Tensor) -> None:
        """Lies in memory as `value` does from now on: products are rounded by that."""
        if value.stride() == self.form.stride():
            return
        self.form = form_of(value)  # guard: other-strides
        if self._home is not None:
            self._lie_in(self._home)
        self._make_views_anew()

    def _make_views_anew(self) -> None:
        lent = self.lent()
        if lent is not None:
            lent.leave_place()
            lent.forget_place()  # its views have the form of before
