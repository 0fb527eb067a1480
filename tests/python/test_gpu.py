"""Models on a real GPU: bit for bit what they give when all of them is on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, save
from model_shapes import SHAPES, Shape, make_stack, row_ids
from tensorstream.orchestrator import orchestrator_of
from tensorstream.proxy import ParkedParameter

pytestmark = pytest.mark.needs_gpu

DEVICE = "cuda:0"


def on_gpu(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def run(shape: Shape, model: nn.Module) -> Any:
    with torch.no_grad():
        return model(**on_gpu(shape.inputs()))


def budgets_of(model_or_path: Any, steps: int) -> list[int]:
    estimate = ts.estimate_memory(model_or_path)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    return [smallest + (fits - smallest) * step // (steps - 1) for step in range(steps)]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_models_in_memory_are_bit_identical(name: str, check: bool) -> None:
    shape = SHAPES[name]
    model = shape.make(4)
    expected = run(shape, shape.make(4).to(DEVICE))
    for budget in budgets_of(model, 5):
        ts.offload(model, device=DEVICE, vram_budget=budget, self_check=check)
        for round_ in range(3):
            assert_same(run(shape, model), expected, f"{name} in {budget} bytes, forward {round_}")
        assert ts.stats(model).peak_held_bytes <= budget
        ts.restore(model)
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        assert {b.device.type for b in model.buffers()} <= {"cpu"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_checkpoints_generate_the_same_tokens(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    plain: Any = shape.make(3)
    path = save(plain, tmp_path / name)
    model_class = getattr(transformers, type(plain).__name__)
    resident = model_class.from_pretrained(path).to(DEVICE)
    assert shape.prompt is not None
    prompt = on_gpu(shape.prompt())
    expected = resident.generate(**prompt, max_new_tokens=5, do_sample=False)
    for budget in budgets_of(path, 3):
        model = ts.from_pretrained(path, device=DEVICE, vram_budget=budget)
        assert str(model.device) == DEVICE
        tokens = model.generate(
            **{key: value.to(model.device) for key, value in prompt.items()},
            max_new_tokens=5,
            do_sample=False,
        )
        assert_same(tokens, expected, f"{name} in {budget} bytes")


def offload_stack(room: float = 1.0, **options: Any) -> Any:
    model = make_stack(5)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    return ts.offload(model, device=DEVICE, vram_budget=int(smallest * room), **options)


def test_parked_weights_say_that_they_are_on_the_gpu_and_tell_their_value() -> None:
    model, plain = offload_stack(), make_stack(5)
    parked = dict(model.named_parameters())
    assert any(isinstance(p, ParkedParameter) for p in parked.values())
    for name, value in plain.named_parameters():
        assert str(parked[name].device) == DEVICE
        assert_same(parked[name].detach().cpu(), value.detach(), name)
    assert_same(
        [value.cpu() for value in model.state_dict().values()], list(plain.state_dict().values())
    )
    assert orchestrator_of(model).engine.statistics().pinned_bytes > 0


def test_writes_between_forwards_show() -> None:
    model, plain = offload_stack(), make_stack(5).to(DEVICE)
    ids = row_ids().to(DEVICE)
    with torch.no_grad():
        for round_ in range(4):
            for one in (model, plain):
                one.blocks[1].up.weight.mul_(1.5)
                one.blocks[2].down.bias.data += round_
                one.blocks[0].up.weight.data = torch.full_like(one.blocks[0].up.weight, 0.01)
            assert_same(model(ids), plain(ids), f"round {round_}")


def test_a_stream_that_is_not_the_default_one_and_slow_kernels() -> None:
    model, plain = offload_stack(1.5), make_stack(5).to(DEVICE)
    ids = row_ids().to(DEVICE)
    with torch.no_grad():
        expected = plain(ids)
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.default_stream()]
        for round_ in range(9):
            stream = streams[round_ % 3]
            stream.wait_stream(streams[(round_ - 1) % 3])
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000_000)
                got = model(ids)
            stream.synchronize()
            assert_same(got, expected, f"round {round_}")


def test_an_exception_in_a_forward_leaves_the_model_usable() -> None:
    model, plain = offload_stack(), make_stack(5).to(DEVICE)
    ids = row_ids().to(DEVICE)

    def fail(*_: Any) -> None:
        raise ValueError("on order")

    handle = model.blocks[2].up.register_forward_hook(fail)
    with torch.no_grad():
        for _ in range(3):
            with pytest.raises(ValueError, match="on order"):
                model(ids)
        handle.remove()
        assert_same(model(ids), plain(ids))


def test_two_models_in_two_threads() -> None:
    ids = row_ids().to(DEVICE)
    with torch.no_grad():
        expected = make_stack(5).to(DEVICE)(ids)

    def work(model: Any) -> None:
        with torch.no_grad():
            for _ in range(20):
                assert_same(model(ids), expected)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, offload_stack(1.3)) for _ in range(2)]:
            done.result()


def test_a_thousand_forwards_take_no_more_memory() -> None:
    model, ids = offload_stack(), row_ids().to(DEVICE)
    with torch.no_grad():
        for _ in range(100):
            model(ids)
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()
        for _ in range(1000):
            model(ids)
        torch.cuda.synchronize()
    assert (torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()) == before


def test_a_budget_that_holds_everything_leaves_no_hook() -> None:
    model = make_stack(3)
    ts.offload(model, device=DEVICE, vram_budget="1GiB")
    assert hooks_of(model) == []
    with torch.no_grad():
        assert_same(model(row_ids().to(DEVICE)), make_stack(3).to(DEVICE)(row_ids().to(DEVICE)))


def test_bad_states_are_typed_errors() -> None:
    count = torch.cuda.device_count()
    with pytest.raises((ts.ConfigError, ts.UnsupportedError)):
        ts.offload(make_stack(2), device=f"cuda:{count}", vram_budget="1GiB")
    with pytest.raises(ts.ConfigError, match="vram_budget is"):
        ts.offload(make_stack(2), device=DEVICE, vram_budget="4000GiB")
    with pytest.raises(ts.BudgetError):
        ts.offload(make_stack(2), device=DEVICE, vram_budget=1000)
