"""Weights between uses: parameters that keep their identity and tell the truth.

A streamed parameter is *parked* while nobody leases its group. The Parameter object stays; its class
is `ParkedParameter`, whose `__torch_function__` runs every operation on the weight's true value and
keeps what was written. Its bare storage is one poisoned element, so that a read which slips past
gives NaN, not a stale number. While the group is leased the object is a `LentParameter`: a plain
one on the arena, but that writes through its `data` show in its version, by which they are kept.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge, increment_version
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils import _pytree as pytree

from tensorstream.exceptions import UnsupportedError
from tensorstream.forms import given_to_set
from tensorstream.graph_nodes import Rows, in_graph_of
from tensorstream.hidden import once_more
from tensorstream.plain_objects import plain_copy
from tensorstream.rows import rows_of
from tensorstream.tracing import (
    as_plain,
    in_transform,
    refuse_capture,
    refuse_tracing,
    uncompiled,
    without_modes,
)
from tensorstream.writes import is_in_place, written_by

if TYPE_CHECKING:
    from tensorstream.loans import Loans
    from tensorstream.weight import Weight


def weight_of(parameter: torch.Tensor) -> Weight:
    """The weight that a parked or lent parameter belongs to."""
    weight: Weight = parameter._tensorstream_weight  # type: ignore[attr-defined]
    return weight


@contextlib.contextmanager
def _parked(parameter: torch.Tensor) -> Iterator[Weight | None]:
    """Its weight, which stays parked meanwhile; None where another thread has just made it plain or lent."""
    weight: Weight | None = parameter.__dict__.get("_tensorstream_weight")
    if weight is None:
        yield None
        return
    with weight._loans.lock:
        yield weight if isinstance(parameter, ParkedParameter) else None


def _on_value(parameter: torch.Tensor, call: Callable[[torch.Tensor], Any]) -> Any:
    """What `call` gives for a plain object with its true value, which nobody moves meanwhile."""
    with _parked(parameter) as weight:
        value = parameter.detach() if weight is None else weight.truth()
        return call(plain_copy(parameter, value))


def _refuse_making(cls: type, *_: Any, **__: Any) -> Any:
    """Raises UnsupportedError: only parameters of an offloaded model become of these classes."""
    raise UnsupportedError(
        "something makes a parameter by the class of a streamed weight, as accelerate's cpu_offload() and "
        "dispatch_model() do to place weights elsewhere; call tensorstream.restore(model) first"
    )


class LentParameter(nn.Parameter):
    """A parameter on the arena. Torch hides writes through `data` from the version; this shows them."""

    __new__ = _refuse_making

    @property
    def data(self) -> torch.Tensor:
        """The weight without its history; writes to it are seen."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        weight_of(self).lent().exchange(weight_of(self), value)

    def detach(self) -> torch.Tensor:
        """The weight without its history. After an interrupted forward that is no part of the arena."""
        _refuse_new_parameter(self)
        weight_of(self)._loans.end_abandoned()
        return (torch.Tensor.detach if type(self) is LentParameter else ParkedParameter.detach)(
            self
        )

    def set_(self, *source: Any, **kwargs: Any) -> torch.Tensor:
        """Takes the value, as `data` does: torch's own exchanges the memory, unseen."""
        self.data = given_to_set(self, source, kwargs)
        if not self.is_inference():  # guard: set-after-saved
            increment_version(self)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            memo[id(self)] = plain_copy(self, self.detach().clone())
        copied: torch.Tensor = memo[id(self)]
        return copied

    def __copy__(self) -> torch.Tensor:
        return plain_copy(self, self.detach())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain_copy(self, self.detach().clone()).__reduce_ex__(protocol)


