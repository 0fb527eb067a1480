"""Tiny random models and pipelines of diffusers, and how to run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers as tf
from torch import nn

STEPS = 2


def _made(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4321)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                # Initial biases of 0 and norms of 1 would hide a weight that is taken for another.
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def make_unet() -> Any:
    return _made(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
    )


def make_autoencoder(**options: Any) -> Any:
    return _made(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            sample_size=16,
            **{"latent_channels": 4, **options},
        )
    )


def make_text_encoder() -> Any:
    config = tf.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=1000,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return _made(lambda: tf.CLIPTextModel(config))


def make_flux_transformer() -> Any:
    return _made(
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
    )


def quiet(pipeline: Any) -> Any:
    """The pipeline without its progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_stable_diffusion() -> Any:
    """A UNet, an autoencoder and a CLIP text encoder."""
    return quiet(
        diffusers.StableDiffusionPipeline(
            vae=make_autoencoder(),
            text_encoder=make_text_encoder(),
            tokenizer=None,
            unet=make_unet(),
            scheduler=diffusers.DDIMScheduler(
                num_train_timesteps=100, steps_offset=1, clip_sample=False, set_alpha_to_one=False
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def make_flux() -> Any:
    """A transformer, an autoencoder, and a CLIP and a T5 text encoder."""
    t5 = tf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=1000)
    return quiet(
        diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=make_autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
            text_encoder=make_text_encoder(),
            tokenizer=None,
            text_encoder_2=_made(lambda: tf.T5EncoderModel(t5)),
            tokenizer_2=None,
            transformer=make_flux_transformer(),
        )
    )


def _encoded(text_encoder: nn.Module, device: torch.device) -> Any:
    ids = torch.arange(3, 19, device=device)[None]
    with torch.no_grad():
        return text_encoder(ids)


def run_stable_diffusion(pipeline: Any) -> torch.Tensor:
    text = _encoded(pipeline.text_encoder, pipeline._execution_device)[0]
    result = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=torch.zeros_like(text),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    )
    return result.images


def run_flux(pipeline: Any) -> torch.Tensor:
    pooled = _encoded(pipeline.text_encoder, pipeline._execution_device).pooler_output
    text = _encoded(pipeline.text_encoder_2, pipeline._execution_device)[0]
    result = pipeline(
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        height=16,
        width=16,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    )
    return result.images


PIPELINES: dict[str, tuple[Callable[[], Any], Callable[[Any], torch.Tensor]]] = {
    "stable-diffusion": (make_stable_diffusion, run_stable_diffusion),
    "flux": (make_flux, run_flux),
}
# What stands for parts that a tiny pipeline has not.
ABSENT = {"stable-diffusion": {"tokenizer": None}, "flux": {"tokenizer": None, "tokenizer_2": None}}


def save_pipeline(name: str, folder: Path, **options: Any) -> Path:
    PIPELINES[name][0]().save_pretrained(folder, **options)
    return folder


def load_plain(name: str, folder: Path, **options: Any) -> Any:
    """The pipeline as diffusers loads it."""
    return quiet(diffusers.DiffusionPipeline.from_pretrained(folder, **ABSENT[name], **options))
