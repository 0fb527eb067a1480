"""Weights that are made of other tensors, as quantisation libraries make them, and models of these."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing

WIDTH = 256
X = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
_aten = torch.ops.aten
_EACH = (_aten.detach.default, _aten.clone.default, _aten.alias.default, _aten._to_copy.default)


class Coded(torch.Tensor):
    """Stands for a matrix; every operation that it does not know gets that.

    Its inner tensors are attributes, which `inner_names` names.
    """

    inner_names: ClassVar[list[str]]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, *inner: torch.Tensor) -> Any:
        first = inner[0]
        return torch.Tensor._make_wrapper_subclass(
            cls, cls.shape_of(first), dtype=torch.float32, device=first.device
        )

    def __init__(self, *inner: torch.Tensor) -> None:
        for name, tensor in zip(self.inner_names, inner, strict=True):
            setattr(self, name, tensor)

    @staticmethod
    def shape_of(first: torch.Tensor) -> torch.Size:
        return first.shape

    def decoded(self) -> torch.Tensor:
        raise NotImplementedError

    def __tensor_flatten__(self) -> Any:
        return list(self.inner_names), None

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, *_: Any) -> Any:
        return cls(*(inner[name] for name in cls.inner_names))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, first = kwargs or {}, args[0]
        names = first.inner_names if isinstance(first, Coded) else []
        if func in _EACH:
            kwargs.pop("dtype", None)
            made = type(first)(*(func(getattr(first, name), **kwargs) for name in names))
            return return_and_correct_aliasing(func, args, kwargs, made)
        if func is _aten.copy_.default and isinstance(args[1], Coded):
            for name in names:
                getattr(first, name).copy_(getattr(args[1], name))
            return first
        if func is _aten.zero_.default:  # as libraries do that know of no others who hold it
            for name in names:
                setattr(first, name, torch.zeros_like(getattr(first, name)))
            return first
        if func is _aten.t.default:
            return Turned(first)
        args, kwargs = pytree.tree_map_only(Coded, lambda one: one.decoded(), (args, kwargs))
        return func(*args, **kwargs)


class Rows(Coded):
    """Whole numbers, and a scale for each row."""

    inner_names: ClassVar[list[str]] = ["codes", "scale"]
    codes: torch.Tensor
    scale: torch.Tensor

    def decoded(self) -> torch.Tensor:
        return self.codes.to(self.scale.dtype) * self.scale

    @property
    def largest(self) -> float:
        return float(self.scale.max())

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """A new one, as libraries make it."""
        scale = self.scale.to(*args, **kwargs)
        return Rows(self.codes.to(scale.device), scale)


class Shifted(Coded):
    """One of the others, and what is added to each of its rows."""

    inner_names: ClassVar[list[str]] = ["rows", "shift"]
    rows: Rows
    shift: torch.Tensor

    def decoded(self) -> torch.Tensor:
        return self.rows.decoded() + self.shift


class Turned(Coded):
    """Another, transposed: a graph of a linear layer saves it."""

    inner_names: ClassVar[list[str]] = ["of"]
    of: Coded

    @staticmethod
    def shape_of(first: torch.Tensor) -> torch.Size:
        return first.shape[::-1]

    def decoded(self) -> torch.Tensor:
        return self.of.decoded().t()


def coded(matrix: torch.Tensor, kind: type[Coded]) -> Any:
    """What stands for `matrix`, or nearly."""
    scale = matrix.abs().amax(1, keepdim=True) / 127
    rows = Rows((matrix / scale).round().to(torch.int8), scale)
    return rows if kind is Rows else Shifted(rows, torch.full((len(matrix), 1), 0.01))


def parameter(matrix: torch.Tensor, kind: type[Coded]) -> nn.Parameter:
    return nn.Parameter(coded(matrix, kind), requires_grad=False)


def make(kind: type[Coded], blocks: int = 6) -> Any:
    """Blocks of a linear layer, whose weight is of `kind`, and a ReLU; seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(blocks))
        )
    for block in model:
        linear: Any = block[0]
        linear.weight = parameter(linear.weight.detach(), kind)
        linear.bias.requires_grad_(False)
    return model.eval()


def write_in_forwards(module: nn.Module, value: Any) -> None:
    """Has each forward of a layer end with a write to its weight."""

    def write(module: Any, *_: Any) -> None:
        with torch.no_grad():
            module.weight.copy_(value)

    module.register_forward_hook(write)


def rows_of(weight: Any) -> Any:
    """The one of `Rows` in a weight, or the weight."""
    return weight.rows if isinstance(weight, Shifted) else weight


class PackedLinear(nn.Module):
    """A linear layer with eight 4-bit codes in each number of a buffer, as those of GPTQ have them."""

    def __init__(self, matrix: torch.Tensor, group: int = 32) -> None:
        super().__init__()
        columns = matrix.t().reshape(-1, group, len(matrix))
        scales = columns.abs().amax(1, keepdim=True) / 7
        codes = ((columns / scales).round() + 8).to(torch.int32).reshape(-1, 8, len(matrix))
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        self.register_buffer("qweight", (codes << shifts[None, :, None]).sum(1, dtype=torch.int32))
        self.register_buffer("scales", scales[:, 0])
        self.register_buffer("g_idx", torch.arange(matrix.shape[1], dtype=torch.int32) // group)
        self.register_buffer("shifts", shifts, persistent=False)
        self.bias = nn.Parameter(torch.linspace(-1, 1, len(matrix)), requires_grad=False)

    def matrix(self) -> torch.Tensor:
        codes = (self.qweight[:, None] >> self.shifts[None, :, None]) & 15  # type: ignore[operator,index]
        flat = codes.reshape(-1, codes.shape[-1]).to(self.scales.dtype) - 8
        return flat * self.scales[self.g_idx.long()]  # type: ignore[index,operator,no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix() + self.bias


def make_packed(blocks: int = 6, width: int = 512) -> Any:
    """Blocks of such a layer and a ReLU; seeded."""
    seeded = torch.Generator(device="cpu").manual_seed(4)
    matrices = torch.randn(blocks, width, width, device="cpu", generator=seeded) / 16
    matrices = matrices.to(torch.empty(0).device)
    return nn.Sequential(*(nn.Sequential(PackedLinear(each), nn.ReLU()) for each in matrices))
