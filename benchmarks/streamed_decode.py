# Question: how many tokens a second does a model decode whose weights are streamed from disk, with
# TensorStream (weights as they are, and packed) and with accelerate's disk offload, in one run?
#
# Method: each takes its turn in every round, the one that begins changing; medians, spreads, and the
# ratios within the rounds. All of a model's files are read anew for each token. The page cache is
# warm, or with --cold the files of whoever comes next are dropped from it before every token,
# outside of the time that counts, and what of them stayed in it is in the result, with the rate of
# the disk by itself in each round. A folder on a
# tmpfs is a disk of memory's speed. On a GPU, --ram-budget keeps TensorStream from holding weights
# in pinned host memory, so that it reads the disk as the other does; the link from pinned host memory
# is probed before and after, and the better probe is what its rates are compared with.
"""Streamed decode at batch 1: TensorStream against accelerate's disk offload, taking turns."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from cuda_runs.accelerator import link_rate, open_accelerator  # noqa: E402
from cuda_runs.machine_sheet import machine_sheet  # noqa: E402
from llama_checkpoint import Shape, make_checkpoint  # noqa: E402
from measured_run import drop_from_page_cache  # noqa: E402

PROMPT = (1, 450, 4996, 17354, 1701, 29916)
# What issues ask for, by what was streamed: on a CPU with a warm page cache, on a GPU with a cold one,
# and on a GPU from a tmpfs.
TARGETS = {
    "cpu": {"raw": 1.5},
    "cold": {"raw": 1.2, "packed": 1.8},
    "tmpfs": {"raw": 6.0, "packed": 8.5},
}
# Beside a GPU: what a token's whole time has cross the link, as a share of its rate.
LINK_TARGETS = {"tmpfs": 0.9, "warm": 0.65}


class Loaded(NamedTuple):
    """What a model counts: seconds it waited for weights, bytes it streamed, and those read from files."""

    stalled_seconds: float = 0.0
    streamed_bytes: int = 0
    read_bytes: int = 0

    def since(self, before: Loaded) -> Loaded:
        """What came in between."""
        return Loaded(*(now - then for now, then in zip(self, before, strict=True)))

    def plus(self, other: Loaded) -> Loaded:
        """Both."""
        return Loaded(*(one + two for one, two in zip(self, other, strict=True)))


@dataclasses.dataclass
class Decode:
    """One decode: how long the tokens after the first took, what was loaded for them, and what came out.

    Attributes:
        loaded: What was counted of them.
    """

    seconds: float
    tokens_per_second: float
    loaded: Loaded
    outputs_sha256: str
    cached_shares: list[float]


@dataclasses.dataclass
class Contestant:
    """A way to run the model.

    Attributes:
        folder: The files that it reads.
        counted: What it counted so far.
        runs: Those that count.
    """

    name: str
    model: Any
    folder: Path
    counted: Callable[[], Loaded]
    runs: list[Decode] = dataclasses.field(default_factory=list)


def decode(contestant: Contestant, options: argparse.Namespace) -> Decode:
    """Prefills, then times greedy steps of one token each."""
    import torch
    from transformers import DynamicCache

    model = contestant.model
    cache = DynamicCache(config=model.config)
    step = torch.tensor([[token % model.config.vocab_size for token in PROMPT]])
    step = step.to(options.device)
    digest, seconds, loaded = hashlib.sha256(), 0.0, Loaded()
    shares: list[float] = []
    with torch.inference_mode():
        step = model(step, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        for _ in range(options.new_tokens):
            if options.cold:
                drop_from_page_cache(contestant.folder)
                shares.append(cached_share(contestant.folder))
            before, start = contestant.counted(), time.perf_counter()
            logits = model(step, past_key_values=cache, use_cache=True).logits[:, -1:]
            step = logits.argmax(-1)
            outputs = logits.float().cpu()
            seconds += time.perf_counter() - start
            loaded = loaded.plus(contestant.counted().since(before))
            digest.update(outputs.numpy().tobytes())
    tokens_per_second = options.new_tokens / seconds
    return Decode(seconds, tokens_per_second, loaded, digest.hexdigest(), shares)


def cached_share(folder: Path) -> float:
    """How much of the files in `folder` the page cache has."""
    import numpy

    library = ctypes.CDLL(None, use_errno=True)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    cached = pages = 0
    for path in folder.iterdir():
        if path.stat().st_size == 0:
            continue
        mapped = numpy.memmap(path, mode="r")
        vector = numpy.zeros(-(-mapped.nbytes // page_bytes), dtype=numpy.uint8)
        address = ctypes.c_void_p(mapped.ctypes.data)
        state = ctypes.c_void_p(vector.ctypes.data)
        if library.mincore(address, ctypes.c_size_t(mapped.nbytes), state) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        cached += int((vector & 1).sum())
        pages += len(vector)
    return cached / pages


def offloaded_by_accelerate(checkpoint: Path, folder: str, device: str) -> Any:
    """The model as accelerate documents it for weights on disk: disk_offload."""
    from accelerate import disk_offload
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(checkpoint)
    return disk_offload(model, folder, execution_device=device)


def disk_rate(folder: Path) -> float | None:
    """Bytes a second that the disk gives of the largest file in `folder`; None where that is not known."""
    from tensorstream import _native

    largest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    return _native.measure_disk(str(largest))


def link_of(device: str) -> float:
    """Bytes a second from pinned host memory; 0 where no link lies between."""
    if device == "cpu":
        return 0.0
    return float(link_rate(open_accelerator(device))["link_bytes_per_second"])


def file_system(folder: Path) -> str:
    """The kind of file system that holds `folder`, as stat calls it."""
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def spread(values: list[float]) -> dict:
    """Median and spread, and every value."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def streamed(checkpoint: Path, backend: str, budget: int | str, options: argparse.Namespace) -> Any:
    """The model on TensorStream."""
    import tensorstream as ts

    budgets: dict[str, Any] = {"ram_budget": budget}
    if options.device != "cpu":
        budgets = {"vram_budget": budget, "ram_budget": options.ram_budget}
    return ts.from_pretrained(checkpoint, device=options.device, backend=backend, **budgets)


