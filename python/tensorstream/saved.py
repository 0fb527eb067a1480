"""What autograd saves while weights are lent: which weight, not its bytes in the arena.

The arena's bytes are replaced long before backward. While a group is leased, a pair of hooks of
autograd packs a tensor that lies in the arena as the weight and the view of it, and unpacks it from
the weight's source. So graphs hold no memory of the arena, backward gets true values, and whoever
else holds a view of the arena after the forward can be told from a graph.

Autograd uses the innermost pair alone. Whatever else a graph saves is therefore handed to the pair
that the user has around the module: torch.utils.checkpoint's, or one that moves activations away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch.utils import _pytree as pytree

from tensorstream import _native
from tensorstream.backward import in_backward
from tensorstream.compute_device import is_made_of_parts
from tensorstream.flattened import flattened
from tensorstream.generations import given_at
from tensorstream.lent import APART
from tensorstream.proxy import LentParameter, weight_of
from tensorstream.torch_pool import TorchPool
from tensorstream.tracing import address_of, uncompiled
from tensorstream.weight import Weight

_autograd: Any = torch._C._autograd


@dataclasses.dataclass(frozen=True)
class _SavedWeight:
    """A view of a weight, and the weight's generation and version when it was saved.

    Without a form it is the parameter itself, which a graph finds as it is by then.
    """

    weight: Weight
    generation: int
    version: int
    form: torch.Tensor | None

    def read(self) -> torch.Tensor:
        same = self.weight.is_as_saved(self.generation, self.version)
        if self.form is None:  # torch, too, finds what the parameter was given
            same = same or self.weight.is_as_saved(self.generation, given_at(self.version))
        if not same:  # guard: graph-generation
            raise RuntimeError(
                f"the streamed weight '{self.weight.name}' was written to, or streamed anew, after the "
                "forward that saved it for gradient computation"
            )
        value = self.weight.read_as_loaded()
        if self.form is None:
            return value
        view = torch.empty(0, dtype=self.form.dtype, device=value.device)
        offset = int(value.storage_offset()) + int(self.form.storage_offset())
        view.set_(value.untyped_storage(), offset, self.form.shape, self.form.stride())
        return _seen_as(view, conj=self.form.is_conj(), neg=self.form.is_neg())


@dataclasses.dataclass(frozen=True)
class _SavedTensor:
    """Any other tensor, and its version when it was saved."""

    tensor: torch.Tensor
    version: int

    def read(self) -> torch.Tensor:
        if not self.tensor.is_inference() and self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace "
                f"operation: {tuple(self.tensor.shape)} {self.tensor.dtype} is at version "
                f"{self.tensor._version}; expected version {self.version} instead"
            )
        return self.tensor


@dataclasses.dataclass(frozen=True)
class _SavedByOthers:
    """What the pair of hooks below ours packed."""

    packed: Any
    unpack: Callable[[Any], torch.Tensor]

    def read(self) -> torch.Tensor:
        return self.unpack(self.packed)


@dataclasses.dataclass(frozen=True)
class _SavedWrapper:
    """A tensor of a class of its own, made of others with weights among them."""

    inner: list[_Saved]
    make: Callable[[Iterator[torch.Tensor]], Any]

    def read(self) -> torch.Tensor:
        made: torch.Tensor = self.make(saved.read() for saved in self.inner)
        return made


_Saved = _SavedWeight | _SavedTensor | _SavedByOthers | _SavedWrapper


class _Deferred(torch.Tensor):
    """Stands for a view of a weight, and is read where it is used.

    torch.utils.checkpoint counts what is saved, and keeps what the recomputation saves. A weight that had no
    place in the forward may have one then.
    """

    @staticmethod
    def __new__(cls, saved: _SavedWeight) -> _Deferred:
        form = saved.weight.form if saved.form is None else saved.form
        made: _Deferred = torch.Tensor._make_wrapper_subclass(
            cls, form.shape, form.stride(), dtype=form.dtype, device=saved.weight.poison.device
        )
        return made

    def __init__(self, saved: _SavedWeight) -> None:
        self._saved = saved

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0]._saved)
        args, kwargs = pytree.tree_map_only(
            cls, lambda deferred: deferred._saved.read(), (args, kwargs or {})
        )
        return func(*args, **kwargs)


class SavedHooks:
    """The pair of hooks of one model.

    Attributes:
        stack: The weights that are lent now, by the address of their places: others may share the places
            later. The hooks are pushed and popped with leases, innermost last.
        pool: What torch allocates for a backward comes from here, where there is one.
    """

    def __init__(self) -> None:
        self.pool: TorchPool | None = None
        self.stack = _native.SavedStack(
            uncompiled(self.pack),
            uncompiled(self.unpack),
            takes=_autograd._saved_tensors_hooks_is_enabled,
            push=_autograd._push_saved_tensors_default_hooks,
            pop=_autograd._pop_saved_tensors_default_hooks,
            top=_autograd._top_saved_tensors_default_hooks,
        )

    def _weight_at(self, tensor: torch.Tensor) -> tuple[Weight | None, int]:
        """The weight that `tensor` is a view of, and the element of it at which that begins."""
        address = address_of(tensor)
        for lent in reversed(self.stack.lent):
            if address in lent:
                return lent[address], int(tensor.storage_offset())
            for start, end, weight in lent.get(APART, ()):
                if address is None or tensor.data_ptr() < start:
                    continue
                if tensor.data_ptr() + _span_bytes(tensor) > end:  # guard: beside-a-weight
                    continue
                first, rest = divmod(tensor.data_ptr() - start, tensor.element_size())
                if rest:  # guard: between-elements
                    continue
                return weight, first
        return None, 0

    def pack(self, tensor: torch.Tensor) -> _Saved:
        """What a graph keeps for `tensor`."""
        if is_made_of_parts(tensor):  # guard: saved-wrapper
            leaves, make = flattened(tensor)
            if any(self._weight_at(leaf)[0] is not None for leaf in leaves):
                return _SavedWrapper([self.pack(leaf) for leaf in leaves], make)
        outer: Any = self.stack.outer
        weight, first = self._weight_at(tensor)
        # A graph finds in a parameter what it was given last; other hooks are handed what it has.
        is_parameter = type(tensor) is LentParameter and (outer is None or weight is not None)
        if is_parameter:
            weight = weight_of(tensor)
        version = 0 if tensor.is_inference() else tensor._version
        if weight is not None:
            form = None if is_parameter else _form_of(tensor, weight, first)
            saved = _SavedWeight(weight, weight.generations.number, version, form)
            if outer is not None and _counts(outer[0]):  # guard: counted-by-checkpoint
                outer[0](_Deferred(saved))
            return saved
        if outer is not None:
            return _SavedByOthers(outer[0](tensor), outer[1])
        return _SavedTensor(tensor.detach(), version)

    def unpack(self, saved: _Saved) -> torch.Tensor:
        """The tensor that pack() was given, or its equal."""
        pool = self.pool
        reads = isinstance(saved, _SavedWeight | _SavedWrapper)
        if pool is None or not reads or not in_backward():
            return saved.read()
        pool.enter_backward()  # of gradients of gradients, which reach no output of a forward
        try:
            return saved.read()
        except torch.OutOfMemoryError as raised:
            raise pool.explained(raised) or raised from None


def _counts(pack: Callable[[torch.Tensor], Any]) -> bool:
    """Whether it numbers what is saved, and looks it up by its number."""
    return getattr(pack, "__module__", None) == torch.utils.checkpoint.__name__


def _span_bytes(tensor: torch.Tensor) -> int:
    """From its first element in memory to its last, that one included."""
    if tensor.numel() == 0:
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _form_of(tensor: torch.Tensor, weight: Weight, first: int) -> torch.Tensor:
    """Its shape, strides and type as a view of the weight that begins at the element `first` of it."""
    form = torch.empty(0, dtype=tensor.dtype, device="meta").set_(
        torch.UntypedStorage(weight.size_bytes, device="meta"),
        first,
        tensor.shape,
        tensor.stride(),
    )
    return _seen_as(form, conj=tensor.is_conj(), neg=tensor.is_neg())


def _seen_as(view: torch.Tensor, *, conj: bool, neg: bool) -> torch.Tensor:
    """A view that torch is to conjugate or negate as it reads it, where another is."""
    if conj:  # guard: saved-conjugate
        view = torch._conj(view)
    if neg:  # guard: saved-negative
        view = torch._neg_view(view)
    return view
