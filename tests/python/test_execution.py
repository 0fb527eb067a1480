"""Whatever the order of execution, and whatever ends it, the next output is the plain model's."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, offload_tightly, smallest_budget
from flexible_model import Flexible, X, make_flexible
from model_shapes import Block, make_stack, row_ids
from tensorstream.orchestrator import orchestrator_of


class Twins:
    """The model twice: plain and offloaded."""

    def __init__(self, plain: Flexible, streamed: Flexible) -> None:
        self.plain, self.streamed = plain, streamed

    def check(self, what: str = "", call: Callable[[Flexible], Any] | None = None) -> None:
        call = call or (lambda model: model(X))
        with torch.no_grad():
            assert_same(call(self.streamed), call(self.plain), what)

    def leased(self) -> int:
        return sum(lent.depth for lent in orchestrator_of(self.streamed)._lent.values())


# Loads one at a time; with room for some ahead; in checking mode.
ROOMS = {"tight": (1.0, {}), "ahead": (2.2, {}), "checked": (2.2, {"self_check": True})}


@pytest.fixture(params=ROOMS)
def twins(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Twins]:
    room, options = ROOMS[request.param]
    plain = make_flexible()
    streamed = copy.deepcopy(plain)
    save_file(
        {k: v for k, v in streamed.state_dict().items() if not k.startswith("shared.")},
        tmp_path / "model.safetensors",
    )
    ts.offload(
        streamed,
        ram_budget=int(smallest_budget(streamed) * room),
        checkpoint=tmp_path / "model.safetensors",
        **options,
    )
    made = Twins(plain, streamed)
    made.check("before")
    yield made
    made.check("after")
    made.check("after, again")
    assert made.leased() == 0


ORDERS = {
    "as registered": [0, 1, 2, 3, 4, 5],
    "reversed": [5, 4, 3, 2, 1, 0],
    "skipped": [0, 2, 5],
    "repeated": [0, 1, 1, 1, 4, 0, 1],
    "one": [3],
    "none": [],
    "interleaved": [0, 3, 1, 4, 2, 5],
}


@pytest.mark.parametrize("order", ORDERS)
def test_other_orders(twins: Twins, order: str) -> None:
    for model in (twins.plain, twins.streamed):
        model.order = ORDERS[order]
    for round_ in range(3):
        twins.check(f"round {round_}")
    for model in (twins.plain, twins.streamed):
        model.order = range(6)


def test_a_new_order_in_each_forward(twins: Twins) -> None:
    generator = random.Random(5)
    for round_ in range(8):
        order = [generator.randrange(6) for _ in range(generator.randrange(1, 9))]
        for model in (twins.plain, twins.streamed):
            model.order = order
        twins.check(f"round {round_}, order {order}")
    assert ts.stats(twins.streamed).surprises > 0
    for model in (twins.plain, twins.streamed):
        model.order = range(6)


def test_entry_points_that_are_not_the_models_forward(twins: Twins) -> None:
    twins.check("encode", lambda model: model.encode(X))
    twins.check("a block", lambda model: model.blocks[3](X))
    twins.check("a leaf", lambda model: model.blocks[3].down(X))
    twins.check("forward without __call__", lambda model: model.blocks[3].forward(X))
    twins.check("the model's forward without __call__", lambda model: model.forward(X))
    twins.check("recursion", lambda model: model.recurse(X, 2))
    twins.check("a shared module", lambda model: model.shared(model.blocks[2](X)))


def test_a_call_inside_a_call(twins: Twins) -> None:
    for model in (twins.plain, twins.streamed):
        model.blocks[1].register_forward_hook(
            lambda module, args, output, model=model: output + model.blocks[4](args[0])
        )
    twins.check("a hook that runs another block")
    twins.check("twice in one expression", lambda model: model(model(X)))


class Stop(Exception):
    """An early exit, as some code makes it."""


def _raise_at(position: int, error: BaseException) -> Callable[[int], None]:
    def act(now: int) -> None:
        if now == position:
            raise error

    return act


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("position", [0, 2, 5])
@pytest.mark.parametrize("inside", [False, True])
def test_a_forward_that_is_ended(
    twins: Twins, error: BaseException, position: int, inside: bool
) -> None:
    """From the model's forward, and from inside a block's: Ctrl-C skips the hooks after it."""
    model = twins.streamed
    handle = None
    if inside:
        act = _raise_at(0, error)
        handle = model.blocks[position].down.register_forward_pre_hook(lambda *_: act(0))
    else:
        model.act = _raise_at(position, error)
    for _ in range(2):
        with torch.no_grad(), pytest.raises(type(error)):
            model(X)
    if handle is not None:
        handle.remove()
    model.act = lambda position: None
    twins.check("the forward after it")


def test_a_forward_that_is_ended_and_continued_by_another_thread(twins: Twins) -> None:
    def interrupted() -> None:
        twins.streamed.act = _raise_at(3, KeyboardInterrupt())
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            twins.streamed(X)
        twins.streamed.act = lambda position: None
        ended.set()
        go_on.wait(20)  # this thread lives while the other runs the model

    ended, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=interrupted)
    thread.start()
    assert ended.wait(20)
    twins.check("from another thread, the first one alive")
    go_on.set()
    thread.join()
    thread = threading.Thread(target=interrupted)
    go_on.set()
    thread.start()
    thread.join()
    twins.check("from another thread, the first one gone")


def test_an_interrupt_that_the_model_itself_catches() -> None:
    """The block that it ended gives its lease back at the latest with the whole forward."""

    class Catching(nn.Module):
        def __init__(self, model: Flexible) -> None:
            super().__init__()
            self.model = model
            self.tries = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.model.blocks:
                try:
                    x = block(x)
                except KeyboardInterrupt:
                    self.tries += 1
            return x

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    streamed = Catching(make_flexible())
    plain = Catching(make_flexible())
    offload_tightly(streamed)
    handles = [
        m.model.blocks[2].down.register_forward_pre_hook(interrupt) for m in (streamed, plain)
    ]
    with torch.no_grad():
        for _ in range(2):
            assert_same(streamed(X), plain(X))
        assert streamed.tries == plain.tries == 2
        for handle in handles:
            handle.remove()
        assert_same(streamed(X), plain(X))
    assert sum(lent.depth for lent in orchestrator_of(streamed)._lent.values()) == 0


@pytest.mark.parametrize("thread", ["same", "another"])
@pytest.mark.parametrize("take", ["state_dict", "data", "detach"])
def test_what_is_taken_after_an_interrupt_stays_as_it_is(take: str, thread: str) -> None:
    model, plain = offload_tightly(make_stack(8)), make_stack(8)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.blocks[5].down.register_forward_pre_hook(interrupt)

    def run() -> None:
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            model(row_ids())

    if thread == "same":
        run()
    else:
        running = threading.Thread(target=run)
        running.start()
        running.join()
    handle.remove()
    if take == "state_dict":
        taken = model.state_dict()
    else:
        taken = {
            name: weight.data if take == "data" else weight.detach()
            for name, weight in model.named_parameters()
        }
    expected = {name: plain.state_dict()[name] for name in taken}
    x = torch.randn(1, 256)
    with torch.no_grad():
        for block, plain_block in zip(model.blocks, plain.blocks, strict=True):
            assert_same(block(x), plain_block(x))
            assert_same(taken, expected)
        assert_same(model(row_ids()), plain(row_ids()))


def test_writes_of_a_forward_that_is_ended_are_kept(twins: Twins) -> None:
    @torch.no_grad()
    def act(*_: Any) -> None:
        for model in (twins.streamed, twins.plain):
            model.blocks[2].up.weight.mul_(1.5)
        raise KeyboardInterrupt

    handle = twins.streamed.blocks[2].down.register_forward_pre_hook(act)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        twins.streamed(X)
    handle.remove()
    twins.check("with what was written before the interrupt")


def _in_threads(calls: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - shown by the thread that joins
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    if errors:
        raise errors[0]


def _repeat(model: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            for round_ in range(12):
                assert_same(model(x), expected, f"round {round_}")

    return call


def test_threads_on_one_model_and_on_its_parts(twins: Twins) -> None:
    model, plain = twins.streamed, twins.plain
    with torch.no_grad():
        calls = [_repeat(model, X + i, plain(X + i)) for i in range(2)]
        calls += [_repeat(model.blocks[i], X, plain.blocks[i](X)) for i in (1, 4)]
    _in_threads(calls)


def test_threads_on_two_models(twins: Twins) -> None:
    other = offload_tightly(make_flexible(3))
    with torch.no_grad():
        expected = make_flexible(3)(X)
        calls = [_repeat(twins.streamed, X, twins.plain(X)), _repeat(other, X, expected)]
    _in_threads(calls * 2)


def test_one_module_in_two_models() -> None:
    """The second owner is refused: the block's weights are streamed by the first one's engine."""
    shared = Block()
    one, other = nn.Sequential(shared, Block()), nn.Sequential(Block(), shared)
    plain = copy.deepcopy((one, other))
    offload_tightly(one)
    with torch.no_grad():
        assert_same(one(X), plain[0](X))
        assert_same(other(X), plain[1](X), "a plain model with a streamed part")
    with pytest.raises(ts.ConfigError, match=r"'1\.up\.weight' is offloaded already"):
        ts.offload(other, ram_budget="1GiB")
    with torch.no_grad():
        assert_same(other(X), plain[1](X), "after the refusal")
        assert_same(one(X), plain[0](X), "after the refusal")


def test_user_hooks_keep_their_order_and_see_true_weights() -> None:
    """Hooks from before and from after the offload, before and after the forward, at the front."""

    def note(model: Flexible, label: str) -> Callable[..., None]:
        def hook(module: Block, *_: Any) -> None:
            events[id(model)].append((label, module.up.weight.detach()[0, 0].item()))

        return hook

    plain = make_flexible()
    streamed = copy.deepcopy(plain)
    events: dict[int, list[tuple[str, float]]] = {id(plain): [], id(streamed): []}
    for model in (plain, streamed):
        for block in model.blocks:
            block.register_forward_pre_hook(note(model, "pre, before"))
            block.register_forward_hook(note(model, "post, before"))
    offload_tightly(streamed)
    for model in (plain, streamed):
        for block in model.blocks:
            block.register_forward_pre_hook(note(model, "pre, after"))
            block.register_forward_pre_hook(note(model, "pre, at the front"), prepend=True)
            block.register_forward_hook(note(model, "post, after"))
            block.register_forward_hook(note(model, "post, at the front"), prepend=True)
            block.up.register_forward_hook(lambda module, args, output: output * 2)
    with torch.no_grad():
        for _ in range(2):
            assert_same(streamed(X), plain(X))
    assert events[id(streamed)] == events[id(plain)]
    assert len(events[id(plain)]) == 2 * 6 * 6


MODES = [torch.no_grad, torch.enable_grad, torch.inference_mode]


def test_modes_can_follow_each_other(twins: Twins) -> None:
    held = []
    for mode in [*MODES, *reversed(MODES), torch.inference_mode, torch.enable_grad]:
        with mode():
            got, expected = twins.streamed(X), twins.plain(X)
        assert_same(got, expected, str(mode))
        assert got.requires_grad == expected.requires_grad
        assert got.is_inference() == expected.is_inference()
        held.append(got)


def test_a_model_offloaded_in_inference_mode() -> None:
    model, plain = make_flexible(), make_flexible()
    with torch.inference_mode():
        offload_tightly(model)
        assert_same(model(X), plain(X))
    with torch.no_grad():
        assert_same(model(X), plain(X))
        model.blocks[0].up.weight.mul_(2)
        plain.blocks[0].up.weight.mul_(2)
        assert_same(model(X), plain(X), "after a write")
    assert_same(list(model.parameters()), list(plain.parameters()))


def test_weights_made_in_inference_mode_stay_as_they_are() -> None:
    with torch.inference_mode():
        made = make_flexible()
    model, plain = make_flexible(), make_flexible()
    model.blocks[0].up.weight = made.blocks[0].up.weight
    model.blocks[1] = made.blocks[1]
    offload_tightly(model)
    assert type(model.blocks[0].up.weight) is nn.Parameter
    for mode in (torch.no_grad, torch.inference_mode):  # torch gives no gradients there
        with mode():
            assert_same(model(X), plain(X))
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(X), plain(X), "restored")


@pytest.mark.parametrize("grad", [False, True])
def test_autocast(twins: Twins, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                for _ in range(2):  # the second takes weights from autocast's cache
                    got, expected = twins.streamed(X), twins.plain(X)
                    assert_same(got, expected)
                    assert_same(twins.streamed.encode(X), twins.plain.encode(X))
            assert_same(twins.streamed(X), twins.plain(X), "without autocast")


def test_casts_of_others_outlast_a_streamed_model_that_is_frozen() -> None:
    """Autocast casts a weight once in a region, so that its uses' gradients are summed in bfloat16."""
    torch.manual_seed(0)
    head = nn.Linear(512, 512)
    body = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512)).requires_grad_(False)
    x = torch.randn(3, 512)

    def gradient(model: nn.Module) -> torch.Tensor:
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = head(model(torch.tanh(head(x))))
        y.float().pow(2).sum().backward()
        assert head.weight.grad is not None
        return head.weight.grad.clone()

    plain = gradient(copy.deepcopy(body))
    offload_tightly(body)
    assert_same(gradient(body), plain)