@contextlib.contextmanager
def contestants(options: argparse.Namespace) -> Iterator[list[Contestant]]:
    """All ways to run the model, offloaded."""
    import tensorstream as ts

    checkpoint = make_checkpoint(Shape.from_options(options), options.folder)
    weights = ts.estimate_memory(checkpoint).weights_bytes
    budget = options.budget or int(weights * options.budget_share)
    folders = {"raw": checkpoint}
    if options.packed:
        folders["packed"] = checkpoint.with_name(f"{checkpoint.name}-packed-{options.packed}")
        if not folders["packed"].exists():
            ts.pack(checkpoint, folders["packed"], level=options.packed)
    ways = [(name, folder, options.backend) for name, folder in folders.items()]
    for backend in options.also:
        ways += [(f"{name}-{backend}", folder, backend) for name, folder in folders.items()]
    made: list[Contestant] = []
    for name, folder, backend in ways:
        model = streamed(folder, backend, budget, options)

        def counted(model: Any = model) -> Loaded:
            stats = ts.stats(model)
            return Loaded(stats.stalled_seconds, stats.streamed_bytes, stats.streamed_disk_bytes)

        made.append(Contestant(name, model, folder, counted))
    with tempfile.TemporaryDirectory(dir=options.folder) as offload_folder:
        model = offloaded_by_accelerate(checkpoint, offload_folder, options.device)
        made.append(Contestant("accelerate", model, Path(offload_folder), Loaded))
        yield made


