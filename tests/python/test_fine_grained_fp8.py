"""Fine-grained fp8, as transformers has it: plain parameters of fp8, with a scale for each block of 128."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations import finegrained_fp8

import tensorstream as ts
from bnb_models import make_plain
from conftest import assert_same, offload_tightly, save
from fake_gpu import use_fake_gpu
from model_shapes import token_ids

IDS = token_ids()
BLOCK = 128


def coded(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix."""
    blocks = matrix.float().unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    codes = (blocks / scales).to(torch.float8_e4m3fn).reshape(matrix.shape)
    return codes, scales[:, 0, :, 0].contiguous()


def on_cpu(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, *_: Any, **options: Any
) -> torch.Tensor:
    """In the place of a kernel that wants a GPU: what the codes stand for, multiplied."""
    spread = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return F.linear(x, (weight.float() * spread).to(x.dtype), options["bias"])


def make() -> Any:
    """A Llama with the layers of transformers in the place of its linears."""
    model = make_plain()
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            made: Any = finegrained_fp8.FP8Linear(
                module.in_features,
                module.out_features,
                block_size=(BLOCK, BLOCK),
                has_bias=module.bias is not None,
            )
            codes, scales = coded(module.weight.detach())
            made.weight = nn.Parameter(codes, requires_grad=False)
            made.weight_scale_inv = nn.Parameter(scales, requires_grad=False)
            made.bias = module.bias
            model.model.layers.set_submodule(name, made)
    return model.eval()


def run(model: Any) -> list[Any]:
    with torch.no_grad():
        return [model(IDS).logits, model.generate(IDS, max_new_tokens=4, do_sample=False)]


@pytest.mark.parametrize("where", ["host", "fake GPU"])
def test_its_layers_are_streamed(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finegrained_fp8, "fp8_linear", on_cpu)
    if where == "fake GPU":
        use_fake_gpu(monkeypatch, homes=True)
    model, expected = make(), run(make())
    assert not ts.analyze(model).left
    offload_tightly(model, self_check=True)
    for _ in range(2):
        assert_same(run(model), expected)
    assert ts.stats(model).streamed_bytes > 0
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype is torch.float8_e4m3fn
    ts.restore(model)
    assert_same(run(model), expected, "restored")


def test_a_checkpoint_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU transformers makes bfloat16 of it as it loads."""
    use_fake_gpu(monkeypatch, homes=True)
    path = save(make_plain(), tmp_path / "model", "1GB")
    file = path / "model.safetensors"
    tensors = {}
    for name, value in load_file(file).items():
        if value.dim() == 2 and ".layers." in name:
            tensors[name], tensors[f"{name}_scale_inv"] = coded(value)
        else:
            tensors[name] = value
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }
    (path / "config.json").write_text(json.dumps(config))
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    plain = transformers.AutoModelForCausalLM.from_pretrained(path, device_map="cpu", **options)
    budget = ts.estimate_memory(plain).smallest_budget_bytes
    model = ts.from_pretrained(path, ram_budget=budget, self_check=True, **options)
    for _ in range(2):
        assert_same(run(model), run(plain))
    assert ts.stats(model).streamed_bytes > 0
