"""A sample of docs/model_types.md, of each kind of model; and the script that writes it."""

from __future__ import annotations

import os
import time

import pytest
import torch

from model_matrix import comparing, table, trial, workers
from model_matrix.trial import Row

SAMPLE = """
    llama bert t5 vit convnext wav2vec2 whisper clip qwen2_vl llava mamba bamba mixtral qwen3_moe deepseek_v3
    gemma3_text opt detr segformer xlnet
""".split()


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_is_bit_identical_offloaded(model_type: str) -> None:
    row = trial.try_type(model_type)
    assert (row.state, row.reason) == ("identical", "")
    assert row.streamed > 0


def test_one_other_bit_is_a_difference() -> None:
    output = {"logits": torch.zeros(3, 4), "cache": [(torch.ones(2), None)]}
    other = {"logits": torch.zeros(3, 4), "cache": [(torch.ones(2), None)]}
    assert comparing.difference(output, other) is None
    other["logits"][1, 2] = -0.0
    assert comparing.difference(output, other) == "tensor 0 of 2 has other bytes"
    assert comparing.difference(output, {"logits": output["logits"]}) == "2 tensors instead of 1"


def test_a_model_that_differs_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trial.run

    def altered(model: torch.nn.Module, inputs: trial.Arguments) -> object:
        output = run(model, inputs)
        if model._forward_hooks:  # only an offloaded one has some
            next(comparing.tensors_of(output)).mul_(2)
        return output

    monkeypatch.setattr(trial, "run", altered)
    row = trial.try_type("llama")
    assert row.state == "differs" and "other bytes" in row.reason
    assert "differs: first forward" in table.markdown([row])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_crash_and_a_hang_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(model_type: str) -> Row:
        if model_type == "crash":
            os._exit(7)
        if model_type == "hang":
            time.sleep(600)
        return Row(model_type, "identical", parameters=5)

    monkeypatch.setattr(workers, "try_type", act)
    rows = {row.model_type: row for row in workers.rows(["crash", "hang", "fine"], 2, 5.0)}
    assert {name: row.state for name, row in rows.items()} == {
        "crash": "crashed",
        "hang": "late",
        "fine": "identical",
    }
    assert rows["crash"].reason == "exit status 7"
    text = table.markdown(list(rows.values()))
    assert "Of these 1 are bit-identical offloaded\n(33.3 %)" in text and "| fine |" in text
