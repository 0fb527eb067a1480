"""transformers.pipeline() on an offloaded model gives what it gives on the plain one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

import tensorstream as ts
from conftest import hooks_of, offload_tightly, save, smallest_budget
from model_shapes import SHAPES, VOCABULARY

WORDS = "the quick brown fox jumps over a lazy dog and runs away".split()
TEXT = "the quick brown fox"


def _tokenizer() -> Any:
    """One token a word, and as many spare tokens as the models' vocabulary has room for."""
    names = ["[PAD]", "[UNK]", "[MASK]", *WORDS]
    names += [f"word{i}" for i in range(VOCABULARY - len(names))]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )


def _classifier(layers: int) -> Any:
    shape = SHAPES["bert"].make(layers)
    torch.manual_seed(3)
    config = copy.deepcopy(shape.config)
    config.num_labels = 3
    return transformers.BertForSequenceClassification(config).eval()


def _masked(layers: int) -> Any:
    torch.manual_seed(3)
    return transformers.BertForMaskedLM(SHAPES["bert"].make(layers).config).eval()


TASKS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "text-generation": (
        SHAPES["llama"].make,
        TEXT,
        {"max_new_tokens": 4, "do_sample": False, "return_tensors": True},
    ),
    "text-classification": (_classifier, TEXT, {"top_k": None}),
    "fill-mask": (_masked, "the quick [MASK] fox", {}),
    "feature-extraction": (SHAPES["bert"].make, TEXT, {}),
}


def _pipeline(task: str, model: Any) -> Any:
    return transformers.pipeline(task, model=model, tokenizer=_tokenizer(), device=-1)


@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_gives_the_same(task: str) -> None:
    make, text, options = TASKS[task]
    plain = make(3)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    ours, theirs = _pipeline(task, model), _pipeline(task, plain)
    assert ours.model is model and ours.device == theirs.device
    assert ours(text, **options) == theirs(text, **options)
    texts = [text, f"{text} {text}"]
    assert ours(texts, **options) == theirs(texts, **options), "a list"
    assert hooks_of(model), "the pipeline undid the offload"


def test_a_pipeline_over_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    plain = SHAPES["llama"].make(3)
    folder = save(plain, tmp_path)
    model = ts.from_pretrained(folder, ram_budget=smallest_budget(folder), self_check=True)
    _, text, options = TASKS["text-generation"]
    ours, theirs = (_pipeline("text-generation", either) for either in (model, plain))
    assert ours(text, **options) == theirs(text, **options)
    assert ts.stats(model).streamed_bytes > 0
