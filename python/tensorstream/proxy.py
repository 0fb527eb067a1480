"""Weights between uses: parameters that keep their identity and tell the truth.

A streamed parameter is *parked* while nobody leases its group. The Parameter object stays; its class
is `ParkedParameter`, whose `__torch_function__` runs every operation on the weight's true value and
keeps what was written. Its bare storage is one poisoned element, so that a read which slips past
gives NaN, not a stale number. While the group is leased the object is a `LentParameter`: a plain
one on the arena, but that writes through its `data` show in its version, by which they are kept.

A true value that an operation keeps hold of (a view, `detach()`, a NumPy array) is a *loan*: it is
compared with the source before the weight is used again, and becomes the weight's source when it
was written to. A raw address is a loan until the weight is used next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from tensorstream import _native
from tensorstream.exceptions import ConfigError, UnsupportedError


def storage_users(storage: torch.UntypedStorage) -> int:
    """How many tensors and other holders `storage` has, itself included."""
    users: int = torch._C._storage_Use_Count(storage._cdata)
    return users


_ALONE = torch.empty(1)
_SOLE_USER = storage_users(_ALONE.untyped_storage())


class Loans:
    """The weights of one model whose true values somebody may still hold."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._weights: set[Weight] = set()

    def __bool__(self) -> bool:
        return bool(self._weights)

    def add(self, weight: Weight) -> None:
        self._weights.add(weight)

    def discard(self, weight: Weight) -> None:
        self._weights.discard(weight)

    def sweep(self) -> None:
        """Settles the loans that nobody holds any more, so that they take no memory."""
        for weight in list(self._weights):
            weight.settle_if_returned()


