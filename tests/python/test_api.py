"""An offloaded model keeps every method and attribute of the plain one; what the API says is true."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, same_bytes, save, smallest_budget
from flexible_model import X, make_flexible
from model_shapes import SHAPES, Block, Stack, make_stack, row_ids, token_ids


def _tied_stack() -> Stack:
    model = make_stack(4)
    model.blocks[3].down.weight = model.blocks[0].down.weight
    model.register_buffer("counter", torch.zeros(3), persistent=False)
    return model


def _names(items: Any) -> list[Any]:
    return [name for name, _ in items]


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "named_modules()": lambda m: _names(m.named_modules()),
    "named_modules(memo)": lambda m: _names(m.named_modules(set(m.blocks))),
    "named_modules by position": lambda m: _names(m.named_modules(set(), "p", False)),
    "named_modules(prefix)": lambda m: _names(m.named_modules(prefix="p")),
    "named_modules with duplicates": lambda m: _names(m.named_modules(remove_duplicate=False)),
    "named_parameters()": lambda m: _names(m.named_parameters()),
    "named_parameters by position": lambda m: _names(m.named_parameters("p", True, False)),
    "named_parameters(prefix)": lambda m: _names(m.named_parameters(prefix="p")),
    "named_parameters of itself": lambda m: _names(m.named_parameters(recurse=False)),
    "named_parameters with duplicates": lambda m: _names(
        m.named_parameters(remove_duplicate=False)
    ),
    "parameters": lambda m: [(p.shape, p.dtype, p.requires_grad) for p in m.parameters()],
    "parameters of itself": lambda m: len(list(m.parameters(recurse=False))),
    "named_buffers": lambda m: _names(m.named_buffers("p", True, False)),
    "buffers": lambda m: [buffer.tolist() for buffer in m.buffers(recurse=True)],
    "modules": lambda m: [type(module) for module in m.modules()],
    "children": lambda m: [type(module) for module in m.children()],
    "named_children": lambda m: _names(m.named_children()),
    "get_submodule": lambda m: type(m.get_submodule("blocks.2.up")),
    "get_parameter": lambda m: m.get_parameter("blocks.2.up.weight").shape,
    "get_buffer": lambda m: m.get_buffer("scale").item(),
    "state_dict": lambda m: list(m.state_dict()),
    "state_dict(prefix)": lambda m: list(m.state_dict(prefix="p.")),
    "extra_repr": lambda m: m.extra_repr(),
    "repr": repr,
    "type": type,
    "dir": dir,
    "signature": lambda m: inspect.signature(m.forward),
    "isinstance": lambda m: (isinstance(m, Stack), isinstance(m.blocks[0], Block)),
    "train": lambda m: [module.training for module in m.train().modules()],
    "eval": lambda m: [module.training for module in m.eval().modules()],
    "len": lambda m: len(m.blocks),
    "index": lambda m: type(m.blocks[-1]),
    "keys of __dict__": lambda m: [list(vars(module)) for module in m.modules()],
    "keys of parameters": lambda m: [list(module._parameters) for module in m.modules()],
    "apply": lambda m: m.apply(lambda module: None) is m,
    "requires_grad_": lambda m: [p.requires_grad for p in m.requires_grad_(False).parameters()],
    "ties": lambda m: m.blocks[3].down.weight is m.blocks[0].down.weight,
    "devices": lambda m: [p.device for p in m.parameters()],
}


@pytest.mark.parametrize("method", METHODS)
def test_module_methods_give_what_the_plain_model_gives(method: str) -> None:
    plain = _tied_stack()
    model = offload_tightly(copy.deepcopy(plain))
    assert METHODS[method](model) == METHODS[method](plain)


def test_apply_and_zero_grad_reach_every_parameter() -> None:
    model = offload_tightly(_tied_stack())
    seen: list[nn.Module] = []
    model.apply(seen.append)
    assert len(seen) == len(set(map(id, seen))) == len(list(model.modules()))
    for parameter in model.parameters():
        parameter.grad = torch.ones(parameter.shape)
    model.zero_grad(set_to_none=False)
    assert all(not parameter.grad.any() for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_devices_are_readable_and_inputs_can_follow_them() -> None:
    shape = SHAPES["llama"]
    plain = shape.make(3)
    model = offload_tightly(copy.deepcopy(plain))
    assert model.device == torch.device("cpu")
    assert model.dtype == plain.dtype
    assert {p.device for p in model.parameters()} == {torch.device("cpu")}
    assert model.num_parameters() == plain.num_parameters()
    assert model.get_memory_footprint() == plain.get_memory_footprint()
    ids = token_ids().to(model.device)
    with torch.no_grad():
        assert_same(model(ids), plain(ids))
    assert model.get_input_embeddings() is model.model.embed_tokens


def test_save_pretrained_of_an_offloaded_model(tmp_path: Path) -> None:
    for name in ("gpt2", "qwen3"):
        plain = SHAPES[name].make(3)
        model = offload_tightly(copy.deepcopy(plain))
        for either, folder in ((plain, "plain"), (model, "streamed")):
            save(either, tmp_path / name / folder)
        written = {path.name for path in (tmp_path / name / "plain").iterdir()}
        assert written == {path.name for path in (tmp_path / name / "streamed").iterdir()}
        for file in written:
            contents = [(tmp_path / name / f / file).read_bytes() for f in ("plain", "streamed")]
            assert contents[0] == contents[1], file


class Empty(nn.Sequential):
    """Its truth value is False: it says that it has no length."""

    def __len__(self) -> int:
        return 0


class Undecided(Block):
    """Its truth value is an error."""

    def __bool__(self) -> bool:
        raise RuntimeError("no truth value")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    __hash__ = nn.Module.__hash__


class Holder(nn.Module):
    """Holds what analysis must not take for a truth value, and its one weight beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Undecided() for _ in range(4))
        self.tail = Empty()
        self.tail.add_module("last", nn.Linear(256, 256))
        self.none = None
        self.register_parameter("absent", None)
        self.register_buffer("no_buffer", None)
        self.generator = self.parameters()
        self.values = torch.tensor([1.0, 2.0])
        self.scalar = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(x, self.tail.last.weight) + self.scalar


