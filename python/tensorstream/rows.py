"""Rows of a streamed weight, read one by one from its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tensorstream.exceptions import ConfigError

if TYPE_CHECKING:
    from tensorstream.weight import Weight


def rows_of(weight: Weight, indices: torch.Tensor) -> torch.Tensor:
    """Rows of a 2-dimensional weight: indices (...) int, result (..., columns).

    Raises:
        IndexError: There is no such row.
    """
    weight.end_pointing()
    flat = indices.to("cpu", torch.int64).contiguous()
    form = weight.form
    with torch.no_grad():
        out = torch.empty((*indices.shape, form.shape[1]), dtype=form.dtype, device="cpu")
    row_bytes = form[:1].nbytes
    try:
        weight.engine.read_rows(
            weight.tensor, flat.data_ptr(), flat.numel(), row_bytes, out.data_ptr()
        )
    except ConfigError as error:
        raise IndexError(f"index out of range in self: {error}") from error
    return out.to(indices.device)
