"""Weights that bitsandbytes quantised: resident with all that belongs to them, and the rest streamed."""

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
    quantised_by_transformers,
    weight_class,
)
from conftest import assert_same, hooks_of, offload_tightly, save, smallest_budget
from fake_gpu import use_fake_gpu
from model_shapes import token_ids
from tensorstream import orchestrator
from tensorstream.compute_device import move, moves_itself
from tensorstream.moved import Moved
from tensorstream.proxy import ParkedParameter

IDS = token_ids()


def run(model: Any) -> list[Any]:
    """Logits of a prefill, and tokens."""
    with torch.no_grad():
        return [model(IDS).logits, model.generate(IDS, max_new_tokens=4, do_sample=False)]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if "stay resident" in each.message]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("where", ["host", "fake GPU"])
def test_outputs_are_bit_identical_and_one_warning_says_what_stays(
    bits: int, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "fake GPU":
        use_fake_gpu(monkeypatch, homes=True)
    expected = run(make_quantised(bits))
    model = make_quantised(bits)
    estimate = ts.estimate_memory(model)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    for budget in (smallest, (smallest + fits) // 2):
        caplog.clear()
        ts.offload(model, ram_budget=budget, self_check=True)
        (warning,) = warnings_in(caplog)
        assert warning.startswith(f"{STAY} parameters")
        assert f"it is a {NAMES[bits]}" in warning
        for round_ in range(2):
            assert_same(run(model), expected, f"{budget} bytes, round {round_}")
        assert isinstance(model.model.layers[0].self_attn.q_proj.weight, weight_class(bits))
        parked = [isinstance(p, ParkedParameter) for p in model.model.layers.parameters()]
        assert any(parked)
        stats = ts.stats(model)
        assert stats.streamed_bytes > 0
        assert stats.peak_held_bytes <= budget
        ts.restore(model)
        assert_same(run(model), expected, "restored")


def parts_of(weight: Any) -> int:
    """Bytes of what a quantised weight keeps, as bitsandbytes names it."""
    if isinstance(weight, weight_class(8)):
        assert weight.CB.data_ptr() == weight.data_ptr()
        return int(weight.nbytes + weight.SCB.nbytes)
    state = weight.quant_state
    parts = [weight, state.absmax, state.code]
    if state.nested:
        parts += [state.offset, state.state2.absmax]
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("bits, nested", [(4, False), (4, True), (8, False)])
def test_what_belongs_to_quantised_weights_counts_in_the_budget(bits: int, nested: bool) -> None:
    """The scales of 4 bits are an eighth of the bytes beside them."""
    options = {"compress_statistics": nested} if bits == 4 else {}
    model = make_quantised(bits, **options)
    layers = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), weight_class(bits))
    ]
    assert len(layers) == LINEARS
    expected = sum(parts_of(layer.weight) + layer.bias.nbytes for layer in layers)
    if nested:  # a table that all of them share
        tables = {layer.weight.quant_state.state2.code.data_ptr() for layer in layers}
        expected += len(tables) * layers[0].weight.quant_state.state2.code.nbytes
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in model.buffers()}
    assert ts.analyze(model).fixed_bytes == expected + sum(buffers.values())


def test_scales_that_a_layer_took_over_count_too() -> None:
    """In its first forward a layer of 8 bits takes them from its weight."""
    model = make_quantised(8)
    fixed_bytes = ts.analyze(model).fixed_bytes
    run(model)
    assert model.model.layers[0].self_attn.q_proj.weight.SCB is None
    assert ts.analyze(model).fixed_bytes == fixed_bytes
    expected = run(model)
    assert_same(run(offload_tightly(model, self_check=True)), expected)


