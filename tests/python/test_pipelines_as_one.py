"""Pipelines of diffusers as a whole: converted, or made of the parts of one that is offloaded."""

from __future__ import annotations

import gc
from typing import Any

import diffusers
import pytest
import torch

import tensorstream as ts
from conftest import assert_same, hooks_of, smallest_budget
from diffusion_shapes import make_stable_diffusion, make_unet, quiet, run_stable_diffusion


def test_two_pipelines_share_streamed_parts() -> None:
    pipeline = make_stable_diffusion()
    expected = run_stable_diffusion(pipeline)
    ts.offload(pipeline, ram_budget=smallest_budget(pipeline))
    other = quiet(diffusers.StableDiffusionPipeline(**pipeline.components))
    del pipeline
    assert_same(run_stable_diffusion(other), expected)


def test_a_pipeline_of_an_offloaded_ones_parts_stands_for_it() -> None:
    pipeline = make_stable_diffusion()
    expected = run_stable_diffusion(pipeline)
    ts.offload(pipeline, ram_budget=smallest_budget(pipeline))
    other = quiet(diffusers.StableDiffusionPipeline.from_pipe(pipeline))
    with_another_unet = {**pipeline.components, "unet": make_unet()}
    mixed = quiet(diffusers.StableDiffusionPipeline(**with_another_unet))
    with pytest.raises(ts.ConfigError, match=r"has parts of an offloaded StableDiffusionPipeline"):
        ts.stats(mixed)
    assert ts.stats(other) == ts.stats(pipeline)
    del pipeline, mixed, with_another_unet
    gc.collect()
    assert ts.stats(other).budget_bytes > 0
    ts.set_budget(other, ram_budget="4MB")
    assert_same(run_stable_diffusion(other), expected)
    ts.restore(other)
    assert not any(hooks_of(part) for part in (other.unet, other.vae, other.text_encoder))
    assert_same(run_stable_diffusion(other), expected)


@pytest.mark.parametrize(
    "convert",
    [
        lambda pipeline: pipeline.to(torch.bfloat16),
        lambda pipeline: pipeline.to("cpu", torch.bfloat16),
        lambda pipeline: pipeline.to(dtype=torch.float16),
        lambda pipeline: pipeline.to(device="meta"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_conversion_of_a_pipeline_that_is_refused_converts_nothing(
    convert: Any, whole: bool
) -> None:
    pipeline = make_stable_diffusion()
    expected = run_stable_diffusion(pipeline)
    if whole:
        budget = ts.estimate_memory(pipeline).everything_fits_bytes * 4 // 5
        ts.offload(pipeline, ram_budget=budget, keep_resident=("text_encoder",))
    else:
        ts.offload(pipeline.unet, ram_budget=smallest_budget(pipeline.unet))
    with pytest.raises(ts.UnsupportedError, match=r"is streamed as .* torch\.float32 on cpu"):
        convert(pipeline)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {(p.dtype, p.device.type) for p in part.parameters()} == {(torch.float32, "cpu")}
    assert_same(run_stable_diffusion(pipeline), expected)
    assert pipeline.to("cpu") is pipeline
    pipeline.to("cpu", torch.float32)
    assert_same(run_stable_diffusion(pipeline), expected)