def test_the_random_state_is_not_advanced(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Sequential(Block(), nn.Dropout(0.5)) for _ in range(4))).train()
    plain = copy.deepcopy(model)
    before = torch.get_rng_state()
    offload_tightly(model, self_check=True)
    assert torch.equal(torch.get_rng_state(), before)
    for seed in range(2):
        outputs = []
        for either in (model, plain):
            torch.manual_seed(seed)
            with torch.no_grad():
                outputs.append((either(X), either(X), torch.get_rng_state()))
        assert_same(*outputs)
    ts.restore(model)
    state = torch.get_rng_state()
    assert torch.equal(state, outputs[0][2])


def test_mutable_containers_keep_their_identity() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(4))

        def forward(
            self, x: torch.Tensor, cache: list[torch.Tensor], *, extra: dict[str, Any]
        ) -> Any:
            for block in self.blocks:
                x = block(x)
                cache.append(x)
            extra["count"] = len(cache)
            return x, cache, extra

    model = Caching()
    plain = copy.deepcopy(model)
    offload_tightly(model)
    cache: list[torch.Tensor] = []
    extra: dict[str, Any] = {}
    with torch.no_grad():
        output, cache_out, extra_out = model(X, cache, extra=extra)
        expected = plain(X, [], extra={})
    assert cache_out is cache and extra_out is extra
    assert_same((output, cache), expected[:2])
    assert extra == expected[2]


def test_a_hook_that_waited_for_restore_does_nothing() -> None:
    """What another thread's call of a module comes to, once the model it waited for is restored."""
    model = make_flexible()
    offload_tightly(model)
    found = orchestrator_of(model)
    hooked = next(hooked for hooked in found._hooked.values() if hooked._unit.groups)
    ts.restore(model)
    hooked._unit.before(model, ())
    hooked._unit.after(model, (), None)
    with torch.no_grad():
        assert_same(model(X), make_flexible()(X))
