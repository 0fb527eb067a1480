# Question: what does a diffusion transformer (diffusers' Flux, 4,096 image tokens) cost a step whose
# weights are streamed to a GPU from host RAM, a tenth of them resident: natively, with diffusers'
# group offload and with TensorStream, at batch 1 and 4, in one run on one machine?
"""Flux's transformer, bfloat16, on one GPU: each way to run it in a process of its own.

`measure` runs all ways, compares and writes one JSON; it is skipped where diffusers is not installed.
The other subcommands are the processes: each prints one JSON object. A run that only shows that the
benchmark works needs no GPU: `cuda_diffusion.py measure --device cpu --dry-run`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cuda_runs.accelerator import Accelerator
from cuda_runs.budgets import budget_bytes
from cuda_runs.comparison import Ways, row_named
from cuda_runs.driver import Plan, add_device_options, add_driver_options, drive, run_process
from cuda_runs.flux_model import (
    TINY_FLUX,
    FluxShape,
    inputs_of,
    make_flux,
    repeated_denoise,
)
from cuda_runs.llama_model import weights_bytes
from cuda_runs.llama_passes import spread
from cuda_runs.memory_watch import MemoryWatch
from cuda_runs.offloaders import OFFLOADERS, has_diffusers
from cuda_runs.targets import diffusion_targets

WAYS = ("native", "tensorstream", "diffusers-leaf")
BATCHES = (1, 4)
WHY_NOT = "diffusers is not installed: the diffusion shape is skipped (pip install diffusers)"


def warm_up(options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Runs one layer of each kind of the same widths natively."""
    sizes = {**vars(options.shape), "layers": 1, "single_layers": 1}
    model = make_flux(FluxShape(**sizes), accelerator, in_ram=False)
    for batch in options.batches:
        inputs = inputs_of(options.shape, batch, accelerator.device)
        repeated_denoise(model, inputs, 1, 0)
        del inputs
    del model
    gc.collect()
    accelerator.release_cached()


def resolved_budget(options: argparse.Namespace, model: Any) -> int | None:
    """The budget: as given, or a share of the weights resident, activations, and two groups."""
    if options.budget:
        return budget_bytes(options.budget, weights_bytes(model))
    if options.resident_share is None:
        return None
    import tensorstream as ts

    largest = max(group.size_bytes for group in ts.analyze(model).groups)
    resident = int(options.resident_share * weights_bytes(model))
    return resident + 2 * largest + options.activation_bytes


def row_of(
    options: argparse.Namespace, model: Any, batch: int, device: torch.device, watch: MemoryWatch
) -> dict[str, Any]:
    """The steps of one batch size: the memory of an image that is not timed, the time of others."""
    inputs = inputs_of(options.shape, batch, device)
    try:
        timed = repeated_denoise(model, inputs, options.steps, options.repeats, watch.resting)
    except (RuntimeError, MemoryError, OSError) as error:  # torch's and the library's own
        return {"pass": f"step/{batch}", "error": f"{type(error).__name__}: {error}"}
    return {
        "pass": f"step/{batch}",
        **spread(timed.seconds),
        "tokens": timed.tokens,
        "logits_sha256": timed.logits_sha256,
    }


def measure_way(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """One way to run the model: set-up and its rows."""
    warm_up(options, accelerator)
    model = make_flux(options.shape, accelerator)
    total = weights_bytes(model)
    budget = resolved_budget(options, model)
    way = OFFLOADERS[options.command](accelerator, budget)
    with MemoryWatch(accelerator, options.sample_s) as watch:
        predicted = way.predict(model)
        start = time.perf_counter()
        model = way.prepare(model)
        accelerator.synchronize()
        setup_seconds = time.perf_counter() - start
        watch.lap()
        rows = []
        for batch in options.batches:
            row = row_of(options, model, batch, accelerator.device, watch)
            rows.append({**row, "peak_device_bytes": watch.lap().device_bytes})
        peak = watch.whole()
    return {
        "how": way.how,
        "weights_bytes": total,
        "needed_bytes": int(total * (1 - (options.resident_share or 0.0))),
        "budget_bytes": budget,
        **predicted,
        "setup_seconds": setup_seconds,
        "peak_device_bytes": peak.device_bytes,
        "reserved_at_baseline_bytes": watch.reserved_at_baseline_bytes,
        "rows": rows,
        **way.conclude(model),
    }


def add_process_options(parser: argparse.ArgumentParser, shape: FluxShape) -> None:
    """What the processes take."""
    add_device_options(parser)
    FluxShape.add_options(parser, shape)
    parser.add_argument("--steps", type=int, default=4, help="of one image")
    parser.add_argument("--repeats", type=int, default=3, help="images that are timed")
    parser.add_argument("--resident-share", type=float, help="of the weights: sets the budget")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="run all ways and assemble the result")
    add_process_options(measure, TINY_FLUX if "--dry-run" in arguments else FluxShape())
    add_driver_options(measure)
    measure.set_defaults(resident_share=0.1)
    for name in (*WAYS, "link"):
        process = commands.add_parser(name, help="one process: prints JSON")
        add_process_options(process, FluxShape())
        process.add_argument("--batches", default="1,4")
        process.add_argument("--budget", help="1.25GiB, or x0.25 of the weights")
        process.add_argument("--activation-bytes", type=int, default=0)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["measure", *arguments]
    options = parser.parse_args(arguments)
    options.shape = FluxShape.from_options(options)
    if options.command != "measure":
        options.batches = [int(batch) for batch in options.batches.split(",")]
    return options


def activation_bytes(measured: Ways, batch: int) -> int:
    """What the native model took of the device beyond its weights, in its steps of one batch size."""
    native = measured.get("native", {})
    row = row_named(measured, "native", f"step/{batch}") or {}
    peak = row.get("peak_device_bytes")
    return 0 if peak is None else max(0, peak - native["weights_bytes"])


def make_plan(options: argparse.Namespace) -> Plan:
    """The ways in the order in which they run; budgets follow from the native run."""
    shared = [*options.shape.arguments(), "--device", options.device]
    shared += ["--sample-s", str(options.sample_s)]
    shared += ["--steps", str(options.steps), "--repeats", str(options.repeats)]
    share = ["--resident-share", str(options.resident_share)]
    dry = ["--budget", "x0.8"] if options.dry_run else []

    def ours(batch: int) -> Any:
        def arguments(measured: Ways) -> list[str]:
            beyond = ["--activation-bytes", str(activation_bytes(measured, batch))]
            return ["tensorstream", *shared, *share, *dry, "--batches", str(batch), *beyond]

        return arguments

    return {
        "link-before": ["link", *shared],
        "native": ["native", *shared],
        **{f"tensorstream-batch-{batch}": ours(batch) for batch in BATCHES},
        "diffusers-leaf": ["diffusers-leaf", *shared],
        "link-after": ["link", *shared],
    }


def main(arguments: list[str]) -> int:
    """Runs a subcommand."""
    options = parse(arguments)
    if run_process(options, measure_way, None if has_diffusers() else WHY_NOT):
        return 0
    sheet = {
        "question": "what streaming a Flux transformer from host RAM to one GPU costs",
        "device": options.device,
        "model": {**vars(options.shape), "dtype": "bfloat16", "weights": "random, seeded"},
        "resident_share": options.resident_share,
        "steps": options.steps,
        "repeats": options.repeats,
    }
    plan = make_plan(options)
    return drive(Path(__file__).resolve(), options, plan, diffusion_targets, sheet)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