def test_models_whose_parts_have_no_truth_value() -> None:
    model = Holder()
    plain = Holder()
    plain.load_state_dict(model.state_dict())
    analysis = ts.analyze(model)
    assert analysis.weights_bytes == sum(p.nbytes for p in plain.parameters())
    assert not analysis.left
    ts.estimate_memory(model)
    ts.plan(model, ram_budget="1GiB")
    offload_tightly(model)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(X), plain(X))
    assert next(model.generator) is not None, "the user's own generator was consumed"
    ts.stats(model)
    ts.restore(model)
    empty = Empty(Block(), Block())
    assert ts.offload(empty, ram_budget=smallest_budget(empty)) is empty
    assert hooks_of(empty)
    ts.restore(empty)


def _snapshot(model: nn.Module) -> list[tuple[int, dict[str, Any]]]:
    """What every module and parameter has in its __dict__, containers copied."""

    def shallow(value: Any) -> Any:
        return type(value)(value) if isinstance(value, dict | set | list) else value

    owners = [*model.modules(), *model.parameters()]
    return [(id(o), {key: shallow(value) for key, value in vars(o).items()}) for o in owners]


@pytest.mark.parametrize("room", [1.0, 2.0, 1000.0])
def test_restore_gives_every_module_back_as_it_was(room: float) -> None:
    model = _tied_stack()
    block_hook = model.blocks[1].register_forward_hook(lambda *_: None)
    model.table.weight.note = "mine"
    plain = copy.deepcopy(model)
    before = _snapshot(model)
    types = [type(p) for p in model.parameters()]
    for _ in range(3):
        ts.offload(model, ram_budget=int(smallest_budget(model) * room))
        with torch.no_grad():
            assert_same(model(row_ids()), plain(row_ids()))
        assert ts.restore(model) is model
        after = _snapshot(model)
        assert [key for key, _ in after] == [key for key, _ in before]
        for (_, now), (_, then) in zip(after, before, strict=True):
            assert now.keys() == then.keys()
            assert all(now[key] is then[key] or now[key] == then[key] for key in then)
        assert [type(p) for p in model.parameters()] == types
        assert hooks_of(model) == []
        with pytest.raises(ts.ConfigError, match="not offloaded"):
            ts.stats(model)
        with pytest.raises(ts.ConfigError, match="not offloaded"):
            ts.restore(model)
        with torch.no_grad():
            assert_same(model(row_ids()), plain(row_ids()))
    block_hook.remove()
    with torch.no_grad():
        model.blocks[0].up.weight.zero_()  # memory of its own, writable


def test_a_restored_model_trains() -> None:
    model = make_flexible()
    plain = copy.deepcopy(model)
    ts.restore(offload_tightly(model))
    for either in (model, plain):
        optimizer = torch.optim.SGD(either.parameters(), 0.1)
        either(X).square().mean().backward()
        optimizer.step()
    assert_same(list(model.parameters()), list(plain.parameters()))


