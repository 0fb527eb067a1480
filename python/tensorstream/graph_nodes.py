"""Where weights whose bytes are with the engine are in autograd's graphs."""

from __future__ import annotations

from typing import Any

import torch

from tensorstream.tracing import as_plain, in_transform


class _Fetch(torch.autograd.Function):
    """The true value of a parked parameter, with the parameter's place in the graph."""

    generate_vmap_rule = True

    @staticmethod
    def forward(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # where there is no gradient, the weight gets none

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor | None:
        return tangents[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        return grads[0], None


def in_graph_of(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """An alias of `value` whose gradient is the parameter's."""
    apply = _Fetch.apply
    if in_transform():  # its operator would ask the parameter for its function
        return as_plain(apply, parameter, value)  # type: ignore[no-any-return]
    return apply(parameter, value)  # type: ignore[no-any-return,no-untyped-call]


class Rows(torch.autograd.Function):
    """Rows of a parked embedding table, with the table's gradient."""

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor, options: Any
    ) -> torch.Tensor:
        """`options` are the padding index and whether gradients are scaled by frequency."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(indices)
        ctx.options = (table.shape[0], *options)
        return rows.detach()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """The table's, which is dense."""
        if grads[0] is None:
            return None, None, None, None
        (indices,) = ctx.saved_tensors
        grad = torch.ops.aten.embedding_dense_backward(grads[0], indices, *ctx.options)
        return grad, None, None, None
