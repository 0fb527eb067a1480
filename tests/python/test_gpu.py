"""Models on a real GPU: bit for bit what they give when all of them is on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

import tensorstream as ts
from conftest import assert_same, hooks_of, save
from model_shapes import SHAPES, Shape, make_stack, row_ids
from tensorstream.host_rate import seconds_of_a_call
from tensorstream.orchestrator import orchestrator_of
from tensorstream.proxy import ParkedParameter

pytestmark = pytest.mark.needs_gpu

# Another than torch's current one shows what goes to that by mistake.
DEVICE = os.environ.get("TENSORSTREAM_TEST_DEVICE", "cuda:0")
MIB = 1 << 20
SEGMENT_BYTES = 2 * MIB  # the least that torch's allocator takes at once


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


def tiny(budget_bytes: int) -> dict[str, Any]:
    """Options for a budget that is smaller than the least that torch allocates at once, 2 MiB."""
    return {"device": DEVICE, "vram_budget": budget_bytes, "pressure": "lenient"}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_models_in_memory_are_bit_identical(name: str, check: bool) -> None:
    shape = SHAPES[name]
    model = shape.make(4)
    expected = run(shape, shape.make(4).to(DEVICE))
    for budget in budgets_of(model, 5):
        ts.offload(model, **tiny(budget), self_check=check)
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
        model = ts.from_pretrained(path, **tiny(budget))
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
    return ts.offload(model, **tiny(int(smallest * room)), **options)


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


def test_writes_past_the_version_of_held_aliases_show() -> None:
    model, plain = offload_stack(1.5), make_stack(5).to(DEVICE)
    ids = row_ids().to(DEVICE)
    aliases = [weight.detach() for one in (model, plain) for weight in one.parameters()]
    with torch.no_grad():
        for round_ in range(4):
            assert_same(model(ids), plain(ids), f"before round {round_}")
            for alias in aliases:
                alias.data.mul_(1.25)
            assert_same(model(ids), plain(ids), f"round {round_}")


def test_a_stream_that_is_not_the_default_one_and_slow_kernels() -> None:
    model, plain = offload_stack(1.5), make_stack(5).to(DEVICE)
    ids = row_ids().to(DEVICE)
    with torch.no_grad():
        expected = plain(ids)
        torch.cuda.synchronize(DEVICE)
        streams = [
            torch.cuda.Stream(DEVICE),
            torch.cuda.Stream(DEVICE),
            torch.cuda.default_stream(DEVICE),
        ]
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
        torch.cuda.synchronize(DEVICE)
        before = torch.cuda.mem_get_info(DEVICE)[0], torch.cuda.memory_allocated(DEVICE)
        for _ in range(1000):
            model(ids)
        torch.cuda.synchronize(DEVICE)
    assert before[0] - torch.cuda.mem_get_info(DEVICE)[0] <= SEGMENT_BYTES
    assert torch.cuda.memory_allocated(DEVICE) <= before[1]


def test_a_budget_that_holds_everything_leaves_no_hook() -> None:
    model = make_stack(3)
    ts.offload(model, device=DEVICE, vram_budget="1GiB")
    assert hooks_of(model) == []
    with torch.no_grad():
        assert_same(model(row_ids().to(DEVICE)), make_stack(3).to(DEVICE)(row_ids().to(DEVICE)))


def test_a_plan_goes_by_what_a_call_takes_of_this_host() -> None:
    model = make_stack(4)
    parameters = len(list(model.parameters()))
    planned = ts.plan(model, device="cuda", vram_budget="64MiB")
    seconds = seconds_of_a_call(torch.device("cuda", 0))
    assert planned.predicted_seconds > 0.99 * 2.75 * parameters * seconds


def test_bad_states_are_typed_errors() -> None:
    count = torch.cuda.device_count()
    with pytest.raises((ts.ConfigError, ts.UnsupportedError)):
        ts.offload(make_stack(2), device=f"cuda:{count}", vram_budget="1GiB")
    with pytest.raises(ts.ConfigError, match="vram_budget is"):
        ts.offload(make_stack(2), device=DEVICE, vram_budget="4000GiB")
    with pytest.raises(ts.BudgetError):
        ts.offload(make_stack(2), device=DEVICE, vram_budget=1000)


BLOCK_BYTES = 8 * MIB
DRIVERS_ROUNDING = 2 * MIB  # of all blocks together, which the budget does not count


def make_wide(blocks: int = 24) -> nn.Sequential:
    """Blocks of a little less than 8 MiB, which is what the driver's pages of 2 MiB make of each."""
    torch.manual_seed(0)
    made = [nn.Linear(2040, 2040, bias=False, dtype=torch.bfloat16) for _ in range(blocks)]
    return nn.Sequential(*made).eval()


def rows(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 2040, generator=generator).to(torch.bfloat16).to(DEVICE)


