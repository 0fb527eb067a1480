# Question: what does a step of LoRA fine-tuning cost on a Llama of 7B shape, with gradient
# checkpointing, whose frozen weights are streamed to a GPU from host RAM, a tenth of them resident,
# against the same step with all of them on the GPU, and are losses and gradients the same bits?
"""LoRA of peft on a Llama 7B shape, bfloat16, on one GPU: each way in a process of its own.

`measure` runs both ways, compares and writes one JSON; it is skipped where peft is not installed. The
other subcommands are the processes: each prints one JSON object. A run that only shows that the
benchmark works needs no GPU: `cuda_lora.py measure --device cpu --dry-run`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from cuda_runs.accelerator import Accelerator
from cuda_runs.budgets import budget_bytes
from cuda_runs.comparison import Ways, row_named
from cuda_runs.driver import Plan, add_device_options, add_driver_options, drive, run_process
from cuda_runs.llama_model import (
    LLAMA_7B,
    TINY,
    Shape,
    add_shape_options,
    make_llama,
    one_layer_of,
    weights_bytes,
)
from cuda_runs.llama_passes import prompt_tokens, spread
from cuda_runs.memory_watch import MemoryWatch
from cuda_runs.offloaders import OFFLOADERS
from cuda_runs.targets import lora_targets

WAYS = ("native", "tensorstream", "tensorstream-coded")
_UNTIMED = 2  # steps, whose memory is sampled
WHY_NOT = "peft is not installed: the LoRA step is skipped (pip install peft)"


def add_adapters(model: Any, rank: int) -> Any:
    """The model with seeded adapters, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    made = get_peft_model(model, config)
    made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    made.enable_input_require_grads()
    return made.train()


def train(
    options: argparse.Namespace,
    model: Any,
    accelerator: Accelerator,
    timing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """Steps of an optimizer: losses, hashes of all gradients, and seconds.

    The first two are not timed: the second has the optimizer's state, too, as all later ones have. Those
    that are timed run within `timing()`, each.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    shape = (options.batch, options.context, options.shape.vocabulary)
    seconds, losses, hashes = [], [], []
    for step in range(_UNTIMED + options.steps):
        tokens = prompt_tokens(*shape, seed=step, device=accelerator.device)
        accelerator.synchronize()
        with timing() if step >= _UNTIMED else nullcontext():
            start = time.perf_counter()
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            optimizer.step()
            accelerator.synchronize()
            seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        hashes.append(hash_of([loss.detach(), *(parameter.grad for parameter in trained)]))
        optimizer.zero_grad()
    return {**spread(seconds[_UNTIMED:]), "tokens": losses, "logits_sha256": hashes}


def hash_of(tensors: list[Any]) -> str:
    """Of the bytes of tensors, none of which may have a value that is not finite."""
    found = hashlib.sha256()
    for tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise RuntimeError("a loss or gradient is not finite: nothing can be compared")
        found.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def warm_up(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Trains one layer of the same widths natively."""
    model = add_adapters(
        make_llama(one_layer_of(options.shape), accelerator, in_ram=False), options.rank
    )
    train(options, model, accelerator)
    del model
    gc.collect()
    accelerator.release_cached()


def measure_way(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """One way: set-up and its steps."""
    # Attention's backward adds up in any order otherwise, and no two runs are alike: cuDNN's whatever
    # it is told, the flash kernel's where torch is to warn only. Torch wants cuBLAS told as well.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    warm_up(options, accelerator)
    model = make_llama(options.shape, accelerator)
    total = weights_bytes(model)
    budget = budget_bytes(options.budget, total) if options.budget else None
    if budget is not None:
        budget += options.activation_bytes
    way = OFFLOADERS[options.command](accelerator, budget)
    with MemoryWatch(accelerator, options.sample_s) as watch:
        base = way.prepare(model)
        model = add_adapters(base, options.rank)
        row: dict[str, Any] = {"pass": f"lora/{options.batch}"}
        before = way.streamed_bytes(base)
        try:
            row |= train(options, model, accelerator, watch.resting)
            moved = way.streamed_bytes(base) - before
            row["streamed_bytes_a_pass"] = moved // (_UNTIMED + options.steps)
        except (RuntimeError, MemoryError, OSError) as error:  # torch's and the library's own
            row["error"] = f"{type(error).__name__}: {error}"
        row["peak_device_bytes"] = watch.lap().device_bytes
    return {
        "how": f"{way.how}, then peft.get_peft_model",
        "weights_bytes": total,
        "budget_bytes": budget,
        "rows": [row],
        **way.conclude(base),
    }


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """What the processes take."""
    add_device_options(parser)
    add_shape_options(parser, LLAMA_7B)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=2048, help="tokens of each of the batch")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--steps", type=int, default=5, help="that are timed, after two more")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="run all ways and assemble the result")
    add_process_options(measure)
    add_driver_options(measure)
    if "--dry-run" in arguments:
        measure.set_defaults(**vars(TINY), batch=2, context=8, rank=2, steps=2)
    for name in (*WAYS, "link"):
        process = commands.add_parser(name, help="one process: prints JSON")
        add_process_options(process)
        process.add_argument("--budget", help="of weights: 1.25GiB, or x0.1 of them")
        process.add_argument("--activation-bytes", type=int, default=0)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["measure", *arguments]
    options = parser.parse_args(arguments)
    options.shape = Shape.from_options(options)
    return options


def make_plan(options: argparse.Namespace) -> Plan:
    """The ways in the order in which they run; the budget follows from the native run."""
    names = "device sample_s batch context rank steps".split()
    shared = list(options.shape.arguments())
    for name in names:
        shared += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    # A tenth, less what the optimizer takes, which the native peak has and the budget has not.
    budget = "x0.6" if options.dry_run else "x0.09"
    row = f"lora/{options.batch}"

    def ours(command: str) -> Any:
        def arguments(measured: Ways) -> list[str]:
            native = measured.get("native", {})
            peak = (row_named(measured, "native", row) or {}).get("peak_device_bytes")
            beyond = 0 if peak is None else max(0, peak - native["weights_bytes"])
            return [command, *shared, "--budget", budget, "--activation-bytes", str(beyond)]

        return arguments

    coded = {} if options.device == "cpu" else {"coded-lora": ours("tensorstream-coded")}
    return {
        "link-before": ["link", *shared],
        "native": ["native", *shared],
        "tensorstream-lora": ours("tensorstream"),
        **coded,
        "link-after": ["link", *shared],
    }


def main(arguments: list[str]) -> int:
    """Runs a subcommand."""
    options = parse(arguments)
    if run_process(
        options, measure_way, WHY_NOT if importlib.util.find_spec("peft") is None else None
    ):
        return 0
    sheet = {
        "question": "what a step of LoRA costs whose frozen weights are streamed to one GPU",
        "device": options.device,
        "model": {**vars(options.shape), "dtype": "bfloat16", "weights": "random, seeded"},
        **{name: getattr(options, name) for name in ("batch", "context", "rank", "steps")},
    }
    return drive(Path(__file__).resolve(), options, make_plan(options), lora_targets, sheet)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
