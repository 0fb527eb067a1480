"""A checkpoint of DFloat11's, of a Llama's weights, laid out as its own compress_model() does it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from cuda_runs.dfloat11_code import BYTES_PER_THREAD, THREADS, Package, Packed, pack

# Of each module that is coded as one: the linears in it, in the order of their weights; none where it
# has the weight itself. Norms stay as they are.
PATTERNS: dict[str, list[str]] = {
    r"lm_head": [],
    r"model\.embed_tokens": [],
    r"model\.layers\.\d+": [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ],
}
_VERSION = "0.5.0"  # of the package whose layout this is


def has_dfloat11() -> bool:
    """Whether the package can be imported, with what its front needs."""
    return all(importlib.util.find_spec(name) is not None for name in ("dfloat11", "cupy"))


def coded_modules(model: nn.Module) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """The modules that are coded as one, each with its weights."""
    for name, module in model.named_modules():
        for pattern, linears in PATTERNS.items():
            if re.fullmatch(pattern, name):
                owners = [module.get_submodule(path) for path in linears] or [module]
                yield name, [owner.weight.detach() for owner in owners]  # type: ignore[misc]


def stored_tensors(packed: Packed, tables: torch.Tensor, sizes: list[int]) -> dict[str, Any]:
    """The tensors of one module, by the names that the package's loader knows."""
    ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0)
    return {
        "luts": tables,
        "encoded_exponent": packed.codes,
        "sign_mantissa": packed.rest,
        "output_positions": packed.positions.view(torch.uint8),
        "gaps": packed.gaps,
        "split_positions": ends[:-1].clone(),
    }


def write_dfloat11(model: nn.Module, folder: Path, device: torch.device) -> None:
    """Encodes the weights on `device`, a module at a time, to one file each, and writes the config."""
    package = Package()
    for name, weights in coded_modules(model):
        flat = torch.cat([weight.to(device).flatten() for weight in weights])
        _, table, tables = package.codec(flat)
        stored = stored_tensors(pack(flat, table), tables, [weight.numel() for weight in weights])
        named = {f"{name}.{key}": value.cpu().contiguous() for key, value in stored.items()}
        save_file(named, folder / f"{name.replace('.', '_')}.safetensors")
    config = {
        "version": _VERSION,
        "threads_per_block": [THREADS],
        "bytes_per_thread": BYTES_PER_THREAD,
        "pattern_dict": PATTERNS,
    }
    (folder / "config.json").write_text(json.dumps({"dfloat11_config": config}))
