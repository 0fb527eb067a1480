"""Random uses of a streamed model, each of its plain twin as well, out of a seed."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import tensorstream as ts
from conftest import tensors_of
from model_shapes import SHAPES
from random_models import (
    READS,
    WRITES,
    Difference,
    Interrupt,
    Planned,
    Skip,
    Twins,
    Writes,
    bfloat16_without_gradients,
    compare,
    seeded_call,
    some_parameter,
)

Use = Callable[[Twins, random.Random], None]
USES: dict[str, Use] = {}


def a_use(function: Use) -> Use:
    USES[function.__name__] = function
    return function


def needs_offloaded(twins: Twins) -> None:
    if not twins.offloaded:
        raise Skip


@a_use
def offload(twins: Twins, draw: random.Random) -> None:
    if twins.offloaded:
        raise Skip
    estimate = ts.estimate_memory(twins.streamed)
    least, most = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    options: dict[str, Any] = {
        "ram_budget": int(least + draw.choice((0, 0, 0.3, 0.6, 1)) * (most - least)),
        "prefetch": draw.choice(("adaptive", "aggressive", "next", "none")),
        "self_check": draw.random() < 0.3,
        "backend": draw.choice(("auto", "auto", "mmap", "direct", "cached")),
    }
    if not twins.on_host:
        options["compression"] = draw.choice(("auto", "none", "1", "9"))
    if draw.random() < 0.5:
        twins.file = twins.new_folder() / "model.safetensors"
        save_model(twins.streamed, str(twins.file))
        if draw.random() < 0.4:
            ts.pack(twins.file, twins.file.with_name("packed"), level=1)
            twins.file = twins.file.with_name("packed")
        options["checkpoint"] = twins.file
    twins.note(str(options))
    try:
        ts.offload(twins.streamed, **options)
    except ts.BudgetError:
        if twins.on_host:  # a GPU needs more than is estimated for the CPU
            raise
        raise Skip from None
    twins.offloaded = True
    twins.held.clear()


@a_use
def restore(twins: Twins, draw: random.Random) -> None:
    needs_offloaded(twins)
    twins.held.clear()
    try:
        ts.restore(twins.streamed)
    except ts.IoError as error:
        if not twins.changed:
            raise
        raise Skip from error
    twins.offloaded, twins.file, twins.changed = False, None, False


@a_use
def set_budget(twins: Twins, draw: random.Random) -> None:
    needs_offloaded(twins)
    with contextlib.suppress(ts.UnsupportedError):  # of what somebody holds
        try:
            ts.set_budget(twins.streamed, ram_budget=1)
            raise Difference("a budget of one byte was taken")
        except ts.BudgetError as error:
            least = error.needed_bytes
        size = sum(each.nbytes for each in twins.plain.parameters())
        try:
            ts.set_budget(twins.streamed, ram_budget=least + draw.choice((0, size // 2, size)))
        except ts.IoError:
            if not twins.changed:
                raise


@a_use
def forward(twins: Twins, draw: random.Random) -> None:
    inputs = twins.inputs(draw)
    mode = draw.choice(
        (torch.inference_mode, torch.no_grad, torch.enable_grad, bfloat16_without_gradients)
    )
    with mode():
        twins.both(lambda model: seeded_call(model, inputs))


@a_use
def backward(twins: Twins, draw: random.Random) -> None:
    inputs, wants_step = twins.inputs(draw), draw.random() < 0.4
    rate = 1e-3

    def use(model: Any) -> list[torch.Tensor]:
        given = {
            name: value.clone().requires_grad_(value.is_floating_point())
            for name, value in inputs.items()
        }
        outputs = [each for each in tensors_of(seeded_call(model, given)) if each.requires_grad]
        if not outputs:
            return []
        sum(each.float().pow(2).mean() for each in outputs).backward()  # type: ignore[union-attr]
        if wants_step:
            torch.optim.AdamW(model.parameters(), rate, foreach=True).step()
            model.zero_grad()
        return [each.grad for each in given.values() if each.grad is not None]

    twins.both(use)


@a_use
def flip(twins: Twins, draw: random.Random) -> None:
    """Training or not, gradients or not, recomputing or not; of the whole or a part."""
    which, on = draw.choice(("train", "requires_grad_", "recomputes")), draw.random() < 0.5
    part = draw.choice([name for name, _ in twins.plain.named_modules()])
    twins.note(f"{which} {on} {part}")
    for model in (twins.streamed, twins.plain):
        if which != "recomputes":
            getattr(model.get_submodule(part), which)(on)
        elif twins.shape is None:
            model.recomputes = on


@a_use
def generate(twins: Twins, draw: random.Random) -> None:
    if twins.shape is None or SHAPES[twins.shape].prompt is None:
        raise Skip
    prompt, samples = SHAPES[twins.shape].prompt(), draw.random() < 0.5  # type: ignore[misc]

    def use(model: Any) -> Any:
        torch.manual_seed(1)
        return model.generate(**prompt, max_new_tokens=2, do_sample=samples)

    twins.both(use)


@a_use
def write(twins: Twins, draw: random.Random) -> None:
    parameter, kind = some_parameter(twins, draw), draw.choice(list(WRITES))
    twins.note(kind)

    @torch.no_grad()
    def use(model: Any) -> None:
        weight = parameter(model)
        seeded = torch.Generator().manual_seed(3)
        WRITES[kind](weight, torch.randn(weight.shape, generator=seeded).to(weight.dtype) / 30)

    twins.both(use)


@a_use
def read(twins: Twins, draw: random.Random) -> None:
    parameter, kind = some_parameter(twins, draw), draw.choice(list(READS))
    twins.note(kind)
    with torch.set_grad_enabled(draw.random() < 0.5):
        twins.both(lambda model: READS[kind](parameter(model)))


@a_use
def hold(twins: Twins, draw: random.Random) -> None:
    """Keeps an alias of a weight, or writes to one that is kept."""
    writes = any(isinstance(module, Writes) for module in twins.plain.modules())
    if writes and twins.on_host:
        raise Skip  # of a model in RAM that is refused
    if twins.held and draw.random() < 0.6:
        pair = twins.held.pop()
        compare(*pair, "an alias that was kept")
        for alias in pair:
            alias.mul_(1.02)
        return
    parameter = some_parameter(twins, draw)
    twins.held.append((parameter(twins.streamed).data, parameter(twins.plain).data))


@a_use
def load(twins: Twins, draw: random.Random) -> None:
    """Loads another state, or a part of it."""
    share = draw.choice((1, 0.4))
    values = {
        name: value * 1.01 if value.is_floating_point() else value.clone()
        for name, value in twins.plain.state_dict().items()
        if draw.random() < share
    }
    twins.both(lambda model: model.load_state_dict(values, strict=False) and None)


@a_use
def copies(twins: Twins, draw: random.Random) -> None:
    """A copy is a plain model of the same values."""
    whole = draw.choice((copy.deepcopy, _pickled, copy.copy))
    if whole is _pickled and any(map(is_parametrized, twins.plain.modules())):
        raise Skip  # torch pickles none
    inputs = twins.inputs(draw)

    def use(model: Any) -> Any:
        with torch.no_grad():
            return seeded_call(whole(model), inputs)

    twins.both(use)


def _pickled(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@a_use
def convert(twins: Twins, draw: random.Random) -> None:
    """Another type is refused of what is streamed."""
    streamed = [
        each for each in twins.streamed.parameters() if hasattr(each, "_tensorstream_weight")
    ]
    if not streamed:
        raise Skip
    try:
        draw.choice((twins.streamed.half, twins.streamed.double, twins.streamed.share_memory))()
    except ts.UnsupportedError:
        return
    raise Difference("it was converted")


@a_use
def replace(twins: Twins, draw: random.Random) -> None:
    """Puts another parameter, or another module, in the place of a layer's."""
    names = [name for name, module in twins.plain.named_modules() if type(module) is nn.Linear]
    of_torch = ("self_attn", "linear")  # layers of torch that read what is not there
    name = draw.choice([each for each in names if not any(part in each for part in of_torch)])
    what = draw.choice(("weight", "bias", "module"))
    twins.note(f"{what} {name}")
    twins.held.clear()
    for model in (twins.streamed, twins.plain):
        layer = model.get_submodule(name)
        shape, dtype = layer.weight.shape, layer.weight.dtype
        new = nn.Linear(shape[1], shape[0], bias=layer.bias is not None, dtype=dtype)
        with torch.no_grad():
            new.weight.fill_(0.01)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
        if what == "module":
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, new.train(layer.training))
        else:
            setattr(layer, what, new.weight if what == "weight" else None)


