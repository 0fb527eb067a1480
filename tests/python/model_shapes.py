"""Tiny random models of the shapes that the library promises to run, and inputs for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

VOCABULARY = 1000
# Blocks of these sizes have 400 KiB and more; coarse cuts keep what is below 256 KiB resident.
WIDTH, WIDE, HEADS = 128, 384, 4


@dataclasses.dataclass(frozen=True)
class Shape:
    """One architecture: how to make a model of some layers, what to call it with.

    Attributes:
        make: The model for a number of layers; weights are random, made with a fixed seed.
        inputs: What its forward takes.
        prompt: What its generate takes; None where it does not generate.
    """

    name: str
    make: Callable[[int], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    prompt: Callable[[], dict[str, Any]] | None = None


def _made(
    model_class: type[nn.Module], config: Any, dtype: torch.dtype = torch.float32
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        model = model_class(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                # Initial biases of 0 and norms of 1 would hide a weight that is taken for another.
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def _decoder(model_class: Any, config_class: Any, dtype: torch.dtype, **extra: Any) -> Any:
    def make(layers: int) -> nn.Module:
        config = config_class(
            hidden_size=WIDTH,
            intermediate_size=WIDE,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
            **extra,
        )
        return _made(model_class, config, dtype)

    return make


def _bert(layers: int) -> nn.Module:
    return _made(
        tf.BertModel,
        tf.BertConfig(
            hidden_size=WIDTH,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            vocab_size=VOCABULARY,
            max_position_embeddings=64,
        ),
    )


def _gpt2(layers: int) -> nn.Module:
    return _made(
        tf.GPT2LMHeadModel,
        tf.GPT2Config(
            n_embd=WIDTH,
            n_layer=layers,
            n_head=HEADS,
            n_positions=64,
            vocab_size=VOCABULARY,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )


def _t5(layers: int) -> nn.Module:
    return _made(
        tf.T5ForConditionalGeneration,
        tf.T5Config(
            d_model=WIDTH,
            d_kv=32,
            d_ff=WIDE,
            num_layers=layers,
            num_decoder_layers=2,
            num_heads=HEADS,
            vocab_size=VOCABULARY,
            decoder_start_token_id=0,
        ),
    )


def _vit(layers: int) -> nn.Module:
    return _made(
        tf.ViTForImageClassification,
        tf.ViTConfig(
            hidden_size=WIDTH,
            intermediate_size=WIDE,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            image_size=32,
            patch_size=8,
            num_labels=7,
        ),
    )


def _whisper(layers: int) -> nn.Module:
    return _made(
        tf.WhisperForConditionalGeneration,
        tf.WhisperConfig(
            d_model=WIDTH,
            encoder_layers=layers,
            decoder_layers=2,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=WIDE,
            decoder_ffn_dim=WIDE,
            vocab_size=VOCABULARY,
            num_mel_bins=20,
            max_source_positions=40,
            max_target_positions=48,
            decoder_start_token_id=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
    )


def token_ids(count: int = 9, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (1, count), generator=generator)


def row_ids() -> torch.Tensor:
    """What a Stack takes."""
    return token_ids(7) % 512


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(6))


def _ids() -> dict[str, Any]:
    return {"input_ids": token_ids()}


def _padded_ids() -> dict[str, Any]:
    ids = token_ids(12).reshape(2, 6)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _prompt() -> dict[str, Any]:
    ids = token_ids()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("bert", _bert, _padded_ids),
        Shape(
            "llama",
            _decoder(tf.LlamaForCausalLM, tf.LlamaConfig, torch.float32),
            _ids,
            _prompt,
        ),
        Shape(
            "qwen3",
            _decoder(tf.Qwen3ForCausalLM, tf.Qwen3Config, torch.bfloat16, head_dim=64),
            _ids,
            _prompt,
        ),
        Shape(
            "mistral",
            _decoder(tf.MistralForCausalLM, tf.MistralConfig, torch.float32, sliding_window=4),
            _ids,
            _prompt,
        ),
        Shape("gpt2", _gpt2, _ids, _prompt),
        Shape("t5", _t5, lambda: _ids() | {"decoder_input_ids": token_ids(4, 7)}, _prompt),
        Shape("vit", _vit, lambda: {"pixel_values": _random(2, 3, 32, 32)}),
        Shape(
            "whisper",
            _whisper,
            lambda: {
                "input_features": _random(1, 20, 80),
                "decoder_input_ids": token_ids(4, 7),
            },
            lambda: {"input_features": _random(1, 20, 80)},
        ),
    )
}


class Block(nn.Module):
    """A block of two matrices: 512 KiB at the usual width."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks one after the other, a table of rows before them and a head after them."""

    def __init__(self, layers: int = 5, width: int = 256, rows: int = 512) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 16)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


def make_stack(layers: int = 5, seed: int = 11, **options: Any) -> Stack:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Stack(layers, **options).eval()
