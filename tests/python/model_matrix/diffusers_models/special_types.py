"""What the rules for names do not know of single model classes of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ZImageControlNetModel, ZImageTransformer2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

from model_matrix.diffusers_models.shrinking import small_arguments

_CONV = {"in_channels": 4, "num_attention_heads": 2, "attention_head_dim": 32}


# What is known of a molecule's eight tokens, of 37 atoms each.
_MOLECULE = {
    "is_in_context_conditioning": torch.zeros(1, 8), "supports_local_latent": torch.ones(1, 8),
    "charge": torch.ones(1, 8, 37), "element": torch.full((1, 8, 37), 6),
    "token_bond_path_length": (torch.arange(8)[:, None] - torch.arange(8)).abs()[None],
    "molecule_iid": torch.arange(8)[None] // 4, "molecule_entity_id": torch.zeros(1, 8),
    "condition_index-group_1_token": torch.arange(8)[None] // 2,
    "condition_secondary-structure_1_residue": torch.arange(8)[None] % 3,
    "condition_cath-label_1_residue": torch.tensor([[1, 2, 3]]),
    **{
        f"condition_{bond}_1_atom": torch.ones(1, 8, 37)
        for bond in ("hbond", "pistack", "pication", "saltbridge", "hydrophobic", "metal-coord")
    },
}  # fmt: skip


def _many(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def _positions(tokens: int, axes: int) -> torch.Tensor:
    return torch.arange(tokens, dtype=torch.float32)[:, None].repeat(1, axes)


def _share_transformer(model: ZImageControlNetModel) -> None:
    arguments = small_arguments(ZImageTransformer2DModel, {})
    ZImageControlNetModel.from_transformer(model, ZImageTransformer2DModel(**arguments))


# What several classes share.
_HUNYUAN_DIT = {
    **_CONV, "hidden_size": 64, "cross_attention_dim": 64, "cross_attention_dim_t5": 64,
    "pooled_projection_dim": 16, "text_len": 8, "text_len_t5": 8, "sample_size": 8, "patch_size": 2,
}  # fmt: skip
_LTX2 = {
    "cross_attention_dim": 256, "audio_num_attention_heads": 2, "audio_cross_attention_dim": 128,
}  # fmt: skip
_HUNYUAN_DIT_INPUTS: dict[str, Any] = {
    "encoder_hidden_states_t5": lambda: _many(1, 8, 64),
    "text_embedding_mask": lambda: torch.ones(1, 8),
    "text_embedding_mask_t5": lambda: torch.ones(1, 8),
    "image_meta_size": lambda: torch.ones(1, 6), "style": lambda: torch.zeros(1, dtype=torch.long),
}  # fmt: skip
_Z_IMAGE_INPUTS: dict[str, Any] = {
    "x": lambda: [_many(16, 1, 8, 8)], "cap_feats": lambda: [_many(8, 64)],
    "t": lambda: torch.tensor([0.5]),
}  # fmt: skip


# Arguments of constructors, by class.
FIXED: dict[str, dict[str, Any]] = {
    "AnyFlowFARTransformer3DModel": {"full_chunk_limit": 1},
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
    "AutoencoderKLAllegro": {"sample_size": 32},
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
    "AutoencoderKLLTX2Video": {
        "block_out_channels": (32, 64, 128, 256), "decoder_block_out_channels": (32, 64, 128),
    },
    "AutoencoderKLMiniMaxH3": {
        "block_out_channels": (32, 32, 32, 64, 64, 64), "decoder_num_layers": 2,
        "decoder_num_attention_heads": 2,
    },
    "AutoencoderKLQwenImage21": {"base_dim": 32},
    "CogVideoXTransformer3DModel": {
        "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 8,
    },
    "ConsisIDTransformer3DModel": {
        "sample_width": 8, "sample_height": 8, "sample_frames": 5, "max_text_seq_length": 8,
        "is_train_face": False,
    },
    "BriaFibo2Transformer2DModel": {
        "dim": 256, "n_layers": 2, "n_heads": 2, "injection_layer_ids": (0, 1), "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 8, "gist_step": 4, "gist_min_text_len": 4, "gist_max_text_len": 16,
    },
    "ControlNetUnionModel": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 32, "num_control_type": 2,
        "projection_class_embeddings_input_dim": 256, "num_trans_channel": 32, "num_proj_channel": 32,
        "num_trans_head": 2,
    },
    "Cosmos3OmniTransformer": {
        "action_gen": True, "action_dim": 8, "sound_gen": True, "sound_dim": 16,
    },
    "CosmosControlNetModel": {"model_channels": 256},
    # Its padding mask would be resized by torchvision, as that of the control net always is.
    "CosmosTransformer3DModel": {"concat_padding_mask": False},
    "DreamLiteTransformer2DModel": {**_CONV, "in_channels": 32},
    "DreamLiteUNetModel": {"attention_head_dim": 4},
    "EasyAnimateTransformer3DModel": {
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "num_attention_heads": 2, "mmdit_layers": 1,
    },
    "HunyuanDiT2DControlNetModel": {**_HUNYUAN_DIT, "transformer_num_layers": 6},
    "HunyuanDiT2DModel": _HUNYUAN_DIT,
    "HunyuanVideoFramepackTransformer3DModel": {"has_image_proj": True, "has_clean_x_embedder": True},
    "I2VGenXLUNet": {"attention_head_dim": 8},
    "Kandinsky3UNet": {
        "block_out_channels": (64, 64, 128, 128), "attention_head_dim": 32, "layers_per_block": 2,
    },
    "Kandinsky5Transformer3DModel": {
        "in_text_dim": 64, "in_text_dim2": 64, "time_dim": 64, "model_dim": 128, "ff_dim": 256,
        "num_visual_blocks": 2,
    },
    "Kandinsky6Transformer3DModel": {
        "in_text_dim2": 64, "time_dim": 64, "model_dim": 256, "ff_dim": 256,
    },
    "LatteTransformer3DModel": {
        **_CONV, "sample_size": 8, "patch_size": 2, "num_layers": 2, "cross_attention_dim": 64,
        "caption_channels": 64, "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000,
        "attention_bias": True, "video_length": 2, "out_channels": 8, "norm_elementwise_affine": False,
    },
    "Krea2Transformer2DModel": {"text_num_key_value_heads": 2},
    "LTX2VideoTransformer3DModel": _LTX2,
    "LTX2VideoDiffusionDecoderModel": {
        "decoder_stage_channels": (512, 256, 128, 128, 64), "decoder_stage_depths": (1,) * 5,
        "decoder_stage_kernels": ((3, 3, 3),) * 4, "decoder_stage5_kernel": (3, 3, 3),
        "decoder_t_emb_dim": 64,
    },
    "LongCatAudioDiTTransformer": {"dit_dim": 128, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 64},
    "LuminaNextDiT2DModel": {"num_kv_heads": 2},
    "MiniMaxH3Transformer3DModel": {"hidden_size": 256, "time_embed_hidden_dim": 64, "time_embed_dim": 64},
    "OmniGenTransformer2DModel": {
        "pad_token_id": 0, "pos_embed_max_size": 16,
        "rope_scaling": {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48},
    },
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": 128, "num_attention_heads": 2, "axes_dims_rope": (64, 32, 32),
        "caption_channels": [64, 64], "text_emb_dim": 64, "num_routed_experts": 4,
        "num_activated_experts": 2, "llama_layers": [0, 1], "max_resolution": (16, 16),
    },
    "PriorTransformer": {"num_embeddings": 8},
    "RFD4ProteinaAutoencoder": {
        "atom37_mask": [[True] * 37] * 147, "allowed_residue_types": [[True] * 147] * 7, "nlayers": 2,
        "nheads": 2, "dim_cond": 64,
    },
    "RFD4ProteinaTransformer": {"nlayers": 2, "nheads": 2, "dim_cond": 64, "tri_mult_c": 64},
    "SanaWMLTX2RefinerTransformer3DModel": _LTX2,
    "SanaWMTransformer3DModel": {"hidden_size": 224, "num_attention_heads": 2},
    "StableCascadeUNet": {
        "block_out_channels": (64, 64), "num_attention_heads": (2, 2), "clip_text_in_channels": 64,
        "clip_text_pooled_in_channels": 64, "clip_image_in_channels": 64,
    },
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
    "UniDiffuserModel": {
        **_CONV, "out_channels": 4, "text_dim": 64, "clip_img_dim": 64, "num_text_tokens": 8,
        "num_layers": 2, "sample_size": 8, "patch_size": 2, "use_data_type_embedding": True,
        "use_timestep_embedding": True,
    },
    "UniDiffuserTextDecoder": {
        "prefix_length": 4, "prefix_inner_dim": 64, "n_embd": 64, "n_layer": 2, "n_head": 2,
    },
    "WanAnimate2Transformer3DModel": {"text_len": 8},
    "WanAnimateTransformer3DModel": {
        "added_kv_proj_dim": 256, "motion_encoder_channel_sizes": {"4": 32, "8": 32, "16": 32},
        "motion_encoder_size": 16, "inject_face_latents_blocks": 1,
    },
    "WanVACETransformer3DModel": {"vace_layers": [0, 1]},
    "PixArtTransformer2DModel": {"sample_size": 8, "use_additional_conditions": False},
    "ZImageControlNetModel": {
        "control_layers_places": [0, 1], "control_refiner_layers_places": [0, 1], "control_in_dim": 16,
        "add_control_noise_refiner": "control_noise_refiner", "dim": 256, "n_heads": 2, "n_kv_heads": 2,
    },
}  # fmt: skip
# Arguments of forwards, by class; what can be called is called.
INPUTS: dict[str, dict[str, Any]] = {
    "AudioLDM2ProjectionModel": {
        "hidden_states": lambda: _many(1, 8, 64), "hidden_states_1": lambda: _many(1, 8, 64),
    },
    "AnyFlowFARTransformer3DModel": {
        "hidden_states": lambda: _many(1, 2, 16, 8, 8), "chunk_partition": lambda: [1, 1],
        "timestep": lambda: torch.full((1, 2), 3.0), "r_timestep": lambda: torch.full((1, 2), 1.0),
    },
    "AutoencoderKLAllegro": {"sample": lambda: _many(1, 3, 24, 32, 32)},
    "AutoencoderKLLTX2Video": {"sample": lambda: _many(1, 3, 9, 64, 64)},
    "AutoencoderKLMiniMaxH3": {"sample": lambda: _many(1, 3, 34, 32, 32)},
    "AutoencoderKLTemporalDecoder": {"sample": lambda: _many(2, 3, 32, 32), "num_frames": 2},
    "AutoencoderKLMochi": {"sample": lambda: _many(1, 3, 7, 32, 32)},
    "Cosmos3AVAEAudioTokenizer": {"sample": lambda: _many(1, 2, 9600)},
    "CogVideoXTransformer3DModel": {"hidden_states": lambda: _many(1, 2, 16, 8, 8)},
    "ConsisIDTransformer3DModel": {"hidden_states": lambda: _many(1, 2, 16, 8, 8)},
    "GlmImageTransformer2DModel": {
        "prior_token_id": lambda: torch.zeros(1, 16, dtype=torch.long),
        "prior_token_drop": lambda: torch.zeros(1, 16, dtype=torch.bool),
    },
    "HunyuanDiT2DModel": _HUNYUAN_DIT_INPUTS,
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
        "timesteps": lambda: torch.tensor([3]),
    },
    "SparseControlNetModel": {
        "encoder_hidden_states": lambda: _many(2, 8, 64),
        "sample": lambda: _many(1, 4, 2, 8, 8), "controlnet_cond": lambda: _many(1, 4, 2, 8, 8),
        "conditioning_mask": lambda: torch.ones(1, 1, 2, 8, 8),
    },
    "BriaFibo2Transformer2DModel": {
        "hidden_states": lambda: _many(1, 32, 8, 8), "encoder_hidden_states": lambda: _many(1, 3, 8, 64),
        "encoder_attention_mask": lambda: torch.ones(1, 8, dtype=torch.bool),
        "timestep": lambda: torch.tensor([0.5]),
    },
    "ControlNetUnionModel": {
        "sample": lambda: _many(1, 4, 8, 8), "controlnet_cond": lambda: [_many(1, 3, 64, 64)] * 2,
        "control_type": lambda: torch.ones(1, 2), "control_type_idx": lambda: [0, 1],
        "added_cond_kwargs": lambda: {"text_embeds": _many(1, 64), "time_ids": torch.ones(1, 6)},
    },
    "Cosmos3OmniTransformer": {
        "input_ids": lambda: torch.arange(8), "text_indexes": lambda: torch.arange(8),
        "position_ids": lambda: torch.arange(24).expand(3, 24), "und_len": 8, "sequence_length": 24,
        "vision_tokens": lambda: [_many(1, 48, 2, 4, 4)], "vision_token_shapes": lambda: [(2, 2, 2)],
        "vision_sequence_indexes": lambda: torch.arange(8, 16),
        "vision_mse_loss_indexes": lambda: torch.arange(12, 16),
        "vision_timesteps": lambda: torch.full((4,), 3.0),
        "vision_noisy_frame_indexes": lambda: [torch.tensor([1])],
        "sound_tokens": lambda: [_many(16, 4)], "sound_token_shapes": lambda: [(4, 1, 1)],
        "sound_sequence_indexes": lambda: torch.arange(16, 20),
        "sound_mse_loss_indexes": lambda: torch.arange(16, 20),
        "sound_timesteps": lambda: torch.full((4,), 3.0),
        "sound_noisy_frame_indexes": lambda: [torch.arange(4)],
        "action_tokens": lambda: [_many(4, 8)], "action_token_shapes": lambda: [(4, 1, 1)],
        "action_sequence_indexes": lambda: torch.arange(20, 24),
        "action_mse_loss_indexes": lambda: torch.arange(20, 24),
        "action_timesteps": lambda: torch.full((4,), 3.0),
        "action_noisy_frame_indexes": lambda: [torch.arange(4)],
        "action_domain_ids": lambda: [torch.tensor(5)],
    },
    "CosmosControlNetModel": {
        "controls_latents": lambda: _many(1, 16, 2, 8, 8), "latents": lambda: _many(1, 16, 2, 8, 8),
        "condition_mask": lambda: torch.ones(1, 1, 2, 8, 8), "padding_mask": lambda: torch.zeros(1, 1, 8, 8),
    },
    "CosmosTransformer3DModel": {"hidden_states": lambda: _many(1, 16, 2, 8, 8)},
    "EasyAnimateTransformer3DModel": {"hidden_states": lambda: _many(1, 16, 2, 8, 8)},
    "HunyuanDiT2DControlNetModel": {
        **_HUNYUAN_DIT_INPUTS, "hidden_states": lambda: _many(1, 4, 8, 8),
        "controlnet_cond": lambda: _many(1, 4, 8, 8),
    },
    "JoyImageEditPlusTransformer3DModel": {
        "hidden_states": lambda: _many(1, 32, 16, 1, 2, 2),
        "shape_list": lambda: [[(1, 4, 4), (1, 4, 4)]],
    },
    "Kandinsky3UNet": {"sample": lambda: _many(1, 4, 32, 32)},
    "Kandinsky6SRLatentUpscalerBank": {"latents": lambda: _many(1, 64, 2, 8, 8), "scale": 4},
    "Kandinsky6SRTransformer3DModel": {"hidden_states": lambda: _many(1, 2, 16, 16, 129)},
    "Kandinsky6Transformer3DModel": {
        "hidden_states": lambda: _many(1, 2, 8, 8, 33), "encoder_hidden_states": lambda: _many(1, 8, 64),
        "pooled_projections": lambda: _many(1, 64), "audio_hidden_states": lambda: _many(1, 8, 20),
    },
    "RFD4ProteinaAutoencoder": {
        "z_latent": lambda: _many(1, 8, 32), "ca_coors_nm": lambda: _many(1, 8, 3),
        "padding_mask": lambda: torch.ones(1, 8), "token_type": lambda: torch.arange(8)[None] % 7,
        "atom37_mask": lambda: torch.ones(1, 8, 37), "conditioning": lambda: dict(_MOLECULE),
    },
    "RFD4ProteinaTransformer": {
        "bb_ca": lambda: _many(1, 8, 3), "local_latents": lambda: _many(1, 8, 32),
        "bb_ca_time": lambda: torch.tensor([0.5]), "local_latents_time": lambda: torch.tensor([0.3]),
        "padding_mask": lambda: torch.ones(1, 8), "token_type": lambda: torch.arange(8)[None] % 7,
        "atom37_mask": lambda: torch.ones(1, 8, 37), "conditioning": lambda: dict(_MOLECULE),
        "recycle_depth": 2,
    },
    "SanaWMLTX2RefinerTransformer3DModel": {
        "hidden_states": lambda: _many(1, 64, 128), "encoder_hidden_states": lambda: _many(1, 8, 64),
        "video_rotary_emb": lambda: (_positions(64, 256)[None].cos(), _positions(64, 256)[None].sin()),
    },
    "SanaWMTransformer3DModel": {
        "hidden_states": lambda: _many(1, 128, 3, 4, 4), "timestep": lambda: torch.full((1, 1, 3), 3.0),
        "encoder_hidden_states": lambda: _many(1, 1, 8, 64),
        "camera_conditions": lambda: _many(1, 3, 20), "chunk_plucker": lambda: _many(1, 48, 3, 4, 4),
    },
    "StableCascadeUNet": {
        "sample": lambda: _many(1, 16, 8, 8), "timestep_ratio": lambda: torch.tensor([0.5]),
        "clip_text_pooled": lambda: _many(1, 1, 64), "clip_text": lambda: _many(1, 8, 64),
        "clip_img": lambda: _many(1, 1, 64),
    },
    "UniDiffuserModel": {
        "latent_image_embeds": lambda: _many(1, 4, 8, 8), "image_embeds": lambda: _many(1, 1, 64),
        "prompt_embeds": lambda: _many(1, 8, 64), "timestep_img": 3, "timestep_text": 5, "data_type": 1,
        "encoder_hidden_states": None,
    },
    "WanAnimate2Transformer3DModel": {
        "hidden_states": lambda: [_many(16, 2, 8, 8)], "condition_latents": lambda: [_many(20, 2, 8, 8)],
        "encoder_hidden_states": lambda: [_many(6, 64)], "kv_cache": lambda: WanAnimate2KVCache(2),
        "kv_cache_mode": "extract", "seq_len": 32, "offset_grid_sizes": lambda: torch.tensor([[2, 4, 4]]),
        "encoder_hidden_states_image": lambda: _many(1, 257, 1280),
    },
    "WanAnimateTransformer3DModel": {
        "hidden_states": lambda: _many(1, 36, 3, 8, 8), "pose_hidden_states": lambda: _many(1, 16, 2, 8, 8),
        "face_pixel_values": lambda: _many(1, 3, 8, 16, 16),
        "encoder_hidden_states_image": lambda: _many(1, 257, 64),
    },
    "AceStepAudioTokenDetokenizer": {"hidden_states": lambda: _many(1, 8, 256)},
    "AceStepAudioTokenizer": {"hidden_states": lambda: _many(1, 2, 5, 64)},
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
    "HunyuanVideo15Transformer3DModel": {
        "hidden_states": lambda: _many(1, 65, 2, 8, 8), "image_embeds": lambda: _many(1, 4, 64),
        "encoder_hidden_states_2": lambda: _many(1, 8, 64),
        "encoder_attention_mask_2": lambda: torch.ones(1, 8),
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        "hidden_states": lambda: _many(1, 16, 2, 8, 8), "image_embeds": lambda: _many(1, 4, 64),
        "indices_latents": lambda: torch.arange(7, 9), "latents_clean": lambda: _many(1, 16, 1, 8, 8),
        "indices_latents_clean": lambda: torch.arange(6, 7),
        "latents_history_2x": lambda: _many(1, 16, 2, 8, 8),
        "indices_latents_history_2x": lambda: torch.arange(4, 6),
        "latents_history_4x": lambda: _many(1, 16, 4, 8, 8),
        "indices_latents_history_4x": lambda: torch.arange(4),
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
        "position_ids": lambda: _positions(24, 3),
    },
    "LTX2VideoTransformer3DModel": {
        "hidden_states": lambda: _many(1, 64, 128), "audio_hidden_states": lambda: _many(1, 8, 128),
        "encoder_hidden_states": lambda: _many(1, 8, 64), "num_frames": 1, "height": 8, "width": 8,
        "audio_encoder_hidden_states": lambda: _many(1, 8, 64), "fps": 24.0, "audio_num_frames": 8,
    },
    "LatteTransformer3DModel": {
        "hidden_states": lambda: _many(1, 4, 2, 8, 8), "encoder_attention_mask": None,
    },
    "LuminaNextDiT2DModel": {
        "hidden_states": lambda: _many(1, 4, 8, 8), "encoder_mask": lambda: torch.ones(1, 8),
        "image_rotary_emb": lambda: get_2d_rotary_pos_embed_lumina(72, 8, 8), "cross_attention_kwargs": dict,
    },
    "LTX2VideoDiffusionDecoderModel": {"z": lambda: _many(1, 128, 3, 4, 4)},
    "LongCatAudioDiTTransformer": {
        "hidden_states": lambda: _many(1, 16, 64), "encoder_hidden_states": lambda: _many(1, 8, 64),
        "latent_cond": lambda: _many(1, 16, 64),
    },
    "MMAudioVAE": {"sample": lambda: _many(1, 16384) * 0.1},
    "MMAudioVocoder": {"mel": lambda: _many(1, 128, 16)},
    "MiniMaxH3Transformer3DModel": {
        "hidden_states": lambda: _many(1, 8, 96), "audio_hidden_states": lambda: _many(1, 4, 32),
        "encoder_hidden_states": lambda: _many(1, 4, 64), "timestep": lambda: torch.tensor([3.0, 0.0]),
        "timestep_indices": lambda: torch.arange(16) % 2, "token_tags": lambda: torch.arange(16) % 3,
        "position_ids": lambda: _positions(16, 3), "text_indices": lambda: torch.arange(4),
        "video_indices": lambda: torch.arange(4, 12), "audio_indices": lambda: torch.arange(12, 16),
    },
    "MiniMaxMusic3ConditionEncoder": {"hidden_states": lambda: _many(1, 8, 128)},
    "MiniMaxMusic3RVQDepthDecoder": {"inputs_embeds": lambda: _many(1, 8, 512)},
    "MiniMaxMusic3Transformer1DModel": {
        "hidden_states": lambda: _many(1, 128, 16), "encoder_hidden_states": lambda: _many(1, 16, 128),
    },
    "OmniGenTransformer2DModel": {
        "hidden_states": lambda: _many(1, 4, 8, 8), "input_ids": lambda: torch.arange(24)[None],
        "input_img_latents": lambda: [_many(1, 4, 8, 8)], "input_image_sizes": lambda: {0: [[4, 20]]},
        "attention_mask": lambda: torch.ones(1, 41, 41), "position_ids": lambda: torch.arange(41)[None],
    },
    "QwenImage21Transformer2DModel": {
        "hidden_states": lambda: _many(1, 64, 64),
        "img_mask": lambda: torch.arange(24)[None] >= 8,
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
    "ZImageControlNetModel": {
        **_Z_IMAGE_INPUTS, "control_context": lambda: [_many(16, 1, 8, 8)],
    },
    "ZImageTransformer2DModel": _Z_IMAGE_INPUTS,
}  # fmt: skip
# What is done to a model once it is made, by class.
COMPLETED: dict[str, Callable[[Any], object]] = {
    "AutoencoderKLAllegro": lambda model: model.enable_tiling(),
    "ZImageControlNetModel": _share_transformer,
}