def used_by_driver() -> int:
    torch.cuda.synchronize(DEVICE)
    free, total = torch.cuda.mem_get_info(DEVICE)
    return total - free


def test_long_then_short_holds_by_the_drivers_count() -> None:
    model, plain = make_wide(), make_wide()
    long, short = rows(8192), rows(16)
    with torch.no_grad():
        plain.to(DEVICE)
        expected = {one: plain(one).cpu() for one in (long, short)}  # and cuBLAS has its workspace
        plain.to("cpu")
        torch.cuda.empty_cache()
        before = used_by_driver()
        budget = 20 * BLOCK_BYTES
        ts.offload(model, device=DEVICE, vram_budget=budget)
        for count, one in [(20, short), (3, long), (40, short), (2, long), (20, short)]:
            for _ in range(count):
                assert_same(model(one).cpu(), expected[one])
                assert used_by_driver() - before <= budget + DRIVERS_ROUNDING
        stats = ts.stats(model)
        assert stats.gave_way > 0
        assert stats.given_way_bytes == 0, "they came back"


def test_what_cannot_fit_is_torchs_error_too_and_the_model_goes_on() -> None:
    model, plain = make_wide(8), make_wide(8).to(DEVICE)
    ts.offload(model, device=DEVICE, vram_budget=8 * BLOCK_BYTES)
    with torch.no_grad():
        expected = plain(rows(16))
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory") as raised:
                model(rows(65536))
            assert isinstance(raised.value, ts.BudgetError)
            assert_same(model(rows(16)), expected)


def test_what_a_forward_kept_outlives_the_model_and_its_pool() -> None:
    model = make_wide(12)
    ts.offload(model, device=DEVICE, vram_budget=12 * BLOCK_BYTES)
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        for step in range(30):
            kept.append(model(rows(256)).clone() if step % 3 else model(rows(256)))
    first = kept[0].cpu()
    ts.restore(model)
    del model
    torch.cuda.empty_cache()
    scribble = torch.full((64 * MIB,), 7, dtype=torch.uint8, device=DEVICE)
    for one in kept:
        assert_same(one.cpu(), first)
    del scribble