class ParkedParameter(nn.Parameter):
    """A parameter whose bytes are with the engine. Every operation sees the true value."""

    is_parked = True
    __new__ = _refuse_making

    @classmethod
    @uncompiled
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if func is torch.autograd.grad:  # guard: recomputed-truth
            return grad(*args, **kwargs)
        if name in ON_THE_OBJECT:
            return as_plain(func, *args, **kwargs)
        if name in _ON_THE_FORM:
            return func(weight_of(args[0]).form, *args[1:], **kwargs)
        if args and isinstance(args[0], ParkedParameter):
            _check_method(func, name, args[0])
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(*args, **kwargs)
        return _on_the_truth(func, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            memo[id(self)] = plain_copy(self, weight_of(self).truth().clone())
        copied: torch.Tensor = memo[id(self)]
        return copied

    def __copy__(self) -> torch.Tensor:
        """Another parameter of the same memory: what is written to it is the weight's."""
        return plain_copy(self, self.detach())  # guard: copied-alias

    def set_(self, *source: Any, **kwargs: Any) -> torch.Tensor:
        """Takes the value, as `data` does: torch's own asks no subclass, and exchanges the poison."""
        _check_method(torch.Tensor.set_, "set_", self)
        self.data = given_to_set(self, source, kwargs)
        return self

    def as_subclass(self, cls: Any) -> Any:
        """The weight's true value, as one of another class: torch's own asks no `__torch_function__`."""
        return torch.ops.aten.alias.default(self).as_subclass(cls)

    def detach(self) -> torch.Tensor:
        """The true value, without its history."""
        _refuse_new_parameter(self)
        return super().detach()

    def __reduce_ex__(self, protocol: Any) -> Any:
        with _parked(self) as weight:
            if weight is not None:
                value = weight.truth()
                return plain_copy(self, value).__reduce_ex__(protocol)
        return self.__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return _on_value(self, repr)

    def __format__(self, format_spec: str) -> str:
        return str(_on_value(self, lambda plain: format(plain, format_spec)))


def _refuse_new_parameter(parameter: torch.Tensor) -> None:
    """Raises UnsupportedError where nn.Parameter() asks, which takes no value of another class."""
    if torch.compiler.is_compiling():
        return
    caller = sys._getframe(1).f_back  # none where C calls detach()
    if caller is not None and caller.f_code is nn.Parameter.__new__.__code__:
        raise UnsupportedError(
            f"nn.Parameter() of the streamed weight '{weight_of(parameter).name}', as weight_norm() and "
            "Embedding.from_pretrained() call it: give its value (weight.data, or a clone), or call "
            "tensorstream.restore(model) first"
        )


def _to_other_process(parameter: ParkedParameter) -> Any:
    """How torch.multiprocessing sends one: as a copy, whose memory it moves to where both see it."""
    value = _on_value(parameter, lambda plain: plain_copy(parameter, plain.detach().clone()))
    spawning = get_spawning_popen()
    if spawning is not None:  # the file behind the copy is to be open until the process has begun
        spawning.__dict__.setdefault("_tensorstream_sent", []).append(value)
    return reduce_tensor(value)


ForkingPickler.register(ParkedParameter, _to_other_process)


def name_of(func: Callable[..., Any]) -> str:
    """A function's name; for the accessors of a property, the property's and the accessor's."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        return f"{func.__self__.__name__}.{name}"  # type: ignore[attr-defined]
    return name


def refuse(name: str, method: str) -> NoReturn:
    """Raises UnsupportedError: what the method makes of the streamed weight of that name cannot be kept."""
    raise UnsupportedError(
        f"{method}() on the streamed weight '{name}' cannot be kept; call tensorstream.restore(model) first"
    )


def _check_method(func: Callable[..., Any], name: str, parameter: ParkedParameter) -> None:
    """Raises where what `func` does to `parameter` cannot be kept, or where torch would refuse it."""
    if name in REFUSED:
        refuse(weight_of(parameter).name, name)
    check_in_place(func, name, parameter)


def check_in_place(func: Callable[..., Any], name: str, parameter: torch.Tensor) -> None:
    """Raises RuntimeError where torch would refuse to have `func` write to `parameter`."""
    if getattr(torch.Tensor, name, None) is not func:
        return
    if is_in_place(name) and parameter.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"a leaf Variable that requires grad is being used in an in-place operation: {name}()"
        )


# Answered by the object itself, whose shape, type, device and place in the graph are true.
ON_THE_OBJECT = frozenset(
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
        "requires_grad_ detach_ register_hook register_post_accumulate_grad_hook retain_grad get_device "
        "is_floating_point is_complex is_signed is_inference is_conj is_neg __hash__ __len__ "
        "is_same_size has_names grad"
    ).split()
)
# Answered by the weight's form: the object's own strides are those of the poison.
_ON_THE_FORM = frozenset("stride is_contiguous storage_offset dim_order".split())
REFUSED = frozenset(
    "resize_ resize_as_ share_memory_ t_ transpose_ swapaxes_ swapdims_ as_strided_ squeeze_ unsqueeze_ "
    "rename_".split()
)


def _on_the_truth(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Runs `func` on true values; what it writes is kept, what it hands out is tracked."""
    refuse_tracing()
    refuse_capture()
    leaves, structure = pytree.tree_flatten((args, kwargs))
    parked = [leaf for leaf in leaves if isinstance(leaf, ParkedParameter)]
    if not parked:  # another thread's forward has lent it meanwhile, or it is hidden
        return once_more(func, args, kwargs, leaves)
    for first in parked:
        with _parked(first) as weight:
            if weight is not None:
                return on_values(func, leaves, structure, weight._loans)
    return func(*args, **kwargs)


def on_values(
    func: Callable[..., Any], leaves: list[Any], structure: pytree.TreeSpec, loans: Loans
) -> Any:
    """Runs `func`, an operation, on true values in the place of parked parameters."""
    parked = {id(leaf): leaf for leaf in leaves if isinstance(leaf, ParkedParameter)}
    name = name_of(func)
    written = written_by(func, name, *pytree.tree_unflatten(leaves, structure))
    loans.sweep()
    uses: list[tuple[Weight, torch.Tensor, int]] = []
    try:
        return _with_values(func, leaves, structure, parked, uses)
    finally:  # what it wrote before it raised is written
        with contextlib.ExitStack() as ended:  # all of them, also where one cannot be kept
            for weight, value, version in uses:
                may_be_written = id(weight.parameter) in written
                if name.startswith("_fused_") and may_be_written:  # a step of an optimizer
                    ended.callback(weight.after_use, value, -1)
                else:
                    ended.callback(_end_use, weight, value, version, may_be_written)


def _end_use(weight: Weight, value: torch.Tensor, version: int, may_be_written: bool) -> None:
    is_silent = may_be_written and value._version == version
    if is_silent and value is weight.owned:  # guard: written-where-it-lies
        weight.after_use(value, version)
        weight.adopt(value, counts=False)
        return
    is_written = is_silent  # also where its source cannot be read
    try:
        if is_silent:
            is_written = not weight.holds(value)
    finally:
        if is_written:  # guard: written-without-a-version
            version = -1
        weight.after_use(value, version)


def _with_values(
    func: Callable[..., Any],
    leaves: list[Any],
    structure: pytree.TreeSpec,
    parked: dict[int, ParkedParameter],
    uses: list[tuple[Weight, torch.Tensor, int]],
) -> Any:
    aliases: dict[int, torch.Tensor] = {}
    for key, parameter in parked.items():
        weight, value, aliases[key], version = use(parameter)
        uses.append((weight, value, version))
    args, kwargs = pytree.tree_unflatten(
        [aliases.get(id(leaf), leaf) for leaf in leaves], structure
    )
    result = func(*args, **kwargs)
    returned = {id(alias): parked[key] for key, alias in aliases.items()}
    return pytree.tree_map(lambda leaf: returned.get(id(leaf), leaf), result)


def use(parameter: ParkedParameter) -> tuple[Weight, torch.Tensor, torch.Tensor, int]:
    """A weight, its true value, an alias of it for one operation, and the value's version."""
    weight = weight_of(parameter)
    value = weight.begin_use()
    version = value._version
    try:
        if torch.is_grad_enabled() and parameter.requires_grad:
            return weight, value, in_graph_of(parameter, value), version
        with without_modes():
            return weight, value, value.detach(), version
    except BaseException:
        weight.after_use(value, version)
        raise


def _get_data(parameter: ParkedParameter) -> torch.Tensor:
    """`parameter.data`: an alias of the true value that shares its version, so that writes show."""
    return _on_the_truth(torch.Tensor.detach, (parameter,), {})  # type: ignore[no-any-return]


def _set_data(parameter: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(parameter, ParkedParameter):
        with _parked(parameter) as weight:
            if weight is not None:
                weight.assign(value)
                return
    parameter.data = value.data  # a plain tensor may be given a parked one's value


def _embedding(  # noqa: PLR0917 - the arguments are those of F.embedding
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
    plain = plain and not in_transform()
    integral = plain and indices.dtype in (torch.int32, torch.int64)
    rows = None
    if integral and max_norm is None and not sparse:
        with _parked(table) as weight:
            if weight is not None and weight.is_home:  # the device reads the rows that it looks up
                weight.end_pointing()
            elif weight is not None and weight.form.is_contiguous():
                rows = rows_of(weight, indices)
    if rows is None:
        return _on_the_truth(  # type: ignore[no-any-return]
            F.embedding,
            (indices, table, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse),
            {},
        )
    if torch.is_grad_enabled() and table.requires_grad:
        pad = -1 if padding_idx is None else padding_idx % table.shape[0]
        return Rows.apply(table, rows, indices, (pad, scale_grad_by_freq))  # type: ignore[no-any-return,no-untyped-call]
    return rows


def grad(outputs: Any, inputs: Any, *, materialize_grads: bool = False, **options: Any) -> Any:
    """torch.autograd.grad. What it recomputes sees true values, as all does that runs in it.

    Called without torch functions of subclasses, all of it would run without them. So it gets parked inputs
    as their places in the graph, which have no such function.
    """
    if any(getattr(each, "is_parked", False) for each in outputs) or not all(
        each.requires_grad for each in inputs if getattr(each, "is_parked", False)
    ):  # a weight as what is differentiated, or what torch refuses
        options["materialize_grads"] = materialize_grads
        with torch._C.DisableTorchFunctionSubclass():
            return torch.autograd.grad(outputs, inputs, **options)
    with torch._C.DisableTorchFunctionSubclass():
        edges = [
            get_gradient_edge(each) if getattr(each, "is_parked", False) else each
            for each in inputs
        ]
    gradients = torch.autograd.grad(outputs, edges, **options)
    if not materialize_grads:
        return gradients
    create_graph = options.get("create_graph", False)
    return tuple(
        torch.zeros_like(each, requires_grad=create_graph) if gradient is None else gradient
        for gradient, each in zip(gradients, inputs, strict=True)
    )


def _backward(
    parameter: torch.Tensor,
    gradient: torch.Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Tensor.backward, whose own code would run with functions of subclasses turned off, and all hooks."""
    torch.autograd.backward(parameter, gradient, retain_graph, create_graph, inputs=inputs)


def _addressed(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func`, which gives an address of a weight's bytes; the bytes stay there until its next use."""

    def call(parameter: ParkedParameter) -> Any:
        with _parked(parameter) as weight, torch.no_grad():
            if weight is not None:
                weight._loans.sweep()
                value = weight.begin_use()
                weight.point_at(value)
                try:
                    return func(value)
                finally:
                    weight.after_use(value, value._version)
        return func(parameter)

    return call


def _seen_as(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func`, which gives a view of another tensor's shape.

    Who asks for one of the weight's own shape looks for the end of the graph, one step behind the view.
    """

    def call(parameter: torch.Tensor, other: torch.Tensor) -> Any:
        if not isinstance(parameter, ParkedParameter) or parameter.shape != other.shape:
            return _on_the_truth(func, (parameter, other), {})
        refuse_tracing()
        refuse_capture()
        with _parked(parameter) as weight:
            if weight is not None:
                weight._loans.sweep()
                _, value, alias, version = use(parameter)
                weight.after_use(value, version)
                return alias
        return func(parameter, other)

    return call


def _can_take(parameter: torch.Tensor, value: torch.Tensor) -> bool:
    """Asked by Module.to() and its like before they put `value` in the place of a parameter."""
    if isinstance(parameter, ParkedParameter):
        weight_of(parameter).check_form(value)
    return as_plain(torch._has_compatible_shallow_copy_type, parameter, value)  # type: ignore[no-any-return]


_HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.Tensor.data.__get__: _get_data,  # type: ignore[attr-defined]
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.Tensor.backward: _backward,
    torch._has_compatible_shallow_copy_type: _can_take,
    F.embedding: _embedding,
    torch.Tensor.expand_as: _seen_as(torch.Tensor.expand_as),
    torch.Tensor.view_as: _seen_as(torch.Tensor.view_as),
    torch.Tensor.data_ptr: _addressed(torch.Tensor.data_ptr),
    torch.Tensor.untyped_storage: _addressed(torch.Tensor.untyped_storage),
    torch.Tensor.storage: _addressed(torch.Tensor.storage),
}
