"""A diffusers Flux transformer of a shape, with seeded random weights, and its denoising steps."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from cuda_runs.accelerator import Accelerator
from cuda_runs.llama_model import fill_model
from cuda_runs.llama_passes import Timed


@dataclasses.dataclass(frozen=True)
class FluxShape:
    """Sizes of the transformer and of its inputs. The defaults are Flux's, at 4,096 image tokens."""

    layers: int = 19
    single_layers: int = 38
    heads: int = 24
    head_size: int = 128
    text_size: int = 4096
    pooled_size: int = 768
    channels: int = 64
    image_side: int = 64  # tokens a side: 64 * 64 of the image
    text_tokens: int = 512
    seed: int = 0

    @staticmethod
    def add_options(parser: argparse.ArgumentParser, shape: FluxShape) -> None:
        """Adds one option a field, with those of `shape` as defaults."""
        for name, value in dataclasses.asdict(shape).items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N")

    @staticmethod
    def from_options(options: argparse.Namespace) -> FluxShape:
        """The shape that the parsed options say."""
        names = [field.name for field in dataclasses.fields(FluxShape)]
        return FluxShape(**{name: getattr(options, name) for name in names})

    def arguments(self) -> list[str]:
        """The options that say this shape."""
        fields = dataclasses.asdict(self).items()
        return [
            text for name, value in fields for text in (f"--{name.replace('_', '-')}", str(value))
        ]

    @property
    def rope_sizes(self) -> tuple[int, int, int]:
        """How a head is shared by the three axes: as Flux does at 128, where 16 are the first's."""
        first = self.head_size // 8
        return first, (self.head_size - first) // 2, (self.head_size - first) // 2


TINY_FLUX = FluxShape(1, 2, 2, 32, 32, 16, 16, 4, 8)


def make_flux(shape: FluxShape, accelerator: Accelerator, in_ram: bool = True) -> Any:
    """A FluxTransformer2DModel in bfloat16 and eval mode."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(
            in_channels=shape.channels,
            num_layers=shape.layers,
            num_single_layers=shape.single_layers,
            attention_head_dim=shape.head_size,
            num_attention_heads=shape.heads,
            joint_attention_dim=shape.text_size,
            pooled_projection_dim=shape.pooled_size,
            guidance_embeds=True,
            axes_dims_rope=shape.rope_sizes,
        ).to(torch.bfloat16)
    fill_model(model, shape.seed, accelerator, in_ram)
    return model.eval()


def inputs_of(shape: FluxShape, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The inputs of a step, the same for one seed; positions are float32."""
    generator = torch.Generator().manual_seed(shape.seed + 1)

    def noise(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator).to(torch.bfloat16).to(device)

    side = torch.arange(shape.image_side, dtype=torch.float32)
    grid = torch.cartesian_prod(side, side)
    positions = torch.cat([torch.zeros(len(grid), 1), grid], dim=1)
    return {
        "hidden_states": noise(batch, len(grid), shape.channels),
        "encoder_hidden_states": noise(batch, shape.text_tokens, shape.text_size),
        "pooled_projections": noise(batch, shape.pooled_size),
        "img_ids": positions.to(device),
        "txt_ids": torch.zeros(shape.text_tokens, 3, device=device),
        "guidance": torch.full((batch,), 3.5, device=device),
    }


def denoise(model: Any, inputs: dict[str, torch.Tensor], steps: int, timed: Timed) -> None:
    """Euler steps from noise; a step ends with its latents in host RAM. Times go to `timed`."""
    latents, others = inputs["hidden_states"], dict(inputs)
    outputs = []
    with torch.inference_mode():
        for index in range(steps):
            start = time.perf_counter()
            moment = torch.full((len(latents),), 1 - index / steps, device=latents.device)
            others["hidden_states"] = latents
            velocity = model(**others, timestep=moment.to(latents.dtype), return_dict=False)[0]
            latents = latents - velocity / steps
            outputs.append(latents.cpu())
            timed.seconds.append(time.perf_counter() - start)
    for output in outputs:
        timed.keep_bytes(output)


def repeated_denoise(
    model: Any,
    inputs: dict[str, torch.Tensor],
    steps: int,
    repeats: int,
    timing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Timed:
    """Denoises `repeats` times, within `timing()`, and once before and after that, not timed.

    Every step's latents are hashed.
    """
    others = Timed()
    denoise(model, inputs, steps, others)
    timed = Timed()
    with timing():
        for _ in range(repeats):
            denoise(model, inputs, steps, timed)
    denoise(model, inputs, steps, others)
    timed.logits_sha256 += others.logits_sha256
    timed.tokens = [[] for _ in timed.logits_sha256]
    return timed