@a_use
def call_functionally(twins: Twins, draw: random.Random) -> None:
    inputs, share = twins.inputs(draw), draw.choice((1, 0.5, 0))
    names = [name for name, _ in twins.plain.named_parameters() if draw.random() < share]

    @torch.no_grad()
    def use(model: Any) -> Any:
        own = dict(model.named_parameters())
        given = {name: own[name].detach() * 1.1 for name in names}
        return torch.func.functional_call(model, given, (), inputs)

    twins.both(use)


@a_use
def hook(twins: Twins, draw: random.Random) -> None:
    """A hook of the user's reads or writes weights and changes outputs; then it goes."""
    name = draw.choice([name for name, _ in twins.plain.named_modules() if name])
    writes, inputs = draw.random() < 0.5, twins.inputs(draw)
    twins.held.clear()

    @torch.no_grad()
    def before(module: nn.Module, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            if writes:
                weight.mul_(0.99)
            weight.sum()

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return output * 1.5 if isinstance(output, torch.Tensor) else None

    @torch.no_grad()
    def use(model: Any) -> Any:
        part = model.get_submodule(name)
        handles = (part.register_forward_pre_hook(before), part.register_forward_hook(after))
        output = seeded_call(model, inputs)
        for handle in handles:
            handle.remove()
        return output

    twins.both(use)


@a_use
def fail(twins: Twins, draw: random.Random) -> None:
    """A forward fails amidst."""
    name = draw.choice([name for name, _ in twins.plain.named_modules() if name])
    mode, inputs = draw.choice((torch.no_grad, torch.enable_grad)), twins.inputs(draw)

    def fails(*_: Any) -> None:
        raise Planned

    for model in (twins.streamed, twins.plain):
        handle = model.get_submodule(name).register_forward_pre_hook(fails)
        with contextlib.suppress(Planned), mode():
            seeded_call(model, inputs)
        handle.remove()


@a_use
def interrupt(twins: Twins, draw: random.Random) -> None:
    """Ctrl-C in a forward, a read of everything, or a move of the budget."""
    if any(module.training for module in twins.plain.modules()):
        raise Skip  # a part of a forward writes a part of what it writes
    what, inputs = draw.choice(("forward", "forward", "read", "budget")), twins.inputs(draw)
    lines = int(10 ** draw.uniform(0.5, 3.5))
    before, handler = sys.gettrace(), signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt, ts.ConfigError, ts.UnsupportedError):
        try:
            sys.settrace(Interrupt(lines).trace)
            if what == "forward":
                twins.streamed(**inputs)
            elif what == "read":
                twins.streamed.state_dict()
            else:
                ts.set_budget(twins.streamed, ram_budget="1GiB")
        finally:
            sys.settrace(before)
    signal.signal(signal.SIGINT, handler)


