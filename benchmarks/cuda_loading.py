# Question: how long does a Llama of 7B shape take from safetensors files in the page cache to a ready
# model on a GPU that holds all of it, and to its first token: with safetensors and model.to(),
# transformers, fastsafetensors, runai-model-streamer and TensorStream, in one run on one machine?
"""Loads of a Llama 7B shape, bfloat16, to one GPU: each load in a process of its own, in turns.

`measure` makes the checkpoint, runs all loaders round by round, compares and writes one JSON. The
other subcommands are the processes: each prints one JSON object. A loader that is not installed is
said to be missing. The clock of a load starts in a process that has imported everything and has
computed on the GPU, its files read once more through the page cache. A run that only shows that the
benchmark works needs no GPU: `cuda_loading.py measure --device cpu --dry-run`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from cuda_runs.accelerator import link_rate, open_accelerator
from cuda_runs.comparison import Ways
from cuda_runs.driver import (
    Plan,
    add_device_options,
    add_driver_options,
    chosen,
    conclude,
    head_of,
    run_plan,
)
from cuda_runs.llama_model import LLAMA_7B, TINY, Shape, add_shape_options
from cuda_runs.loaders import LOADERS, offer_cuda_runtime
from cuda_runs.loading_runs import lay_together, make_checkpoints, measure_load
from cuda_runs.machine_sheet import version
from cuda_runs.offloaders import silence_libraries
from cuda_runs.processes import Deadline, run_json
from cuda_runs.targets import loading_targets

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(__file__).resolve()
SHAPE = dataclasses.replace(LLAMA_7B, shard_bytes=5_000_000_000)
DRY_RUN = {"prompt": 8, "new_tokens": 2, "rounds": 2}


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """What the processes take."""
    add_device_options(parser)
    add_shape_options(parser, SHAPE)
    parser.add_argument("--prompt", type=int, default=64, help="tokens before the first one")
    parser.add_argument("--new-tokens", type=int, default=4, help="compared after the first one")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".demo", help="where the checkpoint is made"
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="run all loaders and assemble the result")
    add_process_options(measure)
    add_driver_options(measure)
    measure.add_argument("--rounds", type=int, default=3, help="loads of each, in turns")
    if "--dry-run" in arguments:
        measure.set_defaults(**vars(TINY), **DRY_RUN)
    for name in (*LOADERS, "make", "link"):
        add_process_options(commands.add_parser(name, help="one process: prints JSON"))
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["measure", *arguments]
    options = parser.parse_args(arguments)
    options.shape = Shape.from_options(options)
    return options


def make_plan(options: argparse.Namespace, folder: Path) -> Plan:
    """The loaders in turns, round by round, between two probes of the link."""
    shared = [*options.shape.arguments(), "--folder", str(folder)]
    for name in "device sample_s prompt new_tokens".split():
        shared += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    loads = {
        f"{name}/{number}": [name, *shared] for number in range(options.rounds) for name in LOADERS
    }
    return {"link-before": ["link", *shared], **loads, "link-after": ["link", *shared]}


def run_loads(options: argparse.Namespace) -> tuple[dict[str, Any], Ways]:
    """Makes the checkpoint, runs the plan and takes the checkpoint away."""
    options.folder.mkdir(parents=True, exist_ok=True)
    deadline = Deadline(options.deadline_s)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        offer_cuda_runtime(Path(name))
        plan = make_plan(options, Path(name))
        made = run_json(PROGRAM, ["make", *plan["link-before"][1:]], deadline)
        if "error" in made:
            raise SystemExit(f"the checkpoint could not be made: {made['error']}")
        return made, run_plan(PROGRAM, chosen(plan, options.ways), deadline)


def measure(options: argparse.Namespace) -> int:
    """Runs the benchmark."""
    head = head_of(
        {
            "question": "what a load from a warm page cache to a ready model on one GPU costs",
            "device": options.device,
            "model": {**vars(options.shape), "dtype": "bfloat16", "weights": "random, seeded"},
            "rounds": options.rounds,
            "loaders": {loader.package: version(loader.package) for loader in LOADERS.values()},
        }
    )
    made, measured = run_loads(options)
    ways = lay_together(measured, options.rounds)
    left_out = [way["missing"] for way in ways.values() if "missing" in way]
    for text in left_out:
        print(text, file=sys.stderr)
    return conclude(options, ways, loading_targets, {**head, "left_out": left_out, **made})


def main(arguments: list[str]) -> int:
    """Runs a subcommand."""
    options = parse(arguments)
    if options.command == "measure":
        return measure(options)
    silence_libraries()
    accelerator = open_accelerator(options.device)
    processes = {"make": make_checkpoints, "link": lambda _, device: link_rate(device)}
    found = processes.get(options.command, measure_load)(options, accelerator)
    print(json.dumps(found, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