def test_modules_and_parameters_added_to_an_offloaded_model() -> None:
    """A low-rank adapter as a plain module around a streamed one, taken off again."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.low = nn.Parameter(torch.full((4, 256), 0.01))
            self.high = nn.Parameter(torch.full((256, 4), 0.02))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + x @ self.low.T @ self.high.T

    def merge(model: Any) -> None:
        with torch.no_grad():
            adapter = model.blocks[1].up
            adapter.base.weight += adapter.high @ adapter.low
            model.blocks[1].up = adapter.base

    plain = make_flexible()
    model = offload_tightly(copy.deepcopy(plain))
    for either in (model, plain):
        either.blocks[1].up = Adapter(either.blocks[1].up)
        either.blocks[4].extra = nn.Parameter(torch.ones(3))
    with torch.no_grad():
        assert_same(model(X), plain(X), "with an adapter")
    merge(model)
    merge(plain)
    with torch.no_grad():
        assert_same(model(X), plain(X), "merged")
        assert_same(model(X), plain(X), "merged")
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(X), plain(X), "restored")


def test_resizing_embeddings_needs_a_restored_model() -> None:
    for name in ("llama", "gpt2"):
        plain = SHAPES[name].make(3)
        model = offload_tightly(copy.deepcopy(plain))
        with pytest.raises(ts.UnsupportedError, match=r"tensorstream\.restore"):
            model.resize_token_embeddings(1100, mean_resizing=False)
        with torch.no_grad():
            assert_same(model(token_ids()), plain(token_ids()), name)
        ts.restore(model)
        for either in (model, plain):
            torch.manual_seed(0)
            either.resize_token_embeddings(1100, mean_resizing=False)
        offload_tightly(model)
        with torch.no_grad():
            assert_same(model(token_ids() + 90), plain(token_ids() + 90), name)


def test_analysis_estimate_and_plan_of_a_path_are_those_of_the_model(tmp_path: Path) -> None:
    for name, shape in SHAPES.items():
        model: Any = shape.make(3)
        path = save(model, tmp_path / name)
        loaded = type(model).from_pretrained(path)
        assert ts.analyze(path) == ts.analyze(loaded), name
        assert ts.estimate_memory(path) == ts.estimate_memory(loaded), name
        budget = ts.estimate_memory(path).smallest_budget_bytes + 100_000
        assert ts.plan(path, ram_budget=budget) == ts.plan(loaded, ram_budget=budget), name
        assert str(path) and ts.analyze(str(path)) == ts.analyze(path)


def test_what_analysis_and_plans_say() -> None:
    model = _tied_stack()
    analysis = ts.analyze(model)
    assert analysis.weights_bytes == sum(p.nbytes for p in model.parameters())
    assert analysis.fixed_bytes == sum(b.nbytes for b in model.buffers())
    assert analysis.ties == (("blocks.0.down.weight", "blocks.3.down.weight"),)
    assert sum(group.size_bytes for group in analysis.groups) == analysis.weights_bytes
    estimate = ts.estimate_memory(model)
    assert estimate.smallest_budget_bytes < estimate.weights_bytes
    assert estimate.weights_bytes <= estimate.everything_fits_bytes
    plan = ts.plan(model, ram_budget=estimate.smallest_budget_bytes)
    assert plan.resident_bytes + plan.arena_bytes <= plan.budget_bytes
    assert plan.bound == "link" and plan.predicted_seconds > 0
    full = ts.plan(model, ram_budget=estimate.everything_fits_bytes)
    assert (full.streamed_bytes, full.arena_bytes, full.bound) == (0, 0, "nothing streamed")
    for value in (analysis, estimate, plan, full):
        assert str(value) and "MiB" in str(value)
    assert not hooks_of(model)
    assert same_bytes(model.scale, torch.tensor(0.5))


def test_statistics_count_what_happened() -> None:
    model = offload_tightly(make_flexible(), prefetch="none")
    before = ts.stats(model)
    assert (before.acquires, before.streamed_bytes, before.stalled_share) == (0, 0, 0)
    with torch.no_grad():
        model(X)
    after = ts.stats(model)
    plan_bytes = sum(p.nbytes for p in model.parameters())
    assert after.hits + after.partial_hits + after.misses == after.acquires > 0
    assert 0 < after.streamed_bytes <= 2 * plan_bytes
    assert after.streamed_ram_bytes + after.streamed_disk_bytes == after.streamed_bytes
    assert after.source_ram_bytes > 0
    assert 0 <= after.stalled_share <= 1
    assert after.streamed_bytes_per_second > 0


def test_on_the_cpu_groups_are_loaded_when_they_are_used() -> None:
    """Unless another prefetch is asked for: the plan then makes room to load ahead."""
    model = make_flexible()
    budget = 3 * ts.estimate_memory(model).smallest_budget_bytes
    at_use = ts.plan(model, ram_budget=budget)
    ahead = ts.plan(model, ram_budget=budget, prefetch="aggressive")
    assert 0 < at_use.arena_bytes < ahead.arena_bytes
    assert at_use.resident_bytes > ahead.resident_bytes
    assert at_use.exposed_loads == 0
    ts.offload(model, ram_budget=budget)
    with torch.no_grad():
        model(X)
        model(X)
    stats = ts.stats(model)
    assert stats.misses == stats.loads > 0
    assert stats.partial_hits == 0


def test_keep_resident_keeps_what_it_names() -> None:
    model = make_stack(4)
    kept = ts.plan(model, ram_budget="1GiB", keep_resident=("blocks.1", "head.weight"))
    options = {
        "ram_budget": kept.smallest_budget_bytes,
        "keep_resident": ("blocks.1", "head.weight"),
    }
    plain = copy.deepcopy(model)
    ts.offload(model, **options)
    assert type(model.blocks[1].up.weight) is nn.Parameter
    assert type(model.head.weight) is nn.Parameter
    assert type(model.blocks[2].up.weight) is not nn.Parameter
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))


def test_the_version_is_the_packages() -> None:
    assert ts.__version__ == importlib.metadata.version("tensorstream")
