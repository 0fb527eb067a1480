"""Llama models of a shape with seeded random weights, made where the model computes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cuda_runs.accelerator import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from llama_checkpoint import Shape

LLAMA_7B = Shape(
    hidden=4096, inner=11008, layers=32, heads=32, key_heads=32, shard_bytes=4_000_000_000
)
TINY = Shape(
    hidden=64, inner=128, layers=4, heads=4, key_heads=4, vocabulary=256, shard_bytes=200_000
)


def add_shape_options(parser: argparse.ArgumentParser, shape: Shape) -> None:
    """One option a size, with those of `shape` as defaults."""
    Shape.add_options(parser)
    parser.set_defaults(**dataclasses.asdict(shape))


def fill(parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Writes what a fresh model has: 1 to what is a vector, else normal with deviation 0.02."""
    if parameter.dim() == 1:
        parameter.fill_(1)
    else:
        parameter.normal_(0, 0.02, generator=generator)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes in pageable host RAM. All threads touch the pages, then they are copied."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype)
    host.zero_()
    return host.copy_(tensor)


def fill_model(model: nn.Module, seed: int, accelerator: Accelerator, in_ram: bool) -> None:
    """Gives a model on the meta device its weights: the same for one seed, device and torch.

    Args:
        model: Its parameters are replaced, in the order of their names.
        seed: Of all weights.
        accelerator: Where the bytes are made.
        in_ram: Whether they end in host RAM; else they stay on the device.
    """
    generator = torch.Generator(accelerator.device).manual_seed(seed)
    with torch.no_grad():
        for name, form in list(model.named_parameters()):
            made = torch.empty(form.shape, dtype=form.dtype, device=accelerator.device)
            fill(made, generator)
            owner, _, leaf = name.rpartition(".")
            placed = to_host(made) if in_ram and made.device.type != "cpu" else made
            setattr(model.get_submodule(owner), leaf, nn.Parameter(placed, requires_grad=False))
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise SystemExit(f"buffers without values: {', '.join(left)}")


def make_llama(shape: Shape, accelerator: Accelerator, in_ram: bool = True) -> Any:
    """A LlamaForCausalLM in bfloat16 and eval mode."""
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = shape.config()
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    # Its frequencies are made on the CPU in every way to run the model, so that they are equal.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    fill_model(model, shape.seed, accelerator, in_ram)
    if not in_ram:
        model.to(accelerator.device)
    return model.eval()


def one_layer_of(shape: Shape) -> Shape:
    """The shape with a single layer: its kernels are those of the whole."""
    return dataclasses.replace(shape, layers=1)


def weights_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, tied ones once."""
    return sum(parameter.nbytes for parameter in model.parameters())


def write_checkpoint(model: Any, folder: Path, shard_bytes: int) -> None:
    """Saves safetensors files, then reads them once: they are in the page cache."""
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    block = bytearray(64 << 20)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
