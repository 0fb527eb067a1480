# Question: what does a Llama of 7B shape cost whose weights are streamed to a GPU from host RAM, in
# seconds a token, seconds a prefill and bytes of GPU memory: natively, with accelerate, with
# diffusers' group offload, with DFloat11 and with TensorStream at several budgets, in one run on one
# machine?
"""Llama 7B shape, bfloat16, on one GPU: each way to run it in a process of its own.

Without a subcommand, or with `measure`, runs all ways, compares and writes one JSON. The other
subcommands are the processes: each prints one JSON object. A run that only shows that the benchmark
works needs no GPU: `cuda_llama.py measure --device cpu --dry-run`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cuda_runs.accelerator import link_rate, open_accelerator
from cuda_runs.dfloat11_model import has_dfloat11
from cuda_runs.driver import Plan, add_device_options, add_driver_options, drive
from cuda_runs.hook_costs import measure_hooks
from cuda_runs.llama_model import LLAMA_7B, TINY, Shape, add_shape_options
from cuda_runs.llama_runs import measure_checkpoint, measure_paired, measure_way
from cuda_runs.offloaders import OFFLOADERS, has_diffusers, silence_libraries
from cuda_runs.targets import llama_targets

ROOT = Path(__file__).resolve().parent.parent
LEAF_WITHOUT_DIFFUSERS = "diffusers is not installed: diffusers-leaf is left out"
NO_DFLOAT11 = "dfloat11-cpu-offload needs dfloat11, cupy and a GPU: it is left out"
DECODES = "decode/1,decode/16"
PREFILLS = "prefill/1,prefill/4,prefill/8"
# Budgets of a GPU, and those of a dry run, whose budget counts weights alone.
BUDGETS = {
    "small": ("1.25GiB", "x0.6"),
    "smallest": ("0.8GiB", "x0.5"),
    "prefill": ("3.5GiB", "x0.7"),
    "25-percent": ("x0.25", "x0.6"),
    "50-percent": ("x0.5", "x0.7"),
    "75-percent": ("x0.75", "x0.8"),
    "everything": ("x4", "x4"),
    "hooks": ("x0.6", "x0.6"),
}
DRY_RUN = {"prompt": 8, "context": 16, "new_tokens": 2, "peer_new_tokens": 2, "repeats": 2}
DRY_RUN_PROCESS = {"pairs": 2, "hook_side": 32, "hook_blocks": 6, "hook_passes": 3}


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """What the processes take."""
    add_device_options(parser)
    add_shape_options(parser, LLAMA_7B)
    parser.add_argument("--prompt", type=int, default=64, help="tokens before the first step")
    parser.add_argument("--new-tokens", type=int, default=32, help="timed decode steps")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a prefill")
    parser.add_argument("--repeats", type=int, default=5, help="prefills that count")
    parser.add_argument(
        "--pairs", type=int, default=15, help="passes that count, of each of two models in turns"
    )
    parser.add_argument("--hook-side", type=int, default=256, help="of a square parameter")
    parser.add_argument("--hook-blocks", type=int, default=32)
    parser.add_argument("--hook-passes", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="of the checkpoint")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="run all ways and assemble the result")
    add_process_options(measure)
    add_driver_options(measure)
    measure.add_argument("--peer-new-tokens", type=int, default=32, help="of accelerate: slow")
    measure.add_argument("--peer-repeats", type=int, default=2, help="of accelerate: slow")
    if "--dry-run" in arguments:
        measure.set_defaults(**vars(TINY), **DRY_RUN, **DRY_RUN_PROCESS)
    for name in (*OFFLOADERS, "paired", "paired-coded", "checkpoint", "hooks", "link"):
        process = commands.add_parser(name, help="one process: prints JSON")
        add_process_options(process)
        process.add_argument("--passes", default=f"{DECODES},{PREFILLS}")
        process.add_argument("--budget", default=None, help="1.25GiB, or x0.25 of the weights")
        process.add_argument("--time-setup", action="store_true", help="and not watch its memory")
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["measure", *arguments]
    options = parser.parse_args(arguments)
    options.shape = Shape.from_options(options)
    options.tiny_shape = TINY
    return options


def process_arguments(options: argparse.Namespace) -> list[str]:
    """The options that the driver passes on to every process."""
    names = "device sample_s prompt context pairs hook_side hook_blocks hook_passes folder".split()
    return [
        *options.shape.arguments(),
        *(text for n in names for text in (f"--{n.replace('_', '-')}", str(getattr(options, n)))),
    ]


def runs_dfloat11(options: argparse.Namespace) -> bool:
    """Whether its kernel can be had: it is for GPUs alone."""
    return has_dfloat11() and options.device != "cpu"


def make_plan(options: argparse.Namespace) -> Plan:
    """The ways in the order in which they run."""
    shared = process_arguments(options)
    budgets = {name: pair[options.dry_run] for name, pair in BUDGETS.items()}
    steps = ["--new-tokens", str(options.new_tokens), "--repeats", str(options.repeats)]
    slow = ["--new-tokens", str(options.peer_new_tokens), "--repeats", str(options.peer_repeats)]

    def ours(command: str, budget: str, passes: str) -> list[str]:
        return [command, *shared, *steps, "--budget", budgets[budget], "--passes", passes]

    leaf = {"diffusers-leaf": ["diffusers-leaf", *shared, *steps]} if has_diffusers() else {}
    coded = {"dfloat11-cpu-offload": ["dfloat11-cpu-offload", *shared, *steps]}
    mapped = ["--budget", budgets["small"]]
    hooks = ours("hooks", "hooks", "decode/1")  # a host has louder and quieter minutes
    return {
        "link-before": ["link", *shared],
        "native": ["native", *shared, *steps],
        "tensorstream-hooks-first": hooks,
        "tensorstream-small": [*ours("tensorstream", "small", DECODES), "--time-setup"],
        "tensorstream-smallest": ours("tensorstream", "smallest", "decode/1"),
        "tensorstream-prefill": ours("tensorstream", "prefill", PREFILLS),
        **{
            f"tensorstream-{share}-percent": ours("tensorstream", f"{share}-percent", "decode/1")
            for share in (25, 50, 75)
        },
        "tensorstream-hooks-between": hooks,
        "coded-small": [*ours("tensorstream-coded", "small", DECODES), "--time-setup"],
        "coded-smallest": ours("tensorstream-coded", "smallest", "decode/1"),
        "coded-prefill": ours("tensorstream-coded", "prefill", PREFILLS),
        "coded-paired": ours("paired-coded", "prefill", "prefill/4,prefill/8"),
        **{
            f"coded-{share}-percent": ours("tensorstream-coded", f"{share}-percent", "decode/1")
            for share in (25, 50, 75)
        },
        "tensorstream-everything": ours("paired", "everything", PREFILLS),
        "tensorstream-checkpoint": ours("checkpoint", "small", "decode/1"),
        "tensorstream-hooks-last": hooks,
        **leaf,
        "accelerate-device-map": ["accelerate-device-map", *shared, *slow, *mapped],
        "accelerate-cpu-offload": ["accelerate-cpu-offload", *shared, *slow],
        **(coded if runs_dfloat11(options) else {}),
        "link-after": ["link", *shared],
    }


def measure(options: argparse.Namespace) -> int:
    """Runs the benchmark."""
    left_out = [] if has_diffusers() else [LEAF_WITHOUT_DIFFUSERS]
    left_out += [] if runs_dfloat11(options) else [NO_DFLOAT11]
    for text in left_out:
        print(text, file=sys.stderr)
    lengths = (
        "prompt",
        "new_tokens",
        "peer_new_tokens",
        "context",
        "repeats",
        "peer_repeats",
        "pairs",
    )
    return drive(
        Path(__file__).resolve(),
        options,
        make_plan(options),
        llama_targets,
        {
            "question": "what streaming a Llama of 7B shape from host RAM to one GPU costs",
            "device": options.device,
            "left_out": left_out,
            "model": {**vars(options.shape), "dtype": "bfloat16", "weights": "random, seeded"},
            "lengths": {name: getattr(options, name) for name in lengths},
        },
    )


def main(arguments: list[str]) -> int:
    """Runs a subcommand."""
    options = parse(arguments)
    if options.command == "measure":
        return measure(options)
    silence_libraries()
    accelerator = open_accelerator(options.device)
    if options.command == "link":
        found = link_rate(accelerator)
    elif options.command in OFFLOADERS:
        options.way = options.command
        found = measure_way(options, accelerator)
    else:
        processes = {
            "paired": measure_paired,
            "paired-coded": measure_paired,
            "checkpoint": measure_checkpoint,
            "hooks": measure_hooks,
        }
        found = processes[options.command](options, accelerator)
    print(json.dumps(found, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
