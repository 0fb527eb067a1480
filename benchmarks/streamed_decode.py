# Question: how many tokens a second does a model decode whose weights are streamed from disk (page
# cache warm) on the CPU, with TensorStream and with accelerate's disk offload, and how much of
# TensorStream's time is a wait for weights?
"""Streamed decode at batch 1: TensorStream against accelerate's disk offload, taking turns."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from llama_checkpoint import Shape, make_checkpoint  # noqa: E402

TARGET_RATIO = 1.5
PROMPT = (1, 450, 4996, 17354, 1701, 29916)


@dataclasses.dataclass
class Decode:
    """One decode: how long the tokens after the first took, and what came out."""

    seconds: float
    tokens_per_second: float
    stalled_seconds: float
    outputs_sha256: str


def decode(model, new_tokens: int, stalled_seconds=lambda: 0.0) -> Decode:
    """Prefills, then times `new_tokens` greedy steps of one token each."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    step = torch.tensor([[token % model.config.vocab_size for token in PROMPT]])
    digest = hashlib.sha256()
    with torch.inference_mode():
        step = model(step, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        stalled_before, start = stalled_seconds(), time.perf_counter()
        for _ in range(new_tokens):
            logits = model(step, past_key_values=cache, use_cache=True).logits[:, -1:]
            digest.update(logits.float().numpy().tobytes())
            step = logits.argmax(-1)
        seconds = time.perf_counter() - start
    stalled = stalled_seconds() - stalled_before
    return Decode(seconds, new_tokens / seconds, stalled, digest.hexdigest())


def offloaded_by_accelerate(checkpoint: Path, folder: str):
    """The model as accelerate documents it for weights on disk: disk_offload on the CPU."""
    from accelerate import disk_offload
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(checkpoint)
    return disk_offload(model, folder, execution_device="cpu")


def machine() -> dict:
    """The machine sheet."""
    information = Path("/proc/cpuinfo").read_text()
    names = [row.split(":")[1].strip() for row in information.splitlines() if "model name" in row]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    packages = ("torch", "transformers", "accelerate", "safetensors")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "load_average_at_start": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
    }


def summary(runs: list[Decode]) -> dict:
    """Median and spread of the rates, and every one of them."""
    rates = [run.tokens_per_second for run in runs]
    return {
        "tokens_per_second_median": statistics.median(rates),
        "tokens_per_second_min": min(rates),
        "tokens_per_second_max": max(rates),
        "tokens_per_second": rates,
    }


def measure(options: argparse.Namespace) -> dict:
    """Alternates the two for `options.repeats` times, after one run of each that is not counted."""
    import torch
    import transformers

    import tensorstream as ts

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    sheet = machine()
    checkpoint = make_checkpoint(Shape.from_options(options), options.folder)
    streamed = ts.from_pretrained(
        checkpoint,
        device="cpu",
        ram_budget=int(ts.estimate_memory(checkpoint).weights_bytes * options.budget_share),
    )
    ours: list[Decode] = []
    theirs: list[Decode] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as offload_folder:
        peer = offloaded_by_accelerate(checkpoint, offload_folder)
        for repeat in range(options.repeats + 1):
            pair = (
                decode(streamed, options.new_tokens, lambda: ts.stats(streamed).stalled_seconds),
                decode(peer, options.new_tokens),
            )
            if pair[0].outputs_sha256 != pair[1].outputs_sha256:
                raise SystemExit("the two gave different logits: nothing to compare")
            if repeat > 0:
                ours.append(pair[0])
                theirs.append(pair[1])
    ratios = [a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, theirs, strict=True)]
    stats = ts.stats(streamed)
    return {
        "question": "tokens a second decoded from disk on the CPU: TensorStream against accelerate",
        "machine": sheet,
        "model": {**dataclasses.asdict(Shape.from_options(options)), "dtype": "bfloat16"},
        "weights_bytes": ts.estimate_memory(checkpoint).weights_bytes,
        "threads": options.threads,
        "page_cache": "warm: one decode of each before the first that counts",
        "new_tokens": options.new_tokens,
        "repeats": options.repeats,
        "tensorstream": {
            **summary(ours),
            "budget_bytes": stats.budget_bytes,
            "peak_held_bytes": stats.peak_held_bytes,
            "streamed_bytes_per_second_while_loading": stats.streamed_bytes_per_second,
            "stalled_share_median": statistics.median(r.stalled_seconds / r.seconds for r in ours),
        },
        "accelerate_disk_offload": summary(theirs),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_target": TARGET_RATIO,
        "outputs_identical": True,
    }


def main() -> int:
    """Prints the result as JSON, and writes it where --output says."""
    parser = argparse.ArgumentParser(description=__doc__)
    Shape.add_options(parser)
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="of checkpoints")
    parser.add_argument("--budget-share", type=float, default=0.22, help="ram_budget / weights")
    parser.add_argument("--new-tokens", type=int, default=8, help="timed tokens of one decode")
    parser.add_argument("--repeats", type=int, default=5, help="pairs that count")
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
