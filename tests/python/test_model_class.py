"""Which class from_pretrained takes: the one that a config names, of transformers or of its own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import tensorstream as ts
from conftest import assert_same, save, smallest_budget
from model_shapes import SHAPES, token_ids

CODE = """from transformers.models.llama.modeling_llama import LlamaForCausalLM as Base


class {name}(Base):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers puts the code of repositories."""
    monkeypatch.setattr(tf.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def _save(folder: Path, name: str, changed: dict[str, Any]) -> Path:
    save(SHAPES["llama"].make(3), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    (folder / "modeling_own.py").write_text(CODE.format(name=name))
    return folder


def _mapped(name: str) -> dict[str, Any]:
    return {"auto_map": {"AutoModelForCausalLM": f"modeling_own.{name}"}, "architectures": [name]}


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "OwnLM"])
def test_trusted_code_is_what_runs(name: str, tmp_path: Path) -> None:
    folder = _save(tmp_path / "own", name, _mapped(name))
    base = SHAPES["llama"].make(3)
    model = ts.from_pretrained(folder, trust_remote_code=True, ram_budget=smallest_budget(base))
    assert type(model).__module__.startswith("transformers_modules.")
    assert type(model).__name__ == name
    with torch.no_grad():
        expected = base(token_ids()).logits * 2
        assert_same(model(token_ids()).logits, expected)
    for call in (ts.plan, ts.analyze, ts.estimate_memory):
        for options in ({"trust_remote_code": True}, {"model_class": tf.LlamaForCausalLM}):
            assert call(folder, **options)
    assert not tf.AutoModelForCausalLM._model_mapping._extra_content
    assert model.generate(token_ids()[:1], max_new_tokens=2).shape[1] == token_ids().shape[1] + 2


@pytest.mark.usefixtures("modules")
def test_code_that_is_not_trusted_does_not_run(tmp_path: Path) -> None:
    folder = _save(tmp_path / "known", "LlamaForCausalLM", _mapped("LlamaForCausalLM"))
    model = ts.from_pretrained(folder, ram_budget="1GB")  # as Auto classes do
    assert type(model) is tf.LlamaForCausalLM
    folder = _save(tmp_path / "own", "OwnLM", _mapped("OwnLM"))
    for call in (ts.from_pretrained, ts.plan, lambda path, **_: ts.analyze(path)):
        with pytest.raises(
            ts.ConfigError, match=r"names OwnLM.*trust_remote_code=True.*model_class="
        ):
            call(folder, ram_budget="1GB")


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("class OwnError(Exception): pass\nraise OwnError('not here')\n", "OwnError: not here"),
        ("import queue\nqueue.Queue().get(block=False)\n", "Empty"),
    ],
)
def test_code_that_fails_is_said(code: str, message: str, tmp_path: Path) -> None:
    folder = _save(tmp_path / "own", "OwnLM", _mapped("OwnLM"))
    (folder / "modeling_own.py").write_text(code)
    for call in (ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze):
        with pytest.raises(ts.ConfigError, match=message) as raised:
            call(folder, trust_remote_code=True)
        assert str(folder) in str(raised.value) and raised.value.__cause__ is not None


@pytest.mark.usefixtures("modules")
def test_code_that_has_another_class_than_the_config_names_is_refused(tmp_path: Path) -> None:
    changed = _mapped("OwnLM") | {"architectures": ["LlamaForCausalLM"]}
    folder = _save(tmp_path / "own", "OwnLM", changed)
    with pytest.raises(ts.ConfigError, match=r"names LlamaForCausalLM, and its code has OwnLM"):
        ts.from_pretrained(folder, trust_remote_code=True, ram_budget="1GB")
    options: dict[str, Any] = {"trust_remote_code": True, "ram_budget": "1GB"}
    model = ts.from_pretrained(folder, model_class=tf.LlamaForCausalLM, **options)
    assert type(model) is tf.LlamaForCausalLM


@pytest.mark.parametrize("names", [["OwnLM"], ["pipeline"], ["LlamaConfig"]])
def test_a_class_that_transformers_lacks_is_refused(names: list[str], tmp_path: Path) -> None:
    folder = _save(tmp_path / "own", "OwnLM", {"architectures": names})
    for call in (ts.from_pretrained, ts.plan):
        with pytest.raises(ts.ConfigError, match=rf"names {names[0]}, of which .*model_class="):
            call(folder, ram_budget="1GB")
    model = ts.from_pretrained(folder, model_class=tf.LlamaForCausalLM, ram_budget="1GB")
    assert type(model) is tf.LlamaForCausalLM


def test_a_config_that_names_no_class_gives_the_base_model(tmp_path: Path) -> None:
    folder = _save(tmp_path / "own", "OwnLM", {"architectures": None})
    assert type(ts.from_pretrained(folder, ram_budget="1GB")) is tf.LlamaModel


class OwnConfig(tf.LlamaConfig):
    model_type = "own_of_test_model_class"


class RegisteredLM(tf.LlamaForCausalLM):
    config_class = OwnConfig


def test_a_class_that_the_user_registered_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SHAPES["llama"].make(3)
    RegisteredLM(OwnConfig(**plain.config.to_dict())).save_pretrained(tmp_path)
    mapping = tf.AutoModelForCausalLM._model_mapping
    monkeypatch.setitem(mapping._extra_content, OwnConfig, RegisteredLM)
    monkeypatch.setitem(
        tf.models.auto.configuration_auto.CONFIG_MAPPING._extra_content,
        OwnConfig.model_type,
        OwnConfig,
    )
    assert type(ts.from_pretrained(tmp_path, ram_budget="1GB")) is RegisteredLM
