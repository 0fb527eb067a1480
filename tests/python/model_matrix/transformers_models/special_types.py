"""What the rules for names do not know of single model types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as tf

from model_matrix.transformers_models import catalogue
from model_matrix.transformers_models.shrinking import VOCABULARY, Level, Shrinker


def _resnet() -> Any:
    return tf.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def _dinov2() -> Any:
    return tf.Dinov2Config(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=56,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=False,
    )


def _swin() -> Any:
    return tf.SwinConfig(
        image_size=64,
        embed_dim=32,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _tips() -> Any:
    return tf.Tipsv2VisionConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=56,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )


def _sam2(prefix: str = "") -> dict[str, Any]:
    """Images of 128 pixels a side, not of 1024: a forward of those takes many seconds."""
    return {
        f"{prefix}backbone_config.image_size": [128, 128],
        f"{prefix}backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }


def _rope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **more}


_DETR = {"backbone_config": _resnet}
_SERIES = {"prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2, 3]}
_GLM = _rope([4, 6, 6])
_HALF = _rope([2, 3, 3], partial_rotary_factor=0.5)
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
_HEADS = {"head_dim": 32}

# Values of fields by their dotted names, which go before the rules; what can be called is called for it.
FIXED: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES,
    "bamba": {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 900},
    "conditional_detr": _DETR,
    "csm": {"codec_config.upsample_groups": 128},
    "dab-detr": _DETR,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deformable_detr": _DETR,
    "depth_anything": {"backbone_config": _dinov2},
    "detr": _DETR,
    "dots1": _ROUTED,
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "glm46v": {"text_config.rope_parameters": _GLM},
    "glm4v": {"text_config.rope_parameters": _GLM},
    "glm4v_moe": {"text_config.rope_parameters": _HALF},
    "glm4v_moe_text": {"rope_parameters": _HALF},
    "glm4v_text": {"rope_parameters": _GLM},
    "glm_image": {"text_config.rope_parameters": _GLM},
    "glm_image_text": {"rope_parameters": _GLM},
    "glmga": {"text_config.rope_parameters": _GLM},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "hunyuan_vl": {"text_config.head_dim": 32},
    "hunyuan_vl_text": _HEADS,
    "informer": _SERIES,
    "instructblip": {"image_token_index": 900},
    "instructblipvideo": {"video_token_index": 900},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 64, "n_groups": 2, "hidden_size": 128, "expand": 2},
    "ministral": _HEADS,
    "patchtsmixer": {"d_model": 256},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 2},
    "oneformer": {"backbone_config": _swin},
    "paligemma": {"text_config.num_key_value_heads": 4},
    "colpali": {"vlm_config.text_config.num_key_value_heads": 4},
    "perceiver": {"d_latents": 128, "num_latents": 16, "num_self_attends_per_block": 2},
    "sam2": {**_sam2("vision_config."), "prompt_encoder_config.image_size": 128},
    "sam2_hiera_det_model": {"image_size": [128, 128]},
    "sam2_video": {**_sam2("vision_config."), "prompt_encoder_config.image_size": 128},
    "sam2_vision_model": _sam2(),
    "time_series_transformer": _SERIES,
    "neucodec": {"semantic_model_config.max_source_positions": 50},
    "tipsv2_dpt": {"backbone_config": _tips, "neck_hidden_sizes": [16, 32, 64, 128]},
    # Attention over all pairs of twice as many frames.
    "wav2vec2-bert": {"max_source_positions": 50},
    "xcodec2": {"semantic_model_config.max_source_positions": 6},
}


def _small(config_class: Any, **more: Any) -> Any:
    return config_class(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        **more,
    )


def _bert(**more: Any) -> Any:
    return _small(tf.BertConfig, vocab_size=VOCABULARY, **more)


def _decoder() -> Any:
    return _bert(is_decoder=True, add_cross_attention=True)


def _vit() -> Any:
    return _small(tf.ViTConfig, image_size=32, patch_size=8)


def _wav2vec2() -> Any:
    return _small(tf.Wav2Vec2Config)


def _mbart() -> Any:
    return tf.MBartConfig(
        d_model=128,
        decoder_layers=2,
        encoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=256,
        vocab_size=VOCABULARY,
        is_decoder=True,
        add_cross_attention=True,
    )


def _bart() -> Any:
    return tf.BartConfig(
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        vocab_size=VOCABULARY,
    )


def _musicgen(decoder_class: Any) -> dict[str, Any]:
    decoder = decoder_class(
        hidden_size=128,
        ffn_dim=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        num_codebooks=4,
        pad_token_id=0,
        bos_token_id=0,
    )
    text = tf.T5Config(
        d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, vocab_size=VOCABULARY
    )
    audio = tf.EncodecConfig(hidden_size=128, num_filters=8, codebook_size=64, codebook_dim=128)
    return {"text_encoder": text, "audio_encoder": audio, "decoder": decoder}


# The parts of the types that have no defaults for them.
_PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "encoder-decoder": lambda: {"encoder": _bert(), "decoder": _decoder()},
    "musicgen": lambda: _musicgen(tf.MusicgenDecoderConfig),
    "musicgen_melody": lambda: _musicgen(tf.MusicgenMelodyDecoderConfig),
    "nougat": lambda: {"encoder": _vit(), "decoder": _mbart()},
    "speech-encoder-decoder": lambda: {"encoder": _wav2vec2(), "decoder": _decoder()},
    "vision-encoder-decoder": lambda: {"encoder": _vit(), "decoder": _decoder()},
    "vision-text-dual-encoder": lambda: {"vision_config": _vit(), "text_config": _bert()},
}


def small_config(model_type: str, level: Level) -> Any:
    """A small configuration of a type: its defaults made small, or its small parts where it has none."""
    chosen = catalogue.config_class(model_type)
    if model_type not in _PARTS:
        return Shrinker(level, FIXED.get(model_type)).shrink(chosen())
    parts = _PARTS[model_type]()
    if model_type.startswith("musicgen"):
        return chosen(**parts)
    return chosen(**{name: part.to_dict() for name, part in parts.items()})
