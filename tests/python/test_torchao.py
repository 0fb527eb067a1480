"""Weights that torchao quantised: their inner tensors are streamed, and what they compute is what it was."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

import tensorstream as ts
from bnb_models import make_plain
from conftest import assert_same, hooks_of, offload_tightly, save
from fake_gpu import use_fake_gpu
from model_shapes import token_ids
from tensorstream.true_values import ParkedWrapper

IDS = token_ids()
KINDS = ["int8", "float8", "int8 dynamic", "int4", "int4, int8 dynamic"]
DYNAMIC = [kind for kind in KINDS if "dynamic" in kind]  # no gradient goes through them


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    """Torchao warns as it is imported, of its own kernels for GPUs."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchao.quantization  # noqa: F401 - not at the top: on a GPU's machine it may be missing
    logging.disable(logging.NOTSET)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torchao\.")
        yield


def config(kind: str) -> Any:
    from torchao import quantization as ao

    return {
        "int8": ao.Int8WeightOnlyConfig,
        "float8": ao.Float8WeightOnlyConfig,
        "int8 dynamic": ao.Int8DynamicActivationInt8WeightConfig,
        "int4": lambda: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4),
        "int4, int8 dynamic": lambda: ao.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4
        ),
    }[kind]()


def make(kind: str) -> Any:
    """A Llama whose linears are quantised."""
    from torchao.quantization import quantize_

    model = make_plain()
    quantize_(model, config(kind))
    return model


def run(model: Any) -> list[Any]:
    """Logits of a prefill, and tokens."""
    with torch.no_grad():
        return [model(IDS).logits, model.generate(IDS, max_new_tokens=4, do_sample=False)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["host", "fake GPU"])
def test_outputs_are_bit_identical(kind: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "fake GPU":
        use_fake_gpu(monkeypatch, homes=True)
    plain, model = make(kind), make(kind)
    expected = run(plain)
    weight = model.model.layers[0].mlp.up_proj.weight
    own = type(weight)
    assert own is not nn.Parameter
    assert not ts.analyze(model).left
    estimate = ts.estimate_memory(model)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    assert 4 * smallest < fits
    for budget in (smallest, (smallest + fits) // 2):
        ts.offload(model, ram_budget=budget, self_check=True)
        for round_ in range(2):
            assert_same(run(model), expected, f"{budget} bytes, round {round_}")
        stats = ts.stats(model)
        assert stats.streamed_bytes > 0
        assert stats.peak_held_bytes <= budget
        assert isinstance(weight, own)
        assert_same(weight.dequantize(), plain.model.layers[0].mlp.up_proj.weight.dequantize())
        assert model.to("cpu").model.layers[0].mlp.up_proj.weight is weight
        ts.restore(model)
        assert type(weight) is own
        assert_same(run(model), expected, "restored")


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_transformers_quantises(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are loaded, and loaded again from files that are quantised, where they are ones to train."""
    use_fake_gpu(monkeypatch, homes=True)
    path = save(make_plain(), tmp_path / "plain")
    options: dict[str, Any] = {"device_map": "cpu", "dtype": torch.bfloat16}
    options["quantization_config"] = transformers.TorchAoConfig(config(kind))
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, plain = load(path, **options), load(path, **options)
    plain.save_pretrained(tmp_path / "quantised")
    budget = ts.estimate_memory(model).smallest_budget_bytes
    ts.offload(model, ram_budget=budget, self_check=True)
    assert_same(run(model), run(plain))
    model.save_pretrained(tmp_path / "of a streamed one")
    beside = load(tmp_path / "quantised", device_map="cpu", dtype=torch.bfloat16)
    budget_beside = ts.estimate_memory(beside).everything_fits_bytes
    ts.offload(beside, checkpoint=tmp_path / "quantised", ram_budget=budget_beside // 10 * 9)
    assert_same(run(beside), run(plain), "with the checkpoint named, they stay")
    assert not isinstance(beside.model.layers[0].mlp.up_proj.weight, ParkedWrapper)
    for folder in ("quantised", "of a streamed one"):
        again = ts.from_pretrained(tmp_path / folder, ram_budget=budget, self_check=True)
        assert hooks_of(again)
        assert isinstance(again.model.layers[0].mlp.up_proj.weight, ParkedWrapper)
        assert_same(run(again), run(plain), folder)
        assert ts.stats(again).streamed_bytes > 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DYNAMIC])
def test_adapters_beside_them_train(kind: str) -> None:
    gradients: list[dict[str, Any]] = []
    for model in (make(kind), offload_tightly(make(kind), self_check=True)):
        torch.manual_seed(7)
        options = peft.LoraConfig(
            r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False
        )
        with pytest.warns(UserWarning, match="get_apply_tensor_subclass"):  # of a merge
            adapted: Any = peft.get_peft_model(model, options)
        for _ in range(2):
            adapted(IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == len(gradients[1]) == 16
    for name, gradient in gradients[0].items():
        assert_same(gradients[1][name], gradient, name)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_are_compiled(kind: str) -> None:
    plain, model = make(kind), make(kind)
    for of in (model, plain):
        for layer in of.model.layers:
            layer.mlp.compile(backend="aot_eager")
    offload_tightly(model)
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(IDS).logits, plain(IDS).logits)
        ts.restore(model)
        assert_same(model(IDS).logits, plain(IDS).logits, "restored")
