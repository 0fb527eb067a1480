"""Weights that bitsandbytes quantised on a real GPU stay there, and the rest is streamed, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tensorstream as ts
from bnb_models import (
    BITS,
    LINEARS,
    NAMES,
    STAY,
    make_plain,
    make_quantised,
    move_the_rest,
    quantisable,
    quantised_by_transformers,
    weight_class,
)
from conftest import assert_same, hooks_of, same_bytes, save
from model_shapes import token_ids
from test_gpu import DEVICE, budgets_of, tiny

pytestmark = pytest.mark.needs_gpu

STEPS = 4


def prefill_and_decode(model: Any) -> list[torch.Tensor]:
    """Logits of a prompt, and of each of the tokens that follow it."""
    ids = token_ids().to(DEVICE)
    cache = None
    logits = []
    with torch.no_grad():
        for _ in range(1 + STEPS):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            logits.append(output.logits)
            cache = output.past_key_values
            ids = output.logits[:, -1:].argmax(-1)
    return logits


def expected_of(model: Any) -> list[torch.Tensor]:
    """What `model` gives while all of it is on the GPU."""
    expected = prefill_and_decode(model)
    assert_same(prefill_and_decode(model), expected, "the plain model, twice")
    return expected


def quantised_in(model: nn.Module, bits: int) -> list[torch.Tensor]:
    return [weight for weight in model.parameters() if isinstance(weight, weight_class(bits))]


def check_streamed(
    model: Any, bits: int, expected: list[torch.Tensor], caplog: pytest.LogCaptureFixture
) -> str:
    """Offloads a model whose quantised weights are on the GPU, and the rest in RAM; gives the warning.

    The budgets hold the quantised weights, and the least, half and nearly all of the rest.
    """
    quantised = [(weight, weight.data_ptr()) for weight in quantised_in(model, bits)]
    warnings: list[str] = []
    for step in (2, 0, 3):
        budget = budgets_of(model, 5)[step]
        caplog.clear()
        ts.offload(model, **tiny(budget))
        assert hooks_of(model)
        warnings += [each.message for each in caplog.records if "stay resident" in each.message]
        for round_ in range(3):
            assert_same(prefill_and_decode(model), expected, f"{budget} bytes, round {round_}")
        stats = ts.stats(model)
        assert stats.streamed_bytes > 0
        assert stats.peak_held_bytes <= budget
        assert {str(p.device) for p in model.parameters()} == {DEVICE}
        ts.restore(model)
        for weight, address in quantised:
            assert (str(weight.device), weight.data_ptr()) == (DEVICE, address), "it stays"
        rest = [p for p in model.parameters() if type(p) is nn.Parameter]
        assert {p.device.type for p in rest} == {"cpu"}
    assert len(warnings) == 3, "one each time"
    move_the_rest(model, DEVICE)
    assert_same(prefill_and_decode(model), expected, "restored")
    return warnings[0]


@pytest.mark.parametrize("bits, nested", [(4, False), (4, True), (8, False)])
def test_prefill_and_decode_are_bit_identical(
    bits: int, nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"compress_statistics": nested} if bits == 4 else {}
    model = make_quantised(bits, DEVICE, **options)
    assert len(quantised_in(model, bits)) == LINEARS
    expected = expected_of(model)
    move_the_rest(model, "cpu")
    warning = check_streamed(model, bits, expected, caplog)
    assert warning.startswith(f"{STAY} parameters")
    assert f"it is a {NAMES[bits]}" in warning


@pytest.mark.parametrize("bits", BITS)
def test_layers_that_have_computed_nothing_yet(bits: int) -> None:
    """Those of 8 bits take the scales over from their weights in their first forward."""
    expected = expected_of(make_quantised(bits, DEVICE))
    model = make_quantised(bits, DEVICE)
    move_the_rest(model, "cpu")
    ts.offload(model, **tiny(budgets_of(model, 3)[1]), self_check=True)
    for round_ in range(2):
        assert_same(prefill_and_decode(model), expected, f"round {round_}")
    assert ts.stats(model).streamed_bytes > 0


@pytest.mark.parametrize("bits", BITS)
def test_models_that_transformers_quantises(
    bits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        save(make_plain(), tmp_path),
        device_map={"": DEVICE},
        dtype=torch.bfloat16,
        quantization_config=quantised_by_transformers(bits),
    )
    assert quantised_in(model, bits)
    expected = expected_of(model)
    move_the_rest(model, "cpu")
    check_streamed(model, bits, expected, caplog)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_on_the_cpu_they_are_refused_and_the_model_is_as_it_was(bits: int, quantised: bool) -> None:
    """Their bytes alone would be on the GPU, or what the first move to it would have quantised."""

    def make() -> Any:
        return make_quantised(bits) if quantised else quantisable(make_plain(), bits)

    model, plain = make(), make()
    for _ in range(2):
        with pytest.raises(ts.UnsupportedError, match=f"a {NAMES[bits]} moves in a way of its own"):
            ts.offload(model, **tiny(budgets_of(model, 3)[1]))
        assert not hooks_of(model)
        for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (type(one), one.device.type) == (type(other), "cpu"), name
            assert same_bytes(one, other), name
    if not quantised:  # what the error says to do
        expected = expected_of(plain.to(DEVICE))
        move_the_rest(model.to(DEVICE), "cpu")
        ts.offload(model, **tiny(budgets_of(model, 3)[1]))
        assert_same(prefill_and_decode(model), expected)


def test_a_model_that_is_on_the_gpu_as_a_whole_has_nothing_to_stream() -> None:
    model = make_quantised(4, DEVICE)
    expected = expected_of(model)
    fixed_bytes = ts.analyze(model).fixed_bytes
    with pytest.raises(ts.BudgetError, match="weights that stay resident take"):
        ts.offload(model, **tiny(fixed_bytes - 1))
    assert_same(prefill_and_decode(model), expected)
