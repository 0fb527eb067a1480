"""Models with linears that bitsandbytes quantises, on the CPU or on a GPU."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from model_shapes import VOCABULARY

BITS = [4, 8]
NAMES = {4: "Params4bit", 8: "Int8Params"}  # of the classes of weights
WIDTH, WIDE, LAYERS = 256, 1024, 4
LINEARS = LAYERS * 4  # of attention, which are quantised
STAY = 2 * LINEARS  # each with its bias


def weight_class(bits: int) -> Any:
    """The class of weights of so many bits."""
    import bitsandbytes as bnb  # not at the top: without it tests of a GPU fail one by one, and others run

    return getattr(bnb.nn, NAMES[bits])


def config(layers: int = LAYERS, **options: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDE,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )


def make_plain(**options: Any) -> Any:
    """A Llama in bfloat16 with seeded weights, biases in its attention among them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        model = transformers.LlamaForCausalLM(config(attention_bias=True, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.to(torch.bfloat16).eval()


def _quantisable(linear: nn.Linear, bits: int, **options: Any) -> nn.Module:
    """A layer of bitsandbytes with the values of `linear`, which the next move to a device quantises."""
    import bitsandbytes as bnb

    has_bias = linear.bias is not None
    made: Any
    weight: Any
    if bits == 4:
        options = {"quant_type": "nf4", "compress_statistics": False, **options}
        made = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=has_bias,
            compute_dtype=torch.bfloat16,
            **options,
        )
        weight = bnb.nn.Params4bit(linear.weight.data, module=made, **options)
    else:
        made = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=has_bias, has_fp16_weights=False
        )
        weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    made.weight = weight
    if has_bias:
        made.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    return made


def quantisable(model: Any, bits: int, **options: Any) -> Any:
    """`model`, whose linears in attention are quantised where it is moved next; others stay plain."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "self_attn" in name:
            model.set_submodule(name, _quantisable(module, bits, **options))
    return model.eval()


def make_quantised(bits: int, device: str = "cpu", **options: Any) -> Any:
    """The Llama, all of it on `device`, its attention quantised there."""
    return quantisable(make_plain(), bits, **options).to(device)


def quantised_by_transformers(bits: int) -> transformers.BitsAndBytesConfig:
    """What has transformers quantise all linears but those that lead out of MLPs, and the head."""
    return transformers.BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["lm_head", "down_proj"],
    )


def move_the_rest(model: nn.Module, device: str) -> None:
    """Puts what is not quantised on `device`."""
    plain = [parameter for parameter in model.parameters() if type(parameter) is nn.Parameter]
    for tensor in [*plain, *model.buffers()]:
        tensor.data = tensor.data.to(device)
