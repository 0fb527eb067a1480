"""generate() in each of its modes gives the plain model's tokens and scores, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

import tensorstream as ts
from conftest import assert_same, offload_tightly
from model_shapes import SHAPES, token_ids

NEW_TOKENS = 6
STATIC = {"cache_implementation": "static", "disable_compile": True}
# What generate() is told; `num_beams` and the like are read from the model's own config otherwise.
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "greedy without a cache": {"do_sample": False, "use_cache": False},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2},
    "static cache": {"do_sample": False, **STATIC},
    "chunked prefill": {"do_sample": False, "prefill_chunk_size": 4},
    "repetition penalty": {
        "do_sample": False,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
    },
    "a batch": {"do_sample": False, "input_ids": token_ids(12).reshape(2, 6)},
}


def _generate(model: Any, **options: Any) -> Any:
    ids = options.pop("input_ids", token_ids())
    torch.manual_seed(17)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def _check(model: Any, plain: Any, options: Callable[[], dict[str, Any]]) -> None:
    expected = _generate(plain, **options())
    for _ in range(2):
        got = _generate(model, **options())
        assert_same(got.sequences, expected.sequences)
        assert_same(got.scores, expected.scores)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tokens_and_scores_are_the_plain_ones(name: str, mode: str) -> None:
    if name == "gpt2" and mode == "chunked prefill":
        name = "mistral"  # gpt2 has positions of its own for each chunk
    plain = SHAPES[name].make(3)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    _check(model, plain, lambda: dict(MODES[mode]))
    assert ts.stats(model).streamed_bytes > 0


@pytest.mark.parametrize("streamed", ["model", "assistant", "both"])
def test_assisted_generation(streamed: str) -> None:
    """A small model proposes tokens for a large one; either may be streamed."""
    plain, assistant = SHAPES["llama"].make(3), SHAPES["llama"].make(1)
    ours, theirs = copy.deepcopy(plain), copy.deepcopy(assistant)
    if streamed != "assistant":
        offload_tightly(ours, self_check=True)
    if streamed != "model":
        offload_tightly(theirs, self_check=True)
    expected = _generate(plain, assistant_model=assistant, do_sample=False)
    for _ in range(2):
        got = _generate(ours, assistant_model=theirs, do_sample=False)
        assert_same(got.sequences, expected.sequences)
        assert_same(got.scores, expected.scores)


def test_an_encoder_decoder_in_beams() -> None:
    plain = SHAPES["t5"].make(3)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    _check(model, plain, lambda: {"do_sample": False, "num_beams": 3})


def test_a_cache_that_goes_on_over_calls() -> None:
    """One cache object through the prefill and two more calls; it is the caller's own at the end."""
    plain = SHAPES["llama"].make(3)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    caches: list[Any] = []
    for either in (plain, model):
        cache = transformers.DynamicCache(config=either.config)
        with torch.no_grad():
            for seed in range(3):
                output = either(token_ids(4, seed), past_key_values=cache, use_cache=True)
                assert output.past_key_values is cache
        caches.append([(layer.keys, layer.values) for layer in cache.layers])
    assert_same(caches[1], caches[0])


def test_a_streamer_and_stopping_criteria_see_each_token() -> None:
    class Noted(transformers.generation.streamers.BaseStreamer):
        def __init__(self) -> None:
            self.values: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.values.append(value.tolist())

        def end(self) -> None:
            self.values.append("end")

    class AfterThree(transformers.StoppingCriteria):
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), ids.shape[1] >= token_ids().shape[1] + 3)

    plain = SHAPES["llama"].make(3)
    model = offload_tightly(copy.deepcopy(plain))
    noted = [Noted(), Noted()]
    for either, streamer in zip((plain, model), noted, strict=True):
        _generate(
            either,
            do_sample=False,
            streamer=streamer,
            stopping_criteria=transformers.StoppingCriteriaList([AfterThree()]),
        )
    assert noted[0].values == noted[1].values
    assert len(noted[0].values) == 1 + 3 + 1


def test_generate_under_autocast_and_in_inference_mode() -> None:
    plain = SHAPES["llama"].make(3)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        _check(model, plain, lambda: {"do_sample": False})
    _check(model, plain, lambda: {"do_sample": False})
