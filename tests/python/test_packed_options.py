"""Options of from_pretrained beside packed checkpoints: what transformers makes of them for plain ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tensorstream as ts
from conftest import assert_same, save
from model_shapes import SHAPES
from packed_folders import assert_same_model, budgets_of, packed_of


@pytest.mark.parametrize("of_auto", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"eos_token_id": 749},
        {"pad_token_id": 7},
        {"use_cache": False},
        {"output_attentions": True, "attn_implementation": "eager"},
        {"low_cpu_mem_usage": True, "dtype": torch.bfloat16},
        {"state_dict": None, "device_map": None, "force_download": False},
    ],
)
def test_options_reach_what_is_generated_by(
    options: dict[str, Any], of_auto: bool, tmp_path: Path
) -> None:
    llama = SHAPES["llama"]
    source, packed = packed_of(llama.make(2), tmp_path)
    loader = transformers.AutoModelForCausalLM if of_auto else transformers.LlamaForCausalLM
    plain = loader.from_pretrained(source, **options)
    for folder in (source, packed):
        model = ts.from_pretrained(
            folder, model_class=loader if of_auto else None, ram_budget="1GiB", **options
        )
        assert model.generation_config.to_dict() == plain.generation_config.to_dict()
        prompt = llama.prompt()
        generated = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        assert_same(generated, plain.generate(**prompt, max_new_tokens=12, do_sample=False))


def test_a_type_that_the_index_names(tmp_path: Path) -> None:
    """It counts where neither an option nor the config says which."""
    source = save(SHAPES["llama"].make(2), tmp_path / "source", shard="200KB")
    index = source / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["metadata"]["dtype"] = "bfloat16"
    index.write_text(json.dumps(fields))
    config = source / "config.json"
    kept = {
        name: value for name, value in json.loads(config.read_text()).items() if name != "dtype"
    }
    config.write_text(json.dumps(kept))
    ts.pack(source, tmp_path / "packed")
    plain = transformers.LlamaForCausalLM.from_pretrained(source)
    assert plain.dtype == torch.bfloat16
    for folder in (source, tmp_path / "packed"):
        model = ts.from_pretrained(folder, ram_budget=budgets_of(folder)[0])
        assert_same_model(model, plain)
        for options in ({"dtype": torch.float16}, {"dtype": "auto"}):
            expected = transformers.LlamaForCausalLM.from_pretrained(source, **options)
            assert_same_model(ts.from_pretrained(folder, ram_budget="1GiB", **options), expected)


def test_a_class_that_loads_in_its_own_way(tmp_path: Path) -> None:
    class Speaks(transformers.LlamaForCausalLM):
        @classmethod
        def from_pretrained(cls, path: Any, **options: Any) -> Any:
            model = super().from_pretrained(path, **options)
            model.load_speakers(path)
            return model

        def load_speakers(self, path: Any) -> None:
            """As of files beside the weights."""

    Speaks.__module__ = "transformers.models.speaks"
    source, packed = packed_of(SHAPES["llama"].make(2), tmp_path)
    for folder in (source, packed):
        with pytest.raises(ts.UnsupportedError, match=r"offload\(\)"):
            ts.from_pretrained(folder, model_class=Speaks, ram_budget="1GiB")
