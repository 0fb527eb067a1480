"""Other libraries around an offloaded model: accelerate before and after, evaluation harnesses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from accelerate.hooks import remove_hook_from_submodules

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, save, smallest_budget
from model_shapes import SHAPES, VOCABULARY, token_ids

IDS = token_ids()
CPU = torch.device("cpu")
# Parts on the disk and parts in RAM, as accelerate divides a model that is too large.
MIXED = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def _llama() -> Any:
    return SHAPES["llama"].make(3)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def _loaded(folder: Path, **options: Any) -> Any:
    return tf.AutoModelForCausalLM.from_pretrained(folder, **options)


TAKEN_OVER: dict[str, Callable[[Any, Path], Any]] = {
    "dispatch_model": lambda model, _: accelerate.dispatch_model(
        model, {"": "cpu"}, force_hooks=True
    ),
    "cpu_offload_with_hook": lambda model, _: accelerate.cpu_offload_with_hook(
        model, execution_device=CPU
    )[0],
    "device_map of transformers": lambda _, folder: _loaded(folder, device_map="auto"),
    "load_checkpoint_and_dispatch": lambda model, folder: accelerate.load_checkpoint_and_dispatch(
        model, str(folder), device_map={"": "cpu"}
    ),
    "prepare": lambda model, _: accelerate.Accelerator(cpu=True).prepare(model),
}
REFUSED: dict[str, Callable[[Any, Path], Any]] = {
    "cpu_offload": lambda model, _: accelerate.cpu_offload(model, execution_device=CPU),
    "disk_offload": lambda model, folder: accelerate.disk_offload(
        model, str(folder / "offload"), execution_device=CPU
    ),
    "dispatch_model": lambda model, folder: accelerate.dispatch_model(
        model, MIXED, main_device="cpu", offload_dir=str(folder / "offload")
    ),
    "device_map of transformers": lambda _, folder: _loaded(
        folder, device_map=MIXED, offload_folder=str(folder / "offload")
    ),
    "max_memory of transformers": lambda _, folder: _loaded(
        folder,
        device_map="auto",
        max_memory={"cpu": "1MB"},
        offload_folder=str(folder / "offload"),
    ),
}


@pytest.mark.parametrize("how", TAKEN_OVER)
def test_a_model_that_accelerate_prepared_is_taken_over(how: str, tmp_path: Path) -> None:
    plain = _llama()
    model = TAKEN_OVER[how](copy.deepcopy(plain), save(plain, tmp_path))
    offload_tightly(model, self_check=True)
    for _ in range(2):
        assert_same(_logits(model), _logits(plain))
    assert ts.stats(model).streamed_bytes > 0
    ts.restore(model)
    assert_same(_logits(model), _logits(plain), "restored")


@pytest.mark.parametrize("how", REFUSED)
def test_a_model_that_accelerate_offloads_is_refused(how: str, tmp_path: Path) -> None:
    """Its hooks put weights of their own into the model at each forward."""
    plain = _llama()
    folder = save(plain, tmp_path)
    model = REFUSED[how](copy.deepcopy(plain), folder)
    for options in ({}, {"checkpoint": folder}):
        with pytest.raises(ts.UnsupportedError, match="remove_hook_from_submodules"):
            ts.offload(model, ram_budget="2MB", **options)
    assert_same(_logits(model), _logits(plain), "as it was")
    remove_hook_from_submodules(model)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    assert on_meta == (how in ("device_map of transformers", "max_memory of transformers"))
    # transformers never had their weights in RAM: they are in the checkpoint.
    options = {"checkpoint": folder} if on_meta else {}
    ts.offload(model, ram_budget=smallest_budget(plain), self_check=True, **options)
    for _ in range(2):
        assert_same(_logits(model), _logits(plain), "without the hooks")


def test_accelerate_cannot_offload_what_is_offloaded() -> None:
    plain = _llama()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    with pytest.raises(ts.UnsupportedError, match=r"tensorstream.restore\(model\) first"):
        accelerate.cpu_offload(model, execution_device=CPU)
    assert_same(_logits(model), _logits(plain), "it goes on working")
    remove_hook_from_submodules(model)
    for _ in range(2):
        assert_same(_logits(model), _logits(plain), "and without accelerate's hooks")
    ts.restore(model)
    assert_same(_logits(accelerate.cpu_offload(model, execution_device=CPU)), _logits(plain))


def test_a_model_that_is_offloaded_is_prepared_and_moved_where_it_is() -> None:
    plain = _llama()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    accelerate.dispatch_model(prepared, {"": "cpu"}, force_hooks=True)
    prepared.to(model.device)
    assert accelerator.unwrap_model(prepared) is model
    assert_same(_logits(prepared), _logits(plain))
    state = accelerator.get_state_dict(prepared)
    assert_same([state[name] for name in plain.state_dict()], list(plain.state_dict().values()))
    assert hooks_of(model)


def test_init_empty_weights_with_the_checkpoint(tmp_path: Path) -> None:
    plain = _llama()
    folder = save(plain, tmp_path)
    with accelerate.init_empty_weights():
        model = tf.LlamaForCausalLM(plain.config).eval()
    with pytest.raises(ts.ConfigError, match="give checkpoint="):
        ts.offload(model, ram_budget="2MB")
    ts.offload(model, checkpoint=folder, ram_budget=smallest_budget(plain), self_check=True)
    assert_same(_logits(model), _logits(plain))


REQUESTS = [(3, 5), (7, 2), (1, 9), (4, 4), (6, 1), (2, 3)]  # lengths of context and continuation


def _likelihoods(model: Any, batch: int) -> list[Any]:
    """As lm-eval's loglikelihood: longest first, padded on the right, logits of the continuation alone."""
    rows = [
        (token_ids(context + more, seed=position)[0], more)
        for position, (context, more) in enumerate(REQUESTS)
    ]
    rows.sort(key=lambda row: -len(row[0]))
    results: list[Any] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(len(ids) for ids, _ in part) - 1
        inputs = torch.stack([F.pad(ids[:-1], (0, longest + 1 - len(ids))) for ids, _ in part])
        with torch.no_grad():
            scores = F.log_softmax(model(inputs.to(model.device)).logits, dim=-1)
        for (ids, more), row in zip(part, scores, strict=True):
            of_row = row[len(ids) - 1 - more : len(ids) - 1]
            wanted = ids[-more:]
            results.append(of_row.gather(-1, wanted[:, None]).sum())
            results.append((of_row.argmax(-1) == wanted).all())
    return results


