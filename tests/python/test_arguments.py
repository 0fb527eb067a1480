"""Arguments and configs that cannot be used: one typed error each, that says what to do."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError
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
    "a divisor that is 0": '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 0}',
    "an index out of bounds": '{"model_type": "llama", "vocab_size": 100, "pad_token_id": 5000}',
    "more bytes than there are addresses": '{"model_type": "llama", "hidden_size": 1000000000000}',
    "too deep": '{"a":' * 50_000 + "1" + "}" * 50_000,
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
        ({"subfolder": 5}, "subfolder is 5"),
        ({"cache_dir": 5}, "cache_dir is 5"),
        ({"revision": 5}, "revision is 5"),
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
        {"level": True},
        {"threads": 0},
        {"threads": 1.0},
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


class _Refused(transformers.LlamaForCausalLM):
    raised: BaseException

    def __init__(self, config: Any) -> None:
        raise self.raised


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (NotImplementedError("text"), ts.ConfigError),
        (ZeroDivisionError("text"), ts.ConfigError),
        (RuntimeError("text"), ts.ConfigError),
        (IndexError("text"), ts.ConfigError),
        (SafetensorError("text"), ts.ConfigError),
        (torch.OutOfMemoryError("text"), torch.OutOfMemoryError),
        (ts.BudgetError("text"), ts.BudgetError),
        (KeyboardInterrupt("text"), KeyboardInterrupt),
    ],
)
def test_what_a_library_raises_is_typed(
    raised: BaseException,
    expected: type[BaseException],
    original: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Refused, "raised", raised, raising=False)
    with pytest.raises(expected, match="text") as caught:
        ts.from_pretrained(original, model_class=_Refused, ram_budget="1GiB")
    if expected is ts.ConfigError:
        assert caught.value.__cause__ is raised
    else:
        assert caught.value is raised


def test_packages_that_are_missing_are_named(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = (ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze)
    config = transformers.LlamaConfig()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "transformers", None)
        for call in calls:
            with pytest.raises(ts.UnsupportedError, match="pip install transformers"):
                call(original)
        with pytest.raises(ts.UnsupportedError, match=r"config= .*pip install transformers"):
            ts.from_pretrained(original, config)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in calls:
        with pytest.raises(ts.UnsupportedError, match="pip install huggingface_hub"):
            call("somebody/tiny-llama")


def test_a_config_without_a_class_leaves_it_to_the_folder(original: Path, tmp_path: Path) -> None:
    stored = transformers.AutoConfig.from_pretrained(original)
    config = transformers.LlamaConfig(**stored.to_dict() | {"architectures": None})
    plain = transformers.LlamaForCausalLM.from_pretrained(original)
    ts.pack(original, tmp_path / "packed")
    for folder in (original, tmp_path / "packed"):
        model = ts.from_pretrained(folder, config, ram_budget="1GiB")
        assert type(model) is transformers.LlamaForCausalLM
        assert_same(model(token_ids()), plain(token_ids()))
    other = transformers.MistralConfig(**config.to_dict() | {"model_type": "mistral"})
    assert type(ts.from_pretrained(original, other, ram_budget="1GiB")) is transformers.MistralModel


@pytest.mark.parametrize("option", ["backend", "prefetch", "pressure", "compression"])
@pytest.mark.parametrize("value", [["auto"], {"auto": 1}, None, True, b"auto", object()])
def test_choices_that_are_none(option: str, value: Any) -> None:
    with pytest.raises(ts.ConfigError, match=f"{option} is .*it can be"):
        ts.Config(**{option: value})


def test_devices_and_checks_that_are_none() -> None:
    calls: list[Callable[[], Any]] = [
        lambda: ts.Config(device=object()),  # type: ignore[arg-type]
        lambda: ts.Config(device="zork"),
        lambda: ts.probe_backends(object()),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(ts.ConfigError, match=r"device is .*'cuda:N'"):
            call()
    for value in ("no", 1, None):
        with pytest.raises(ts.ConfigError, match=r"self_check is .*True or False"):
            ts.Config(self_check=value)  # type: ignore[arg-type]


def test_whole_numbers_may_be_of_any_integral_type(original: Path, tmp_path: Path) -> None:
    assert ts.Config(ram_budget=np.int64(1 << 30)).budget_bytes() == 1 << 30
    with pytest.raises(ts.ConfigError, match="ram_budget is "):
        ts.Config(ram_budget=np.float64(1e9)).budget_bytes()
    assert ts.Config(device="cpu", compression=np.uint8(4)).compression_level == 4
    ts.pack(original, tmp_path / "packed", level=np.int64(1), threads=np.int32(2))
    ts.verify(tmp_path / "packed", threads=np.int32(2))
