"""Arguments and configs that cannot be used: one typed error each, that says what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

import tensorstream as ts
from conftest import assert_same, save
from model_shapes import SHAPES, make_stack, token_ids


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SHAPES["llama"].make(2), tmp_path_factory.mktemp("original") / "llama")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "llama"))


CONFIG_TEXTS = {
    "a list": "[]",
    "no type": "{}",
    "another type": '{"model_type": "zork"}',
    "a field of another type": '{"model_type": "llama", "hidden_size": "x"}',
    "no JSON": "{",
    "classes as text": '{"model_type": "llama", "architectures": "LlamaForCausalLM"}',
}


@pytest.mark.parametrize("text", CONFIG_TEXTS.values(), ids=CONFIG_TEXTS)
def test_configs_that_transformers_cannot_use(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    for call in (ts.from_pretrained, ts.plan, lambda path, **_: ts.analyze(path)):
        with pytest.raises(ts.ConfigError, match=re.escape(str(folder))):
            call(folder, ram_budget="1GiB")


PATHS = [None, 3, b"folder", "a\0b", "\udcff\udcfe"]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_path(path: Any, tmp_path: Path) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ts.from_pretrained(path, ram_budget="1GiB"),
        lambda: ts.pack(path, tmp_path / "packed"),
        lambda: ts.verify(path),
        lambda: ts.unpack(tmp_path, path),
        lambda: ts.plan(path, ram_budget="1GiB"),
        lambda: ts.estimate_memory(path),
    ]
    if path is not None:
        calls.append(lambda: ts.offload(make_stack(2), checkpoint=path, ram_budget="1GiB"))
    for call in calls:
        with pytest.raises(ts.ConfigError, match="path"):
            call()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_safetensors": False}, "use_safetensors is False"),
        ({"output_loading_info": True}, "output_loading_info is True"),
        ({"model_class": "LlamaForCausalLM"}, "model_class is 'LlamaForCausalLM'"),
        ({"model_class": nn.Linear}, "model_class is"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"config": {"a": 1}}, "config is dict"),
        ({"dtype": "float17"}, "dtype is 'float17'"),
        ({"torch_dtype": 3}, "dtype is 3"),
        ({"attn_implementation": "no such"}, "no such"),
    ],
)
def test_options_of_transformers_that_cannot_be_used(
    options: dict[str, Any], says: str, original: Path, tmp_path: Path
) -> None:
    ts.pack(original, tmp_path / "packed")
    for folder in (original, tmp_path / "packed"):
        with pytest.raises(ts.ConfigError, match=says):
            ts.from_pretrained(folder, ram_budget="1GiB", **options)


def test_options_of_transformers_that_change_nothing(original: Path, tmp_path: Path) -> None:
    ts.pack(original, tmp_path / "packed")
    for folder in (original, tmp_path / "packed"):
        model = ts.from_pretrained(
            folder, ram_budget="1GiB", use_safetensors=True, output_loading_info=False
        )
        assert isinstance(model, transformers.LlamaForCausalLM)


def test_a_config_of_transformers_is_that_of_the_model(original: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(original)
    config.rms_norm_eps = 0.5
    plain = transformers.LlamaForCausalLM.from_pretrained(original, config=config)
    ts.pack(original, tmp_path / "packed")
    for folder in (original, tmp_path / "packed"):
        for auto in (None, transformers.AutoModelForCausalLM):
            model = ts.from_pretrained(folder, config, model_class=auto, ram_budget="1GiB")
            assert_same(model(token_ids()), plain(token_ids()))
    assert config.rms_norm_eps == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"level": 2**40},
        {"level": 10},
        {"threads": 2**40},
        {"threads": 0},
        {"progress": 3},
    ],
)
def test_options_of_packing_that_cannot_be_used(
    options: dict[str, Any], original: Path, tmp_path: Path
) -> None:
    calls = [lambda: ts.pack(original, tmp_path / "packed", **options)]
    if "level" not in options:
        calls.append(lambda: ts.verify(original, **options))
    for call in calls:
        with pytest.raises(ts.ConfigError, match=f"{next(iter(options))} is "):
            call()
    assert not (tmp_path / "packed").exists()
