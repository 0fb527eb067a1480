"""What the rules for names do not know of single model classes of diffusers."""

from __future__ import annotations

from typing import Any

import torch

_CONV = {"in_channels": 4, "num_attention_heads": 2, "attention_head_dim": 32}


def _many(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


# Arguments of constructors, by class.
FIXED: dict[str, dict[str, Any]] = {
    "AudioLDM2ProjectionModel": {
        "text_encoder_dim": 64, "text_encoder_1_dim": 64, "langauge_model_dim": 64,
    },
    "AutoencoderDC": {
        "encoder_block_out_channels": (64,) * 3, "decoder_block_out_channels": (64,) * 3,
        "encoder_layers_per_block": (1,) * 3, "decoder_layers_per_block": (1,) * 3,
        "encoder_qkv_multiscales": ((), (), (5,)), "decoder_qkv_multiscales": ((), (), (5,)),
        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (32, 64),
        "layers_per_block": 1, "spatial_compression_ratio": 2, "sample_size": 32,
    },
    "AutoencoderKLHunyuanImageRefiner": {
        "block_out_channels": (32, 64), "layers_per_block": 1, "spatial_compression_ratio": 2,
        "temporal_compression_ratio": 1, "latent_channels": 4,
    },
    "AutoencoderKLHunyuanVideo15": {
        "block_out_channels": (32, 64), "layers_per_block": 1, "spatial_compression_ratio": 2,
        "temporal_compression_ratio": 1, "latent_channels": 4,
    },
    "AutoencoderKLKVAEVideo": {"ch": 32},
    "AutoencoderKLQwenImage21": {"base_dim": 32},
    "CogVideoXTransformer3DModel": {
        "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 8,
    },
    "ConsisIDTransformer3DModel": {
        "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 8,
        "is_train_face": False,
    },
    "ControlNetUnionModel": {
        "addition_embed_type": None, "num_attention_heads": 8, "num_control_type": 2,
    },
    "DreamLiteTransformer2DModel": {**_CONV, "in_channels": 32},
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "num_attention_heads": 2},
    "HunyuanDiT2DControlNetModel": {**_CONV, "hidden_size": 64, "cross_attention_dim": 64},
    "HunyuanDiT2DModel": {
        **_CONV, "hidden_size": 64, "cross_attention_dim": 64, "cross_attention_dim_t5": 64,
        "pooled_projection_dim": 16, "text_len": 8, "text_len_t5": 8, "sample_size": 8, "patch_size": 2,
    },
    "I2VGenXLUNet": {"attention_head_dim": 8},
    "Kandinsky5Transformer3DModel": {
        "in_text_dim": 64, "in_text_dim2": 64, "time_dim": 64, "model_dim": 128, "ff_dim": 256,
        "num_visual_blocks": 2,
    },
    "LatteTransformer3DModel": {
        **_CONV, "sample_size": 8, "patch_size": 2, "num_layers": 2, "cross_attention_dim": 64,
        "caption_channels": 64, "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000,
        "attention_bias": True, "video_length": 2, "out_channels": 8, "norm_elementwise_affine": False,
    },
    "OmniGenTransformer2DModel": {"pad_token_id": 0},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": 128, "num_attention_heads": 2, "axes_dims_rope": (64, 32, 32),
        "caption_channels": [64, 64], "text_emb_dim": 64, "num_routed_experts": 4,
        "num_activated_experts": 2, "llama_layers": [0, 1], "max_resolution": (16, 16),
    },
    "PriorTransformer": {"num_embeddings": 8},
    "StableAudioProjectionModel": {
        "text_encoder_dim": 64, "conditioning_dim": 64, "min_value": 0, "max_value": 32,
    },
    "Transformer2DModel": {"in_channels": 32, "attention_head_dim": 32, "num_layers": 2},
    "TransformerTemporalModel": {"in_channels": 32, "attention_head_dim": 32, "num_layers": 2},
    "UNet1DModel": {"extra_in_channels": 64},
    "UNet3DConditionModel": {"attention_head_dim": 8},
    "UNetSpatioTemporalConditionModel": {
        "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96,
        "num_attention_heads": (4, 4, 4, 4),
    },
    "UVit2DModel": {
        "micro_cond_encode_dim": 32, "micro_cond_embed_dim": 160, "vocab_size": 1024,
        "codebook_size": 1000,
    },
    "UniDiffuserTextDecoder": {
        "prefix_length": 4, "prefix_inner_dim": 64, "n_embd": 64, "n_layer": 2, "n_head": 2,
    },
    "WanVACETransformer3DModel": {"vace_layers": [0, 1]},
    "PixArtTransformer2DModel": {"sample_size": 8, "use_additional_conditions": False},
}  # fmt: skip
# Arguments of forwards, by class; what can be called is called.
INPUTS: dict[str, dict[str, Any]] = {
    "AudioLDM2ProjectionModel": {
        "hidden_states": lambda: _many(1, 8, 64), "hidden_states_1": lambda: _many(1, 8, 64),
    },
    "AutoencoderKLTemporalDecoder": {"sample": lambda: _many(2, 3, 32, 32), "num_frames": 2},
    "AutoencoderKLMochi": {"sample": lambda: _many(1, 3, 7, 32, 32)},
    "Cosmos3AVAEAudioTokenizer": {"sample": lambda: _many(1, 2, 9600)},
    "CogVideoXTransformer3DModel": {"hidden_states": lambda: _many(1, 2, 16, 8, 8)},
    "ConsisIDTransformer3DModel": {"hidden_states": lambda: _many(1, 2, 16, 8, 8)},
    "GlmImageTransformer2DModel": {
        "prior_token_id": lambda: torch.zeros(1, 16, dtype=torch.long),
        "prior_token_drop": lambda: torch.zeros(1, 16, dtype=torch.bool),
    },
    "HunyuanDiT2DModel": {
        "encoder_hidden_states_t5": lambda: _many(1, 8, 64),
        "text_embedding_mask": lambda: torch.ones(1, 8),
        "text_embedding_mask_t5": lambda: torch.ones(1, 8),
        "image_meta_size": lambda: torch.ones(1, 6), "style": lambda: torch.zeros(1, dtype=torch.long),
    },
    "I2VGenXLUNet": {
        "sample": lambda: _many(1, 4, 2, 8, 8), "image_latents": lambda: _many(1, 4, 2, 8, 8),
        "image_embeddings": lambda: _many(1, 64), "fps": lambda: torch.tensor([8]),
        "encoder_hidden_states": lambda: _many(1, 8, 64),
    },
    "LTXVideoTransformer3DModel": {"height": 8, "width": 8, "num_frames": 1},
    "PriorTransformer": {"hidden_states": lambda: _many(1, 64)},
    "SD3ControlNetModel": {
        "hidden_states": lambda: _many(1, 16, 8, 8), "controlnet_cond": lambda: _many(1, 16, 8, 8),
    },
    "HiDreamImageTransformer2DModel": {
        "encoder_hidden_states_t5": lambda: _many(1, 8, 64),
        "encoder_hidden_states_llama3": lambda: _many(2, 1, 8, 64),
        "pooled_embeds": lambda: _many(1, 64), "hidden_states": lambda: _many(1, 16, 8, 8),
    },
    "SparseControlNetModel": {
        "sample": lambda: _many(1, 4, 2, 8, 8), "controlnet_cond": lambda: _many(1, 4, 2, 8, 8),
        "conditioning_mask": lambda: torch.ones(1, 1, 2, 8, 8),
    },
    "AceStepAudioTokenizer": {"hidden_states": lambda: _many(1, 10, 64)},
    "AceStepConditionEncoder": {
        "text_hidden_states": lambda: _many(1, 8, 64), "text_attention_mask": lambda: torch.ones(1, 8),
        "lyric_hidden_states": lambda: _many(1, 8, 64), "lyric_attention_mask": lambda: torch.ones(1, 8),
        "refer_audio_acoustic_hidden_states_packed": lambda: _many(1, 8, 64),
        "refer_audio_order_mask": lambda: torch.zeros(1, dtype=torch.long),
    },
    "AceStepTransformer1DModel": {
        "hidden_states": lambda: _many(1, 8, 64), "context_latents": lambda: _many(1, 8, 128),
        "encoder_hidden_states": lambda: _many(1, 8, 256),
    },
    "AnimaTextConditioner": {
        "source_hidden_states": lambda: _many(1, 8, 64),
        "target_input_ids": lambda: torch.ones(1, 8, dtype=torch.long),
    },
    "BriaFiboTransformer2DModel": {
        "text_encoder_layers": lambda: [_many(1, 8, 64)] * 4, "hidden_states": lambda: _many(1, 64, 64),
    },
    "ErnieImageTransformer2DModel": {
        "text_bth": lambda: _many(1, 8, 64), "text_lens": lambda: torch.tensor([8]),
    },
    "FluxControlNetModel": {
        "hidden_states": lambda: _many(1, 64, 64), "controlnet_cond": lambda: _many(1, 64, 64),
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        "hidden_states": lambda: _many(1, 16, 2, 8, 8), "image_embeds": None,
        "indices_latents": lambda: torch.arange(2)[None],
    },
    "Ideogram4Transformer2DModel": {
        "hidden_states": lambda: _many(1, 16, 128), "encoder_hidden_states": lambda: _many(1, 16, 64),
        "position_ids": lambda: torch.zeros(1, 16, 3, dtype=torch.long),
        "segment_ids": lambda: torch.ones(1, 16, dtype=torch.long),
        "indicator": lambda: torch.ones(1, 16, dtype=torch.long),
    },
    "Kandinsky5Transformer3DModel": {
        "hidden_states": lambda: _many(1, 2, 8, 8, 4), "encoder_hidden_states": lambda: _many(1, 8, 64),
        "pooled_projections": lambda: _many(1, 64),
        "visual_rope_pos": lambda: [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": lambda: torch.arange(8),
    },
    "Krea2Transformer2DModel": {
        "hidden_states": lambda: _many(1, 16, 64), "encoder_hidden_states": lambda: _many(1, 8, 2, 64),
        "position_ids": lambda: torch.zeros(1, 24, 3),
    },
    "LTX2VideoTransformer3DModel": {
        "hidden_states": lambda: _many(1, 64, 128), "audio_hidden_states": lambda: _many(1, 8, 128),
        "encoder_hidden_states": lambda: _many(1, 8, 64), "num_frames": 1, "height": 8, "width": 8,
        "audio_encoder_hidden_states": lambda: _many(1, 8, 64), "fps": 24.0, "audio_num_frames": 8,
    },
    "LatteTransformer3DModel": {"hidden_states": lambda: _many(1, 4, 2, 8, 8)},
    "MMAudioVocoder": {"mel": lambda: _many(1, 128, 16)},
    "MiniMaxMusic3RVQDepthDecoder": {"inputs_embeds": lambda: _many(1, 8, 128)},
    "QwenImage21Transformer2DModel": {
        "hidden_states": lambda: _many(1, 64, 64),
        "img_mask": lambda: torch.ones(1, 64, dtype=torch.bool),
    },
    "QwenImageControlNetModel": {
        "hidden_states": lambda: _many(1, 64, 64), "controlnet_cond": lambda: _many(1, 64, 64),
    },
    "StableAudio3DurationEmbedder": {"seconds": lambda: torch.tensor([5.0])},
    "StableAudioProjectionModel": {
        "text_hidden_states": lambda: _many(1, 8, 64), "start_seconds": lambda: torch.tensor([0.0]),
        "end_seconds": lambda: torch.tensor([5.0]),
    },
    "T5FilmDecoder": {
        "encodings_and_masks": lambda: [(_many(1, 8, 128), torch.ones(1, 8))],
        "decoder_input_tokens": lambda: _many(1, 256, 128),
        "decoder_noise_time": lambda: torch.tensor([0.5]),
    },
    "Transformer2DModel": {"hidden_states": lambda: _many(1, 32, 8, 8)},
    "TransformerTemporalModel": {
        "hidden_states": lambda: _many(2, 32, 8, 8), "encoder_hidden_states": None,
    },
    "UNet1DModel": {"sample": lambda: _many(1, 2, 256)},
    "UNet3DConditionModel": {"sample": lambda: _many(1, 4, 2, 8, 8)},
    "UNetControlNetXSModel": {
        "sample": lambda: _many(1, 4, 16, 16), "controlnet_cond": lambda: _many(1, 3, 128, 128),
    },
    "UNetSpatioTemporalConditionModel": {"sample": lambda: _many(1, 2, 8, 32, 32)},
    "UVit2DModel": {
        "input_ids": lambda: torch.zeros(1, 8, 8, dtype=torch.long),
        "micro_conds": lambda: torch.ones(1, 5),
    },
    "UniDiffuserTextDecoder": {
        "input_ids": lambda: torch.ones(1, 8, dtype=torch.long), "prefix_embeds": lambda: _many(1, 4, 64),
    },
    "WanVACETransformer3DModel": {
        "hidden_states": lambda: _many(1, 16, 2, 8, 8),
        "control_hidden_states": lambda: _many(1, 96, 2, 8, 8),
    },
    "ZImageTransformer2DModel": {
        "x": lambda: [_many(16, 1, 8, 8)], "cap_feats": lambda: [_many(8, 64)],
        "t": lambda: torch.tensor([0.5]),
    },
}  # fmt: skip