def _continuations(model: Any, batch: int) -> list[Any]:
    """As its generate_until: padded on the left, stopped by a token."""
    results: list[Any] = []
    for start in range(0, len(REQUESTS), batch):
        lengths = [sum(request) for request in REQUESTS[start : start + batch]]
        rows = [token_ids(length, seed=length)[0] for length in lengths]
        ids = torch.stack([F.pad(row, (max(lengths) - len(row), 0)) for row in rows])
        results.append(
            model.generate(
                ids.to(model.device),
                attention_mask=(ids != 0).long(),
                max_new_tokens=4,
                do_sample=False,
                eos_token_id=VOCABULARY - 1,
            )
        )
    return results


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", ["llama", "qwen3", "gpt2"])
def test_batches_of_an_evaluation_harness(shape: str, batch: int, tmp_path: Path) -> None:
    folder = save(SHAPES[shape].make(3), tmp_path)
    plain = _loaded(folder)  # unlike the one in memory it has buffers in float32
    budget = smallest_budget(folder)
    model = ts.from_pretrained(folder, ram_budget=budget, self_check=True)
    assert_same(_likelihoods(model, batch), _likelihoods(plain, batch))
    assert_same(_continuations(model, batch), _continuations(plain, batch))
    assert ts.stats(model).streamed_bytes > 0