class Weight:
    """One streamed tensor of a model: its parameter, its place in the engine, its loan.

    Attributes:
        parameter: The model's Parameter object, parked or lent.
        names: Every name that the model has for it.
        tensor: Its id in the engine.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        names: list[str],
        tensor: int,
        form: torch.Tensor,
        engine: _native.Engine,
        loans: Loans,
    ) -> None:
        """`form` has the weight's shape, strides and type, on the meta device."""
        self.parameter = parameter
        self.names = names
        self.tensor = tensor
        self.form = form
        self.size_bytes = form.nbytes
        self.engine = engine
        self._loans = loans
        self._poison = _poison(form)
        self._loan: torch.Tensor | None = None
        self._loan_version = 0
        self._pointed_at: torch.Tensor | None = None
        self._owned: torch.Tensor | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    def take_over(self, in_ram: torch.Tensor | None) -> None:
        """Parks a plain parameter; `in_ram` is its value where that is the weight's source already.

        Whoever holds the parameter's memory keeps an alias of the weight.
        """
        value = self.parameter.detach() if in_ram is None else in_ram
        self._owned = in_ram
        self.park()
        self._watch(value)

    def park(self) -> None:
        """Takes the bytes away from the parameter."""
        self.parameter.__class__ = nn.Parameter
        self.parameter.data = self._poison
        self.parameter.__class__ = ParkedParameter

    def lend(self, view: torch.Tensor) -> None:
        """Puts the parameter on `view` for the time of a lease."""
        self.free(view)
        self.parameter.__class__ = LentParameter

    def free(self, value: torch.Tensor) -> None:
        """Makes the parameter a plain one on `value`."""
        self.parameter.__class__ = nn.Parameter
        self.parameter.data = value

    def view_of(self, place: torch.Tensor) -> torch.Tensor:
        """The weight on a place: uint8 (size_bytes,) on the device, seen with its type, shape, strides."""
        return place.view(self.form.dtype).as_strided(self.form.shape, self.form.stride())

    def truth(self) -> torch.Tensor:
        """The weight's true value, shared with whoever holds it already."""
        self.settle()
        if self._loan is not None:
            return self._loan
        if self._owned is not None:
            return self._owned
        return self.read()

    def read(self) -> torch.Tensor:
        """A fresh copy of the weight's bytes, of its shape, strides and type."""
        with torch.inference_mode(False), torch.no_grad():
            value = torch.empty_strided(
                self.form.shape,
                self.form.stride(),
                dtype=self.form.dtype,
                device=self._poison.device,
            )
        self.engine.read_tensor(self.tensor, value.data_ptr(), self.size_bytes)
        return value

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of a 2-dimensional weight: indices (...) int, result (..., columns)."""
        self.end_pointing()
        flat = indices.to(torch.int64).contiguous()
        with torch.no_grad():
            columns = self.form.shape[1]
            out = torch.empty((*indices.shape, columns), dtype=self.form.dtype, device=indices.device)
        row_bytes = self.form[:1].nbytes
        try:
            self.engine.read_rows(
                self.tensor, flat.data_ptr(), flat.numel(), row_bytes, out.data_ptr()
            )
        except ConfigError as error:
            raise IndexError(f"index out of range in self: {error}") from error
        return out

    def after_use(self, value: torch.Tensor, version: int) -> None:
        """Takes note of what an operation did with `value`, which truth() gave at `version`."""
        if value._version != version:
            self.adopt(value)
        self._watch(value)

    def _watch(self, value: torch.Tensor) -> None:
        """Makes `value` a loan where somebody else holds its memory."""
        if storage_users(value.untyped_storage()) > _SOLE_USER:
            self._loan, self._loan_version = value, value._version
            self._loans.add(self)

    def point_at(self, value: torch.Tensor) -> None:
        """Keeps `value`, which truth() gave, for an address in it: nobody else may hold it."""
        self._pointed_at = value.detach()

    def end_pointing(self) -> None:
        """Settles the loan before the weight is used: addresses given out are void from now on."""
        self._pointed_at = None
        self.settle()

    def settle(self) -> None:
        """Makes what was written to a loan the weight's bytes, and ends a loan nobody holds."""
        loan = self._loan
        if loan is None:
            return
        if loan is self._owned or loan._version != self._loan_version:
            self.adopt(loan)  # owned memory is the source already: what was loaded of it is not
        elif not self.engine.holds(self.tensor, loan.data_ptr(), self.size_bytes):
            self.adopt(loan)  # written past torch, through NumPy or a pointer
        self._loan_version = loan._version
        if storage_users(loan.untyped_storage()) == _SOLE_USER:
            self._loan = None
            self._loans.discard(self)

    def settle_if_returned(self) -> None:
        """settle(), where nobody holds the loan any more."""
        if self._loan is not None and storage_users(self._loan.untyped_storage()) == _SOLE_USER:
            self.settle()

    def adopt(self, value: torch.Tensor) -> None:
        """Makes `value`, of the weight's type, shape and strides, its source from now on."""
        self.engine.replace_tensor(self.tensor, value.data_ptr(), self.size_bytes, value)
        self._owned = value

    def assign(self, value: torch.Tensor) -> None:
        """`parameter.data = value`.

        Raises:
            UnsupportedError: `value` is of another type, shape or device.
        """
        if value is self.parameter:
            return
        if isinstance(value, ParkedParameter):
            value = value.data
        loan = self._loan
        if loan is not None and value.data_ptr() == loan.data_ptr():
            return  # what was borrowed is put back: writes to it are seen by settle()
        self.check_form(value)
        form = self.form
        with torch.inference_mode(False), torch.no_grad():
            kept = value.detach()
            if kept.stride() != form.stride() or kept.is_inference():
                kept = torch.empty_strided(form.shape, form.stride(), dtype=form.dtype).copy_(kept)
        self._loan = None
        self._loans.discard(self)
        self.adopt(kept)
        self._watch(kept)

    def check_form(self, value: torch.Tensor) -> None:
        """Raises UnsupportedError where `value` cannot be the weight's."""
        form, device = self.form, self._poison.device
        if value.shape != form.shape or value.dtype != form.dtype or value.device != device:
            raise UnsupportedError(
                f"'{self.name}' is streamed as {tuple(form.shape)} {form.dtype} on {device}; it cannot "
                f"become {tuple(value.shape)} {value.dtype} on {value.device}. Call "
                "tensorstream.restore(model) first, or load the model that way"
            )


def weight_of(parameter: torch.Tensor) -> Weight:
    """The weight that a parked or lent parameter belongs to."""
    weight: Weight = parameter._tensorstream_weight  # type: ignore[attr-defined]
    return weight