@pytest.mark.parametrize("bits", BITS)
def test_biases_that_their_layers_cast_as_they_compute(bits: int) -> None:
    """A layer puts a bias of its input's type in the place of one of another type."""
    model, plain = make_quantised(bits), make_quantised(bits)
    for either in (model, plain):
        for layer in either.model.layers:
            layer.self_attn.q_proj.bias.data = layer.self_attn.q_proj.bias.data.float()
    left = ts.analyze(model).left
    name = "model.layers.0.self_attn.q_proj.bias"
    assert left[name] == f"it is beside a {NAMES[bits]}, whose module may cast it"
    offload_tightly(model, self_check=True)
    for _ in range(2):
        assert_same(run(model), run(plain))
    assert model.get_parameter(name).dtype == plain.get_parameter(name).dtype == torch.bfloat16
    ts.restore(model)
    assert_same(run(model), run(plain), "restored")


@pytest.mark.parametrize("bits", BITS)
def test_models_that_transformers_quantises(
    bits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As they are loaded, from plain files; and loaded again from files that are quantised."""
    path = save(make_plain(), tmp_path / "plain")
    options: dict[str, Any] = {"device_map": "cpu", "dtype": torch.bfloat16}
    options["quantization_config"] = quantised_by_transformers(bits)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, plain = load(path, **options), load(path, **options)
    plain.save_pretrained(tmp_path / "quantised")
    expected = run(plain)
    budget = smallest_budget(model)
    caplog.clear()
    ts.offload(model, ram_budget=budget, self_check=True)
    assert len(warnings_in(caplog)) == 1
    assert_same(run(model), expected)
    assert ts.stats(model).streamed_bytes > 0
    again = ts.from_pretrained(tmp_path / "quantised", ram_budget=budget, self_check=True)
    assert hooks_of(again)
    resident = load(tmp_path / "quantised", device_map="cpu", dtype=torch.bfloat16)
    assert_same(run(again), run(resident), "loaded quantised")
    for of in (ts.analyze, ts.estimate_memory):  # the config alone tells of plain weights
        with pytest.raises(ts.UnsupportedError, match="are quantised, and what they take"):
            of(tmp_path / "quantised")


@pytest.mark.parametrize("bits", BITS)
def test_they_are_not_moved_by_their_bytes_alone(bits: int) -> None:
    model, plain = make_quantised(bits), make_quantised(bits)
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert moves_itself(weight)
    with pytest.raises(ts.UnsupportedError, match=rf"a {NAMES[bits]} moves in a way"):
        move(weight, torch.device("meta"))
    assert weight.device.type == "cpu"
    assert_same(run(model), run(plain))


@pytest.mark.parametrize("bits", BITS)
def test_where_they_are_not_on_the_device_the_model_is_as_it_was(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=True)
    monkeypatch.setattr(orchestrator, "Moved", lambda _: Moved(torch.device("meta")))
    layer = make_quantised(bits).model.layers[0]
    model = nn.Sequential(layer.mlp, layer.self_attn.q_proj)
    before = [(type(weight), weight.data_ptr()) for weight in model.parameters()]
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    budget = smallest_budget(model)
    for _ in range(2):
        with pytest.raises(ts.UnsupportedError, match="on meta, where they stay, and the others"):
            ts.offload(model, ram_budget=budget)
        assert not hooks_of(model)
        assert [(type(weight), weight.data_ptr()) for weight in model.parameters()] == before
    with torch.no_grad():
        expected = model(x)
    monkeypatch.undo()
    with torch.no_grad():
        assert_same(offload_tightly(model, self_check=True)(x), expected)


@pytest.mark.parametrize("where", ["host", "fake GPU"])
def test_a_budget_below_what_stays_is_an_error(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "fake GPU":
        use_fake_gpu(monkeypatch, homes=True)
    model = nn.Sequential(*make_quantised(4).model.layers[0].self_attn.children())
    fixed_bytes = ts.analyze(model).fixed_bytes
    with pytest.raises(ts.BudgetError, match="weights that stay resident take"):
        ts.offload(model, ram_budget=fixed_bytes - 1)
    assert not hooks_of(ts.offload(model, ram_budget=2 * fixed_bytes))
