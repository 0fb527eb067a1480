"""Models that are loaded, offloaded and looked at inside of torch.inference_mode()."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tensorstream as ts
from conftest import assert_same, hooks_of, save, smallest_budget
from diffusion_shapes import make_unet
from model_shapes import SHAPES, make_stack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama."""
    return save(SHAPES["llama"].make(2), tmp_path / "source")


def check_trains(model: Any, plain: Any) -> None:
    """Outside of the mode: gradients of what comes in, and parts of weights that are written."""
    inputs = SHAPES["llama"].inputs()
    gradients = []
    for each in (model, plain):
        embeddings = each.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        each(inputs_embeds=embeddings).logits.square().sum().backward()
        gradients.append(embeddings.grad)
    assert_same(gradients[:1], gradients[1:])
    with torch.no_grad():
        for each in (model, plain):
            each.model.layers[0].mlp.up_proj.weight[0].fill_(0.5)
        assert_same(model(**inputs).logits, plain(**inputs).logits)


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_loaded_there_trains_and_can_be_written(
    folder: Path, packed: bool, fits: bool
) -> None:
    source = folder
    if packed:
        source = folder.with_name("packed")
        ts.pack(folder, source)
    estimate = ts.estimate_memory(source)
    budget = estimate.everything_fits_bytes if fits else estimate.smallest_budget_bytes
    with torch.inference_mode():
        model = ts.from_pretrained(source, ram_budget=budget)
        assert torch.is_inference_mode_enabled()
        assert model(**SHAPES["llama"].inputs()).logits.is_inference()
    assert bool(hooks_of(model)) is not fits
    assert not any(parameter.is_inference() for parameter in model.parameters())
    check_trains(model, transformers.AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("fits", [False, True])
def test_what_is_offloaded_there_trains_and_can_be_written(folder: Path, fits: bool) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    estimate = ts.estimate_memory(model)
    budget = estimate.everything_fits_bytes if fits else estimate.smallest_budget_bytes
    with torch.inference_mode():
        ts.offload(model, ram_budget=budget)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    check_trains(model, transformers.AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("look", [ts.estimate_memory, ts.analyze])
def test_what_is_said_there_is_what_is_said_elsewhere(
    folder: Path, look: Callable[..., Any]
) -> None:
    with torch.inference_mode():
        there = look(folder)
    assert there == look(folder)


def test_plans_there_are_those_of_elsewhere(folder: Path) -> None:
    budget = smallest_budget(folder)
    with torch.inference_mode():
        there = ts.plan(folder, ram_budget=budget)
    assert there.groups == ts.plan(folder, ram_budget=budget).groups


def test_a_model_of_diffusers_is_streamed_there(tmp_path: Path) -> None:
    make_unet().save_pretrained(tmp_path)
    budget = smallest_budget(tmp_path)
    with torch.inference_mode():
        model = ts.from_pretrained(tmp_path, ram_budget=budget)
    assert hooks_of(model)
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_gradients_stay_off_where_they_are_off() -> None:
    seen = []

    class Noting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_stack()

        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            return super().named_modules(*args, **kwargs)

    model = Noting()
    with torch.inference_mode():
        ts.analyze(model)
    assert set(seen) == {(False, False)}
    seen.clear()
    with torch.no_grad():
        ts.analyze(model)
    assert set(seen) == {(False, False)}