def _poison(like: torch.Tensor) -> torch.Tensor:
    """One loud element, seen with the shape of `like`: NaN, or 0xFF in types that have none."""
    fill = 1 if like.dtype is torch.bool else 0xFF
    raw = torch.full((like.element_size(),), fill, dtype=torch.uint8)
    return raw.view(like.dtype).reshape(()).expand(like.shape)


class _Fetch(torch.autograd.Function):
    """The true value of a parked parameter, with the parameter's place in the graph."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class _Rows(torch.autograd.Function):
    """Rows of a parked embedding table, with the table's gradient."""

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor,
        padding_idx: int, scale: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.options = (weight_of(table).form.shape[0], padding_idx, scale)
        return rows.detach()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        count, padding_idx, scale = ctx.options
        grad = torch.ops.aten.embedding_dense_backward(
            grads[0], indices, count, padding_idx, scale
        )
        return grad, None, None, None, None


class LentParameter(nn.Parameter):
    """A parameter on the arena. Torch hides writes through `data` from the version; this shows them."""

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        weight_of(self).check_form(value)
        with torch.no_grad():
            self.copy_(value.clone())  # it may be a view of what it replaces

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        if id(self) not in memo:
            memo[id(self)] = nn.Parameter(self.detach().clone(), self.requires_grad)
        copied: nn.Parameter = memo[id(self)]
        return copied


class ParkedParameter(nn.Parameter):
    """A parameter whose bytes are with the engine. Every operation sees the true value."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name_of(func)
        if name in _ON_THE_OBJECT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name in _ON_THE_FORM:
            return func(weight_of(args[0]).form, *args[1:], **kwargs)
        if args and isinstance(args[0], ParkedParameter):
            _check_method(func, name, args[0])
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(*args, **kwargs)
        return _on_the_truth(func, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        if id(self) not in memo:
            memo[id(self)] = nn.Parameter(weight_of(self).truth().clone(), self.requires_grad)
        copied: nn.Parameter = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        with weight_of(self)._loans.lock:
            value = weight_of(self).truth()
            return nn.Parameter(value, self.requires_grad).__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(nn.Parameter(weight_of(self).truth(), self.requires_grad))


def _name_of(func: Callable[..., Any]) -> str:
    """A function's name; for the accessors of a property, the property's and the accessor's."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        return f"{func.__self__.__name__}.{name}"  # type: ignore[attr-defined]
    return name


_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
) | frozenset(("__setitem__",))


def _check_method(func: Callable[..., Any], name: str, parameter: ParkedParameter) -> None:
    """Raises where a method of `parameter` cannot be kept, or where torch would refuse it."""
    if getattr(torch.Tensor, name, None) is not func:
        return
    if name in _REFUSED:
        raise UnsupportedError(
            f"{name}() on the streamed weight '{weight_of(parameter).name}' cannot be kept; call "
            "tensorstream.restore(model) first"
        )
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    if in_place and parameter.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"a leaf Variable that requires grad is being used in an in-place operation: {name}()"
        )


# Answered by the object itself, whose shape, type, device and place in the graph are true.
_ON_THE_OBJECT = frozenset(
    f"{name}.__get__"
    for name in (
        "shape dtype device layout ndim requires_grad grad grad_fn is_leaf names is_cuda is_cpu is_meta "
        "is_sparse is_sparse_csr is_quantized is_nested is_mps is_xpu is_xla is_ipu is_mkldnn is_vulkan "
        "itemsize nbytes _version output_nr retains_grad volatile _backward_hooks "
        "_post_accumulate_grad_hooks grad_dtype"
    ).split()
) | frozenset(
    (
        "requires_grad.__set__ grad.__set__ grad.__delete__ _backward_hooks.__set__ "
        "_post_accumulate_grad_hooks.__set__ size dim ndimension numel nelement element_size "
        "requires_grad_ register_hook register_post_accumulate_grad_hook retain_grad get_device "
        "is_floating_point is_complex is_signed is_inference is_conj is_neg __hash__ __len__ "
        "is_same_size has_names grad backward"
    ).split()
)
# Answered by the weight's form: the object's own strides are those of the poison.
_ON_THE_FORM = frozenset("stride is_contiguous storage_offset dim_order".split())
_REFUSED = frozenset("set_ resize_ resize_as_ share_memory_".split())