class Tuned(nn.Module):
    """Frozen blocks with trained adapters beside them, checkpointed, and a loss that is large beside each."""

    def __init__(self, blocks: int = 40) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make_wide(blocks)).requires_grad_(False)
        self.adapters = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2040, 8, bias=False, dtype=torch.bfloat16),
                nn.Linear(8, 2040, bias=False, dtype=torch.bfloat16),
            )
            for _ in range(blocks)
        )

    def one(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[number](x) + self.adapters[number](x)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(len(self.blocks)):
            x = checkpoint(self.one, number, x, use_reentrant=False)
        return x.float().exp().log1p().logsumexp(-1).mean()


def train(model: Tuned, x: torch.Tensor, seen: Callable[[], None] = lambda: None) -> list[Any]:
    """A loss and its gradients; calls `seen` as each comes."""
    model.zero_grad()
    handles = [each.register_hook(lambda _: seen()) for each in model.adapters.parameters()]
    loss = model(x)
    seen()
    loss.backward()
    for handle in handles:
        handle.remove()
    gradients = [each.grad for each in model.adapters.parameters()]
    assert all(each is not None for each in gradients)
    return [each.cpu() for each in (loss.detach(), *gradients) if each is not None]


def make_tuned(x: torch.Tensor) -> tuple[Tuned, list[Any], int]:
    """One on the CPU, what the plain one gives on the GPU, and a budget that a step fits, by its peak.

    It is less than twice the weights, so that residents are leased and what torch holds is charged.
    """
    plain = Tuned().to(DEVICE)
    train(plain, x[:16])  # and each thread has cuBLAS's workspace
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    before = torch.cuda.memory_allocated(DEVICE)
    expected = train(plain, x)
    step_bytes = torch.cuda.max_memory_allocated(DEVICE) - before
    del plain
    torch.cuda.empty_cache()
    model = Tuned()
    estimate = ts.estimate_memory(model)
    budget = (
        estimate.smallest_budget_bytes + 3 * step_bytes + 12 * BLOCK_BYTES
    )  # torch's come in 20 MiB
    assert budget < 2 * estimate.weights_bytes
    return model, expected, budget


def test_a_training_step_holds_by_the_drivers_count() -> None:
    x = rows(512)
    model, expected, budget = make_tuned(x)
    before = used_by_driver()
    ts.offload(model, device=DEVICE, vram_budget=budget, keep_resident=("adapters",))
    pool = orchestrator_of(model).pool
    assert pool is not None
    used: list[int] = []
    grown: list[int] = []
    held: list[torch.Tensor] = []

    def seen() -> None:
        if torch._C._current_graph_task_id() != -1 and not held:
            before_it = pool.statistics().torch_bytes
            held.append(torch.empty(48 * MIB, dtype=torch.uint8, device=DEVICE))
            grown.append(pool.statistics().torch_bytes - before_it)
        used.append(used_by_driver() - before)

    for step in range(4):
        assert_same(train(model, x, seen), expected, f"step {step}")
        assert max(used) <= budget + DRIVERS_ROUNDING
        assert grown[0] == 48 * MIB, "what backward takes is counted"
        assert set(grown) <= {0, 48 * MIB}, "and kept by torch, or taken again"
        held.clear()
    assert pool.statistics().refusals == 0


class Greedy(torch.autograd.Function):
    """What it is given, and a gradient that needs too much."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
        return gradients[0]


def test_a_backward_that_cannot_fit_is_an_error_and_the_model_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = rows(512)
    model, expected, budget = make_tuned(x)
    ts.offload(model, device=DEVICE, vram_budget=budget, keep_resident=("adapters",))
    for _ in range(2):
        assert_same(train(model, x), expected)
        handle = model.blocks[3].register_forward_hook(lambda *args: Greedy.apply(args[2]))
        with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory"):
            train(model, x)
        handle.remove()
        torch.cuda.empty_cache()  # as those do who catch it
        assert any("raise vram_budget to at least" in each.message for each in caplog.records)
        assert_same(train(model, x), expected)

        def recompute(*_: Any) -> None:
            if torch._C._current_graph_task_id() != -1:
                torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)

        handle = model.blocks[3].register_forward_pre_hook(recompute)
        with pytest.raises(ts.BudgetError, match=r"^CUDA out of memory"):
            train(model, x)
        handle.remove()
        assert_same(train(model, x), expected)


def test_a_budget_that_moves_on_a_gpu() -> None:
    model, plain = make_wide(12), make_wide(12).to(DEVICE)
    ts.offload(model, device=DEVICE, vram_budget=8 * BLOCK_BYTES)
    with torch.no_grad():
        expected = plain(rows(16))
        for blocks in (40, 6, 14, 5, 40):
            ts.set_budget(model, vram_budget=blocks * BLOCK_BYTES)
            for _ in range(3):
                assert_same(model(rows(16)), expected, f"{blocks} blocks")


@pytest.mark.parametrize("checkpointing", ["no", "reentrant", "not reentrant"])
def test_training_steps_are_the_plain_ones(checkpointing: str) -> None:
    """Backward runs in a thread of autograd's, and so does what it computes again."""
    plain, model = make_stack(4).blocks.to(DEVICE), make_stack(4).blocks
    ts.offload(model, **tiny(ts.estimate_memory(model).smallest_budget_bytes))
    assert hooks_of(model)
    frozen = [blocks[0].up.weight.requires_grad_(False) for blocks in (model, plain)]
    assert not any(weight.requires_grad for weight in frozen)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for step in range(3):
        seen: list[list[Any]] = []
        for blocks in (model, plain):
            begin = x.clone().requires_grad_()
            y = begin
            for block in blocks:
                if checkpointing == "no":
                    y = block(y)
                else:
                    y = checkpoint(block, y, use_reentrant=checkpointing == "reentrant")
            y.square().mean().backward()
            trained = [weight for weight in blocks.parameters() if weight.requires_grad]
            seen.append([begin.grad, *(weight.grad for weight in trained)])
            torch.optim.SGD(trained, lr=0.1).step()
            blocks.zero_grad()
        assert_same(seen[0], seen[1], f"step {step}")
    ts.restore(model)
    assert_same(list(model.parameters()), list(plain.parameters()), "the weights")


class _Pipeline:
    """Models that are used one after the other, as a pipeline of diffusers has them."""

    model_cpu_offload_seq = "first->second"

    def __init__(self) -> None:
        self.first, self.second = make_stack(3, seed=1), make_stack(5, seed=2)

    @property
    def components(self) -> dict[str, Any]:
        return {"second": self.second, "first": self.first, "scheduler": None}

    def __call__(self) -> list[torch.Tensor]:
        ids = row_ids().to(DEVICE)
        with torch.no_grad():
            return [self.first(ids), *(self.second(ids) for _ in range(3))]


def test_the_models_of_a_pipeline_share_a_budget() -> None:
    plain = _Pipeline()
    for part in (plain.first, plain.second):
        part.to(DEVICE)
    expected = plain()
    pipeline = _Pipeline()
    for budget in budgets_of(pipeline, 3):
        ts.offload(pipeline, **tiny(budget))
        for _ in range(3):
            assert_same(pipeline(), expected)
        assert {str(p.device) for p in pipeline.second.parameters()} == {DEVICE}
        assert ts.stats(pipeline).peak_held_bytes <= budget
        ts.restore(pipeline)
        assert {p.device.type for p in pipeline.first.parameters()} == {"cpu"}
