"""A sample of the tables of model types in docs/, of each kind of model; and the script that writes them."""

from __future__ import annotations

import os
import time

import pytest
import torch

from model_matrix import comparing, image_models, places, sources, table, trial, workers
from model_matrix.trial import Row

TRANSFORMERS = sources.source_named("transformers")
SAMPLE = """
    llama bert t5 vit convnext wav2vec2 whisper clip qwen2_vl llava mamba bamba mixtral qwen3_moe deepseek_v3
    gemma3_text opt detr segformer xlnet oneformer
""".split()
# An autoencoder, transformers, one with attention to a text, one that takes lists of images.
OF_DIFFUSERS = """
    AutoencoderKL FluxTransformer2DModel PixArtTransformer2DModel WanTransformer3DModel
    ZImageTransformer2DModel
""".split()


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_is_bit_identical_offloaded(model_type: str) -> None:
    row = trial.try_type(TRANSFORMERS, model_type)
    assert (row.state, row.reason) == ("identical", "")
    assert row.streamed > 0


@pytest.mark.needs_gpu
@pytest.mark.parametrize("model_type", ["llama", "t5", "vit"])
def test_a_type_is_bit_identical_offloaded_to_a_gpu(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "prepare", lambda device: None)  # it is for a process of its own
    row = trial.try_type(TRANSFORMERS, model_type, "cuda:0")
    assert (row.state, row.reason) == ("identical", "")
    assert row.streamed > 0


@pytest.mark.parametrize("model_class", OF_DIFFUSERS)
def test_a_model_of_diffusers_is_bit_identical_offloaded(model_class: str) -> None:
    row = trial.try_type(sources.source_named("diffusers"), model_class)
    assert (row.state, row.reason) == ("identical", "")
    assert row.streamed > 0


def test_the_smallest_models_of_a_family_come_first() -> None:
    assert image_models.smallest(["vit_huge", "vit_tiny", "vit_base", "test_vit"]) == [
        "test_vit",
        "vit_tiny",
        "vit_base",
    ]


def test_one_other_bit_is_a_difference() -> None:
    output = {"logits": torch.zeros(3, 4), "cache": [(torch.ones(2), None)]}
    other = {"logits": torch.zeros(3, 4), "cache": [(torch.ones(2), None)]}
    assert comparing.difference(output, other) is None
    other["logits"][1, 2] = -0.0
    assert comparing.difference(output, other) == "tensor 0 of 2 has other bytes"
    assert comparing.difference(output, {"logits": output["logits"]}) == "2 tensors instead of 1"


def test_a_model_that_differs_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trial.run

    def altered(model: torch.nn.Module, inputs: trial.Arguments, device: str = "cpu") -> object:
        output = run(model, inputs, device)
        if model._forward_hooks:  # only an offloaded one has some
            next(comparing.tensors_of(output)).mul_(2)
        return output

    monkeypatch.setattr(trial, "run", altered)
    row = trial.try_type(TRANSFORMERS, "llama")
    assert row.state == "differs" and "other bytes" in row.reason
    assert "differs: first forward" in table.markdown(TRANSFORMERS, [row])


def test_arguments_move_with_all_that_is_in_them() -> None:
    inner = torch.ones(2)
    moved = places.moved({"a": [inner, (inner, None)], "b": 5}, "meta")
    assert moved["a"][0].device.type == moved["a"][1][0].device.type == "meta"
    assert (moved["a"][1][1], moved["b"], inner.device.type) == (None, 5, "cpu")


def test_another_device_is_a_difference() -> None:
    found = comparing.difference(torch.ones(2, device="meta"), torch.ones(2))
    assert found == "tensor 0 of 1 has another shape, type or device"


def test_an_error_of_an_offloaded_forward_that_is_none_of_ours_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trial.run

    def failing(model: torch.nn.Module, inputs: trial.Arguments, device: str = "cpu") -> object:
        if model._forward_hooks:
            raise IndexError("index out of range")
        return run(model, inputs, device)

    monkeypatch.setattr(trial, "run", failing)
    row = trial.try_type(TRANSFORMERS, "llama")
    assert (row.state, row.reason) == ("failed", "IndexError: index out of range")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_crash_and_a_hang_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(source: sources.Source, model_type: str, device: str) -> Row:
        if model_type == "crash":
            os._exit(7)
        if model_type == "hang":
            time.sleep(600)
        return Row(model_type, "identical", parameters=5)

    monkeypatch.setattr(workers, "try_type", act)
    tried = workers.rows(TRANSFORMERS, ["crash", "hang", "fine"], 2, 5.0)
    rows = {row.model_type: row for row in tried}
    assert {name: row.state for name, row in rows.items()} == {
        "crash": "crashed",
        "hang": "late",
        "fine": "identical",
    }
    assert rows["crash"].reason == "exit status 7"
    text = table.markdown(TRANSFORMERS, list(rows.values()))
    assert "Of these 1 are bit-identical offloaded\n(33.3 %)" in text and "| fine |" in text
