"""What the processes of the loading benchmark do, and how their rounds become one row."""

from __future__ import annotations

import argparse
import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cuda_runs.accelerator import Accelerator
from cuda_runs.comparison import Ways
from cuda_runs.llama_model import (
    TINY,
    make_llama,
    one_layer_of,
    weights_bytes,
    write_checkpoint,
)
from cuda_runs.llama_passes import Lengths, Pass, decode, run_pass, spread, tokens_of
from cuda_runs.loaders import LOADERS, shards_of
from cuda_runs.memory_watch import MemoryWatch

WHOLE, SMALL = "whole", "small"
_READERS = 8
_BLOCK_BYTES = 16 << 20
_DECODE = Pass("decode", 1)


def make_checkpoints(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """Writes the checkpoint, and a small one to import with, in `options.folder`."""
    start = time.perf_counter()
    write_checkpoint(make_llama(one_layer_of(TINY), accelerator), options.folder / SMALL, 1 << 30)
    model = make_llama(options.shape, accelerator, in_ram=False)
    folder = options.folder / WHOLE
    write_checkpoint(model, folder, options.shape.shard_bytes)
    os.sync()  # else loads would share the disk with what is still to be written
    return {
        "weights_bytes": weights_bytes(model),
        "files_bytes": [path.stat().st_size for path in shards_of(folder)],
        "file_system": file_system_of(folder),
        "made_seconds": time.perf_counter() - start,
    }


def file_system_of(path: Path) -> str:
    """The type of the file system that a path is on, by the mount that is nearest."""
    found = ("", "unknown")
    whole = str(path.resolve())
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        beginning = mount.rstrip("/") + "/"
        if (whole + "/").startswith(beginning) and len(beginning) >= len(found[0]):
            found = (beginning, kind)
    return found[1]


def read_all(folder: Path) -> float:
    """Reads every shard through the page cache on several threads; bytes a second."""
    files = [(path, path.stat().st_size) for path in shards_of(folder)]
    step = _READERS * _BLOCK_BYTES
    pieces = [(path, at) for path, size in files for at in range(0, size, step)]

    def read(piece: tuple[Path, int]) -> int:
        path, at = piece
        block, count = bytearray(_BLOCK_BYTES), 0
        with path.open("rb", buffering=0) as file:
            file.seek(at)
            while count < step and (got := file.readinto(block)):
                count += got
        return min(count, step)

    start = time.perf_counter()
    with ThreadPoolExecutor(_READERS) as readers:
        read_bytes = sum(readers.map(read, pieces))
    return read_bytes / (time.perf_counter() - start)


def measure_load(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """One load, from a warm process to the first token, then some tokens more."""
    way = LOADERS[options.command](accelerator.device)
    missing = way.missing()
    if missing:
        return {"missing": missing}
    folder = options.folder / WHOLE
    weights = sum(path.stat().st_size for path in shards_of(folder))
    tokens = warm_up(options, way, accelerator)
    cache_rate = read_all(folder)
    with MemoryWatch(accelerator, options.sample_s) as watch:
        start = time.perf_counter()
        model = way.load(folder, weights)
        accelerator.synchronize()
        ready = time.perf_counter()
        timed = decode(model, tokens, 0)
        first_token = time.perf_counter()
        peak = watch.whole()
    more = decode(model, tokens, options.new_tokens)
    return {
        "how": way.how,
        "ready_seconds": ready - start,
        "first_token_seconds": first_token - start,
        "cache_read_bytes_per_second": cache_rate,
        "peak_device_bytes": peak.device_bytes,
        "peak_host_bytes": peak.host_bytes,
        "tokens": timed.tokens + more.tokens,
        "logits_sha256": timed.logits_sha256 + more.logits_sha256,
    }


def warm_up(options: argparse.Namespace, way: Any, accelerator: Accelerator) -> Any:
    """Imports everything and runs one layer of the same widths natively; the prompt's tokens.

    The way itself loads nothing before: what its first load costs is in its time.
    """
    from transformers import LlamaForCausalLM

    way.bring_in()
    LlamaForCausalLM.from_pretrained(options.folder / SMALL)
    lengths = Lengths(options.prompt, options.new_tokens, options.prompt, 1)
    model = make_llama(one_layer_of(options.shape), accelerator, in_ram=False)
    run_pass(_DECODE, lengths, model, accelerator)
    tokens = tokens_of(_DECODE, lengths, model, accelerator)
    del model
    gc.collect()
    accelerator.release_cached()
    return tokens


def lay_together(measured: Ways, rounds: int) -> Ways:
    """One way of each loader, whose rows are the times of its rounds; what else was run stays."""
    together = {name: way for name, way in measured.items() if "/" not in name}
    for name in LOADERS:
        runs = [measured[key] for n in range(rounds) if (key := f"{name}/{n}") in measured]
        if runs:
            together[name] = one_way(runs)
    return together


def one_way(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds of a loader as one way: rows for the ready model and for the first token.

    Of rounds that failed the first says why, beside what the others gave.
    """
    if "missing" in runs[0]:
        return runs[0]
    errors = [run["error"] for run in runs if "error" in run]
    good = [run for run in runs if "error" not in run]
    if len({tuple(run["logits_sha256"]) for run in good}) > 1:
        errors.append("its rounds gave different outputs")
    said = {"error": errors[0]} if errors else {}
    if not good:
        return said
    return {
        "how": good[0]["how"],
        **said,
        "rows": [row_of(name, good) for name in ("ready", "first-token")],
        "peak_host_bytes": max(run["peak_host_bytes"] for run in good),
        "cache_read_bytes_per_second": [run["cache_read_bytes_per_second"] for run in good],
        "seconds": sum(run["seconds"] for run in runs),
    }


def row_of(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A row, with the time of that name from the start of the load."""
    peaks = [run["peak_device_bytes"] for run in runs if run["peak_device_bytes"] is not None]
    return {
        "pass": name,
        **spread([run[f"{name.replace('-', '_')}_seconds"] for run in runs]),
        "peak_device_bytes": max(peaks, default=None),
        "tokens": runs[0]["tokens"],
        "logits_sha256": runs[0]["logits_sha256"],
    }
