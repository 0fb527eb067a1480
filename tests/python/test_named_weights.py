"""Weights that a config names (transformers_weights): what transformers loads by it, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tensorstream as ts
from conftest import assert_same, hooks_of, save, smallest_budget
from model_shapes import SHAPES, token_ids

KEY = "transformers_weights"
ASKED = {
    "from_pretrained": lambda path: ts.from_pretrained(path, ram_budget="1GiB", device="cpu"),
    "plan": lambda path: ts.plan(path, ram_budget="1GiB", device="cpu"),
    "estimate_memory": ts.estimate_memory,
    "analyze": ts.analyze,
}


def _model(*, doubled: bool) -> Any:
    model = SHAPES["llama"].make(3)
    if doubled:
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
    return model


def _name(folder: Path, name: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {KEY: name}))
    return folder


def _two_weights(tmp_path: Path, shard: str = "1GB") -> Path:
    """A folder with the usual weights, and doubled ones that its config names."""
    folder = save(_model(doubled=False), tmp_path / "model", shard="1GB")
    other = save(_model(doubled=True), tmp_path / "other", shard=shard)
    for path in other.glob("model*"):
        path.rename(folder / f"other{path.name.removeprefix('model')}")
    name = "other.safetensors.index.json" if shard != "1GB" else "other.safetensors"
    if shard != "1GB":
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"model-', '"other-'))
    return _name(folder, name)


def _logits(model: Any) -> Any:
    with torch.no_grad():
        return model(token_ids()).logits


@pytest.mark.parametrize("shard", ["1GB", "400KB"])
def test_they_are_what_is_loaded(shard: str, tmp_path: Path) -> None:
    folder = _two_weights(tmp_path, shard)
    expected = _logits(_model(doubled=True))
    assert_same(_logits(transformers.AutoModelForCausalLM.from_pretrained(folder)), expected)
    smallest = smallest_budget(folder)
    model = ts.from_pretrained(folder, ram_budget=smallest, device="cpu")
    assert hooks_of(model) and ts.stats(model).source_ram_bytes == 0
    assert_same(_logits(model), expected)
    with torch.device("meta"):
        bare = transformers.LlamaForCausalLM(model.config).eval()
    bare.model.rotary_emb = type(bare.model.rotary_emb)(model.config)
    ts.offload(bare, checkpoint=folder, ram_budget=smallest, device="cpu")
    assert_same(_logits(bare), expected)


def test_they_are_taken_where_the_usual_are_missing(tmp_path: Path) -> None:
    folder = _two_weights(tmp_path)
    (folder / "model.safetensors").rename(folder / "third.safetensors")
    for ask in ASKED.values():
        ask(folder)
    model = ts.from_pretrained(folder, ram_budget=smallest_budget(folder), device="cpu")
    assert_same(_logits(model), _logits(_model(doubled=True)))


def test_a_config_that_is_given_says_which(tmp_path: Path) -> None:
    folder = _two_weights(tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.transformers_weights
    for given, doubled in (
        ({"config": config}, False),
        ({KEY: "model.safetensors"}, False),
        ({}, True),
    ):
        model = ts.from_pretrained(folder, ram_budget="1GiB", device="cpu", **given)
        assert_same(_logits(model), _logits(_model(doubled=doubled)))


@pytest.mark.parametrize("call", ASKED)
def test_what_cannot_be_loaded_is_said(call: str, tmp_path: Path) -> None:
    folder, ask = _two_weights(tmp_path), ASKED[call]
    other = folder / "other.safetensors"
    other.write_bytes(other.read_bytes()[:5000])
    with pytest.raises(ts.FormatError, match=r"other\.safetensors"):
        ask(folder)
    other.unlink()
    for name, says in (
        ("other.safetensors", "no such file"),
        ("../other.safetensors", "outside"),
        ("model.bin", "no safetensors file"),
        (5, "no safetensors file"),
    ):
        with pytest.raises(ts.ConfigError, match=says):
            ask(_name(folder, name))


def test_they_are_not_packed(tmp_path: Path) -> None:
    folder = _two_weights(tmp_path)
    with pytest.raises(ts.ConfigError, match=r"'other\.safetensors'.*remove that key"):
        ts.pack(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    ts.pack(_name(folder, None), tmp_path / "packed")


def test_a_packed_folder_gives_no_others(tmp_path: Path) -> None:
    folder = save(_model(doubled=False), tmp_path / "model", shard="1GB")
    packed = tmp_path / "packed"
    ts.pack(folder, packed)
    _name(packed, "other.safetensors")
    for ask in ASKED.values():
        with pytest.raises(ts.ConfigError, match=r"no such file.*tensorstream\.unpack"):
            ask(packed)
    other = save(_model(doubled=True), tmp_path / "other", shard="1GB")
    (other / "model.safetensors").rename(packed / "other.safetensors")
    model = ts.from_pretrained(packed, ram_budget=smallest_budget(packed), device="cpu")
    assert_same(_logits(model), _logits(_model(doubled=True)))
