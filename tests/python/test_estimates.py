"""estimate_memory and plan of a path: what they promise is what from_pretrained needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import placements, save
from hub_cache import add_to_cache
from model_shapes import SHAPES
from tensorstream.loading import describe


def _made(model_class: Any, config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return model_class(config).eval()


def _mixtral() -> nn.Module:
    """Its files have each expert by itself, and loading merges them."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    return _made(tf.MixtralForCausalLM, tf.MixtralConfig(vocab_size=500, **sizes, **heads))


def _t5() -> nn.Module:
    """Some of its weights stay float32 where the others are float16."""
    sizes = {"d_model": 128, "d_ff": 384, "num_layers": 3, "num_heads": 4, "d_kv": 32}
    return _made(tf.T5ForConditionalGeneration, tf.T5Config(vocab_size=500, **sizes))


def _deepseek() -> nn.Module:
    """A buffer of its routers stays float32, and its files have each expert by itself."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16}
    ranks = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    shape = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "vocab_size": 500}
    config = tf.DeepseekV3Config(**sizes, **heads, **ranks, **experts, **shape)
    return _made(tf.DeepseekV3ForCausalLM, config)


def _base() -> nn.Module:
    """Its names have no prefix in files, and one in the model of the class below."""
    return SHAPES["bert"].make(3)


CASES: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "as it is": (lambda: SHAPES["llama"].make(4), None, "none"),
    "its own type by name": (lambda: SHAPES["llama"].make(4), "float32", "none"),
    "tied": (lambda: SHAPES["gpt2"].make(3), None, "none"),
    "without a prefix": (_base, None, "none"),
    "cast": (lambda: SHAPES["llama"].make(4), torch.bfloat16, "all"),
    "cast by name": (lambda: SHAPES["llama"].make(4), "bfloat16", "all"),
    "merged": (_mixtral, None, "some"),
    "a buffer kept": (lambda: _deepseek().bfloat16(), None, "some"),
    "some cast": (lambda: _t5().half(), torch.float16, "some"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_smallest_budget_is_the_smallest(case: str, packed: bool, tmp_path: Path) -> None:
    make, dtype, made = CASES[case]
    folder = save(make(), tmp_path / "model")
    if packed:
        ts.pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    options = {} if dtype is None else {"dtype": dtype}
    estimate = ts.estimate_memory(folder, **options)
    smallest = estimate.smallest_budget_bytes
    model = ts.from_pretrained(folder, ram_budget=smallest, **options)
    assert sum(p.nbytes for p in model.parameters()) == estimate.weights_bytes
    assert ts.stats(model).peak_held_bytes <= smallest
    assert placements(folder, smallest, **options)
    with pytest.raises(ts.BudgetError) as raised:
        ts.from_pretrained(folder, ram_budget=smallest - 1, **options)
    assert raised.value.needed_bytes == smallest
    names = describe(str(folder), dtype).made
    weights = {name for name, _ in model.named_parameters()}
    assert {"none": not names, "all": names >= weights, "some": names and names < weights}[made]


@pytest.mark.parametrize(
    "dtype", [3, "float17", "nn", "int8", torch.int8, torch.nn, ["bfloat16"], {"": 3}, {"": {}}]
)
def test_types_that_are_none_are_refused(dtype: Any, tmp_path: Path) -> None:
    folder = save(SHAPES["llama"].make(2), tmp_path / "model")
    for call in (ts.analyze, ts.estimate_memory, ts.plan, ts.from_pretrained):
        with pytest.raises(ts.ConfigError, match="dtype is "):
            call(folder, dtype=dtype)


def test_types_that_no_model_is_of_are_refused(tmp_path: Path) -> None:
    folder = save(SHAPES["llama"].make(2), tmp_path / "model")
    for dtype in (torch.float8_e4m3fn, "float8_e5m2", {"": torch.float8_e4m3fn}):
        for call in (ts.plan, ts.from_pretrained):
            with pytest.raises(
                ts.ConfigError, match="in which torch builds no model: give bfloat16"
            ):
                call(folder, dtype=dtype)
    with pytest.raises(ts.ConfigError, match=r"a type of 'a', which is no part.*types of ''"):
        ts.from_pretrained(folder, dtype={"a": torch.float16})
    half = ts.from_pretrained(folder, dtype={"": torch.float16}, ram_budget="1GB")
    assert half.dtype == torch.float16


def test_types_are_taken_by_name_as_from_pretrained_takes_them(tmp_path: Path) -> None:
    folder = save(SHAPES["llama"].make(2), tmp_path / "model")
    for name, dtype in (("bfloat16", torch.bfloat16), ("auto", torch.float32)):
        assert ts.analyze(folder, dtype=name) == ts.analyze(folder, dtype=dtype)
        assert ts.from_pretrained(folder, dtype=name, ram_budget="1GB").dtype == dtype
    with pytest.raises(ts.ConfigError, match="one model"):
        ts.plan(folder, dtype={"unet": "bfloat16"}, ram_budget="1GB")


def test_what_finds_a_model_is_taken_as_from_pretrained_takes_it(tmp_path: Path) -> None:
    small, large = SHAPES["llama"].make(2), SHAPES["llama"].make(3)
    add_to_cache(tmp_path / "cache", "a/b", save(small, tmp_path / "one"), commit="1" * 40)
    save(large, tmp_path / "two" / "below")
    large.save_pretrained(tmp_path / "two" / "below", variant="fp32")
    for each in (tmp_path / "two" / "below").glob("model-*"):
        each.unlink()
    (tmp_path / "two" / "below" / "model.safetensors.index.json").unlink()
    folder = tmp_path / "two"
    add_to_cache(tmp_path / "cache", "a/b", folder, commit="2" * 40, ref="v2")
    below: dict[str, Any] = {"subfolder": "below", "variant": "fp32"}
    for options, where, layers in (
        ({"cache_dir": tmp_path / "cache"}, "a/b", 2),
        ({"cache_dir": tmp_path / "cache", "revision": "v2", **below}, "a/b", 3),
        (below, folder, 3),
        ({"model_class": tf.LlamaForCausalLM, **below}, folder, 3),
    ):
        model = ts.from_pretrained(where, ram_budget="1GB", **options)
        assert model.config.num_hidden_layers == layers
        weights = sum(p.nbytes for p in model.parameters())
        assert ts.analyze(where, **options).weights_bytes == weights
        assert ts.plan(where, ram_budget="1GB", **options).resident_bytes >= weights
        smallest = ts.estimate_memory(where, **options).smallest_budget_bytes
        assert ts.from_pretrained(where, ram_budget=smallest, **options)
    for call in (ts.analyze, ts.estimate_memory, ts.plan):
        with pytest.raises(ts.ConfigError, match="unknown option 'variants'"):
            call(folder, variants="fp32")
        with pytest.raises(ts.ConfigError, match="variant is for a path"):
            call(large, variant="fp32")


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"other.{name}": value for name, value in weights.items()}


DAMAGE: dict[str, tuple[Callable[..., dict[str, torch.Tensor]], str]] = {
    "one missing": (lambda weights: dict(list(weights.items())[1:]), "1 weights are missing"),
    "none": (lambda weights: {}, "weights are missing"),
    "other names": (_renamed, "weights are missing"),
    "another shape": (
        lambda weights: weights | {"model.norm.weight": torch.zeros(3)},
        r"of another shape, 'model\.norm\.weight'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("packed", [False, True])
def test_what_cannot_be_loaded_is_not_planned(damage: str, packed: bool, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    folder = save(SHAPES["llama"].make(2), tmp_path / "model", shard="1GB")
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    if packed and damage != "none":
        ts.pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    for call in (ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze):
        with pytest.raises(ts.ConfigError, match=message):
            call(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.fp16.safetensors"], r"variant alone: give variant='fp16'"),
        (["model.fp16.safetensors", "model.int8.safetensors"], "variant='fp16', variant='int8'"),
        (["model.fp16-00001-of-00002.safetensors"], "give variant='fp16'"),
        (["weights.safetensors"], r"no 'model\.safetensors', but 'weights\.safetensors'"),
        (["model-00001-of-00002.safetensors"], r"'model\.safetensors\.index\.json' is missing"),
        ([f"model-0000{i}-of-00002.safetensors" for i in (1, 2)], r"index\.json' is missing"),
    ],
)
def test_files_that_no_library_looks_for(names: list[str], message: str, tmp_path: Path) -> None:
    folder = save(SHAPES["llama"].make(2), tmp_path, shard="1GB")
    for name in names:
        shutil.copyfile(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    for call in (ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze):
        with pytest.raises(ts.ConfigError, match=message):
            call(folder)
    if "missing" in message:
        (folder / "model-00002-of-00002.safetensors").touch()
        with pytest.raises(ts.ConfigError, match=message):
            ts.offload(SHAPES["llama"].make(2), checkpoint=folder)


def test_planning_shows_no_progress_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save(SHAPES["llama"].make(2), tmp_path)
    tf.logging.enable_progress_bar()
    try:
        ts.estimate_memory(folder)
        assert "Loading" not in capfd.readouterr().err
        assert tf.utils.logging.is_progress_bar_enabled()
    finally:
        tf.logging.disable_progress_bar()


def _refuse_loading(monkeypatch: pytest.MonkeyPatch, *classes: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded")

    for each in classes:
        monkeypatch.setattr(each, "from_pretrained", refuse)


CASTS: dict[str, dict[str, Any]] = {
    "asked for": {"dtype": torch.float32},
    "by its older name": {"torch_dtype": "float32"},
    "a variant": {"variant": "bf16"},
    "a config": {"config": tf.LlamaConfig(dtype="float32")},
    "as packed": {"dtype": torch.float32},
}


@pytest.mark.parametrize("case", CASTS)
def test_what_is_cast_beyond_the_budget_is_not_cast(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, options = SHAPES["llama"].make(4), dict(CASTS[case])
    folder = save(plain, tmp_path / "model")
    if "variant" in options:
        plain.bfloat16().save_pretrained(folder, variant="bf16")
        plain.config.dtype = torch.float32
        plain.config.save_pretrained(folder)
    else:
        folder = save(plain.bfloat16(), tmp_path / "half")
    if "config" in options:
        options["config"] = tf.LlamaConfig(**{**plain.config.to_dict(), "dtype": "float32"})
    if case == "as packed":
        ts.pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    asked = {name: value for name, value in options.items() if name in ("dtype", "variant")}
    needed = ts.estimate_memory(folder, **({"dtype": "float32"} | asked)).smallest_budget_bytes
    assert ts.from_pretrained(folder, ram_budget=needed, **dict(options))
    _refuse_loading(monkeypatch, tf.LlamaForCausalLM)
    cast = r"loading casts weights of bfloat16.*give dtype=torch\.bfloat16"
    with pytest.raises(ts.BudgetError, match=cast) as raised:
        ts.from_pretrained(folder, ram_budget=needed - 1, **dict(options))
    assert (raised.value.needed_bytes, raised.value.budget_bytes) == (needed, needed - 1)


def test_another_transformers_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import conversion_mapping

    path = save(SHAPES["llama"].make(3), tmp_path / "model")
    monkeypatch.delattr(conversion_mapping, "get_model_conversion_mapping")
    with pytest.raises(ts.UnsupportedError, match="get_model_conversion_mapping"):
        ts.estimate_memory(path)


def test_options_that_change_the_model_are_left_to_loading(tmp_path: Path) -> None:
    folder = save(SHAPES["llama"].make(4).bfloat16(), tmp_path / "model")
    budget = ts.analyze(folder).weights_bytes * 3 // 2  # less than all of it cast takes
    smaller = ts.from_pretrained(
        folder, ram_budget=budget, dtype=torch.float32, num_hidden_layers=1
    )
    assert smaller.config.num_hidden_layers == 1