@a_use
def run_in_threads(twins: Twins, draw: random.Random) -> None:
    """Two threads on one model, beside a copy of it."""
    if any(module.training for module in twins.plain.modules()):
        raise Skip
    inputs = twins.inputs(draw)
    outputs: list[Any] = []

    def work(model: Any) -> None:
        torch.get_num_threads()  # torch notes the number of a new thread by that
        with torch.no_grad():
            outputs.append(seeded_call(model, inputs))

    copied = copy.deepcopy(twins.streamed)
    models = (twins.plain, twins.streamed, twins.streamed, copied)
    threads = [threading.Thread(target=work, args=(model,), daemon=True) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if len(outputs) != len(models):
        raise Difference("a thread failed or hangs")
    for output in outputs[1:]:
        compare(output, outputs[0], "of a thread")


@a_use
def change_file(twins: Twins, draw: random.Random) -> None:
    """Somebody changes the checkpoint or takes it away: IoError, or the right values."""
    if not twins.offloaded or twins.file is None:
        raise Skip
    files = [each for each in (twins.file, *twins.file.glob("*.safetensors")) if each.is_file()]
    if not files:
        raise Skip
    file = files[0]
    what = draw.choice(("touch", "unlink", "append", "truncate"))
    twins.note(what)
    twins.changed = True
    if what == "append":
        with file.open("ab") as opened:
            opened.write(b"more")
    elif what == "truncate":
        with file.open("r+b") as opened:
            opened.truncate(1000)
    else:
        getattr(file, what)()


@a_use
def adapt(twins: Twins, draw: random.Random) -> None:
    """Adds an adapter, runs it, merges it, and takes it out again."""
    import peft

    names = [name for name, module in twins.plain.named_modules() if type(module) is nn.Linear]
    names = [
        name for name in names if not name.endswith(("first", "second", "out_proj", "lm_head"))
    ]
    names = [name for name in names if "linear" not in name and "parametrizations" not in name]
    chosen, inputs, merges = names[:2], twins.inputs(draw), draw.random() < 0.5
    if not chosen or not isinstance(twins.plain.get_submodule(chosen[0]).weight, nn.Parameter):
        raise Skip

    @torch.no_grad()
    def use(model: Any) -> list[Any]:
        config = peft.LoraConfig(r=2, target_modules=chosen, init_lora_weights=False)
        grads = [each.requires_grad for each in model.parameters()]
        torch.manual_seed(4)
        adapted = peft.get_peft_model(model, config)
        outputs = [seeded_call(adapted, inputs)]
        if merges:
            adapted.merge_adapter()
            outputs.append(seeded_call(adapted, inputs))
            adapted.unmerge_adapter()
        adapted.unload()
        for each, wants in zip(model.parameters(), grads, strict=True):
            each.requires_grad_(wants)
        return outputs

    twins.both(use)