def _on_the_truth(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Runs `func` on true values; what it writes is kept, what it hands out is tracked."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    parked = {id(leaf): leaf for leaf in leaves if isinstance(leaf, ParkedParameter)}
    first = weight_of(next(iter(parked.values())))
    with first._loans.lock:
        first._loans.sweep()
        used = {key: _use(leaf) for key, leaf in parked.items()}
        aliases = {key: use[2] for key, use in used.items()}
        args, kwargs = pytree.tree_unflatten(
            [aliases.get(id(leaf), leaf) for leaf in leaves], structure
        )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        returned = {id(alias): parked[key] for key, alias in aliases.items()}
        result = pytree.tree_map(lambda leaf: returned.get(id(leaf), leaf), result)
        uses = [(weight, value, version) for weight, value, _, version in used.values()]
        del leaves, args, kwargs, aliases, used
        for weight, value, version in uses:
            weight.after_use(value, version)
    return result


def _use(parameter: ParkedParameter) -> tuple[Weight, torch.Tensor, torch.Tensor, int]:
    """A weight, its true value, an alias of it for one operation, and the value's version."""
    weight = weight_of(parameter)
    value = weight.truth()
    version = value._version
    if torch.is_grad_enabled() and parameter.requires_grad:
        with torch._C.DisableTorchFunctionSubclass():
            return weight, value, _Fetch.apply(parameter, value), version
    return weight, value, value.detach(), version


def _get_data(parameter: ParkedParameter) -> torch.Tensor:
    """`parameter.data`: an alias of the true value that shares its version, so that writes show."""
    return _on_the_truth(torch.Tensor.detach, (parameter,), {})  # type: ignore[no-any-return]


def _set_data(parameter: torch.Tensor, value: torch.Tensor) -> None:
    if not isinstance(parameter, ParkedParameter):  # a plain tensor is given a parked one's value
        parameter.data = value.data
        return
    with weight_of(parameter)._loans.lock:
        weight_of(parameter).assign(value)


def _embedding(
    indices: torch.Tensor,
    table: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    """F.embedding on a parked table: its rows are read, not the table."""
    plain = isinstance(table, ParkedParameter) and not isinstance(indices, ParkedParameter)
    integral = plain and indices.dtype in (torch.int32, torch.int64)
    if not integral or max_norm is not None or sparse or not weight_of(table).form.is_contiguous():
        return _on_the_truth(  # type: ignore[no-any-return]
            F.embedding,
            (indices, table, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse),
            {},
        )
    with weight_of(table)._loans.lock:
        rows = weight_of(table).rows(indices)
    if torch.is_grad_enabled() and table.requires_grad:
        pad = -1 if padding_idx is None else padding_idx % weight_of(table).form.shape[0]
        with torch._C.DisableTorchFunctionSubclass():
            return _Rows.apply(table, rows, indices, pad, scale_grad_by_freq)  # type: ignore[no-any-return]
    return rows


def _addressed(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func`, which gives an address of a weight's bytes; the bytes stay there until its next use."""

    def call(parameter: ParkedParameter) -> Any:
        weight = weight_of(parameter)
        with weight._loans.lock, torch.no_grad():
            weight._loans.sweep()
            value = weight.truth()
            weight.point_at(value)
            weight.after_use(value, value._version)
        return func(value)

    return call


def _can_take(parameter: torch.Tensor, value: torch.Tensor) -> bool:
    """Asked by Module.to() and its like before they put `value` in the place of a parameter."""
    if isinstance(parameter, ParkedParameter):
        weight_of(parameter).check_form(value)
    with torch._C.DisableTorchFunctionSubclass():
        return torch._has_compatible_shallow_copy_type(parameter, value)


_HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.Tensor.data.__get__: _get_data,  # type: ignore[attr-defined]
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch._has_compatible_shallow_copy_type: _can_take,
    F.embedding: _embedding,
    torch.Tensor.data_ptr: _addressed(torch.Tensor.data_ptr),
    torch.Tensor.untyped_storage: _addressed(torch.Tensor.untyped_storage),
}