def measure(options: argparse.Namespace) -> dict:
    """Has all take turns for `options.repeats` times, after one run of each that is not counted."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    sheet = machine_sheet()
    rates: list[float] = []
    links = [link_of(options.device)]
    with contestants(options) as all_of_them:
        where = file_system(options.folder)
        if options.cold and where == "tmpfs":
            raise SystemExit(
                f"{options.folder} is a tmpfs, which has no page cache: leave --cold out"
            )
        for repeat in range(options.repeats + 1):
            turn = repeat % len(all_of_them)
            runs: dict[str, Decode] = {}
            for contestant in (*all_of_them[turn:], *all_of_them[:turn]):
                runs[contestant.name] = decode(contestant, options)
            if len({run.outputs_sha256 for run in runs.values()}) != 1:
                raise SystemExit("they gave different logits: nothing to compare")
            if options.cold and (rate := disk_rate(all_of_them[0].folder)):
                rates.append(rate)
            if repeat > 0:
                for contestant in all_of_them:
                    contestant.runs.append(runs[contestant.name])
        links.append(link_of(options.device))
        return {
            "question": "tokens a second decoded from disk: TensorStream against accelerate",
            "command": command(sys.argv[1:]),
            "machine": sheet,
            "model": {**dataclasses.asdict(Shape.from_options(options)), "dtype": "bfloat16"},
            "device": options.device,
            "file_system": where,
            "page_cache": "dropped before each token" if options.cold else "warm",
            "threads": options.threads,
            "new_tokens": options.new_tokens,
            "repeats": options.repeats,
            "disk_bytes_per_second": spread(rates) if rates else None,
            "link_bytes_per_second": max(links),
            **results(all_of_them, options, where, max(links)),
            "load_average_at_end": os.getloadavg()[0],
            "outputs_identical": True,
        }


def command(arguments: list[str]) -> str:
    """The command line, without where it writes to."""
    if "--output" in arguments:
        where = arguments.index("--output")
        arguments = arguments[:where] + arguments[where + 2 :]
    return " ".join(["benchmarks/streamed_decode.py", *arguments])


def results(
    all_of_them: list[Contestant], options: argparse.Namespace, where: str, link: float
) -> dict:
    """What was measured of each, and the ratios to accelerate within the rounds."""
    import tensorstream as ts

    *ours, peer = all_of_them
    kind = "tmpfs" if where == "tmpfs" else "cold" if options.cold else "cpu"
    link_target = LINK_TARGETS.get({"cpu": "warm"}.get(kind, kind))
    rows: dict[str, Any] = {}
    for contestant in all_of_them:
        row = {"tokens_per_second": spread([run.tokens_per_second for run in contestant.runs])}
        shares = [share for run in contestant.runs for share in run.cached_shares]
        if shares:
            row["cached_share_before_tokens"] = statistics.median(shares)
        rows[contestant.name] = row
    for contestant in ours:
        stats = ts.stats(contestant.model)
        ratios = [
            run.tokens_per_second / other.tokens_per_second
            for run, other in zip(contestant.runs, peer.runs, strict=True)
        ]
        read = [run.loaded.read_bytes / run.seconds for run in contestant.runs]
        rows[contestant.name] |= {
            "read_bytes_per_second": spread(read),
            "ratio_to_accelerate": spread(ratios),
            "ratio_target": TARGETS[kind].get(contestant.name.split("-")[0]),
            "stalled_share_median": statistics.median(
                run.loaded.stalled_seconds / run.seconds for run in contestant.runs
            ),
            "weights_bytes": ts.estimate_memory(contestant.folder).weights_bytes,
            "file_bytes": sum(path.stat().st_size for path in contestant.folder.iterdir()),
            "budget_bytes": stats.budget_bytes,
            "peak_held_bytes": stats.peak_held_bytes,
            "ram_budget_bytes": stats.ram_budget_bytes,
            "backend": stats.backend,
            "streamed_bytes_per_second_while_loading": stats.streamed_bytes_per_second,
        }
        if link and contestant.name == "raw":
            of_link = [run.loaded.streamed_bytes / run.seconds / link for run in contestant.runs]
            rows[contestant.name] |= {
                "link_share": spread(of_link),
                "link_share_target": link_target,
            }
    return rows


def main() -> int:
    """Prints the result as JSON, and writes it where --output says."""
    parser = argparse.ArgumentParser(description=__doc__)
    Shape.add_options(parser)
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="of checkpoints")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--budget", help="TensorStream's, of the device: 1.25GiB")
    parser.add_argument("--budget-share", type=float, default=0.22, help="the same / weights")
    parser.add_argument("--ram-budget", default="96MiB", help="of host memory beside a GPU")
    parser.add_argument("--backend", default="auto", help="how files are read")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before tokens")
    parser.add_argument("--packed", type=int, metavar="LEVEL", help="packed weights take part, too")
    parser.add_argument("--also", nargs="*", default=[], metavar="BACKEND", help="read so, too")
    parser.add_argument("--new-tokens", type=int, default=8, help="timed tokens of one decode")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="a file for the JSON, too")
    options = parser.parse_args()
    text = json.dumps(measure(options), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
