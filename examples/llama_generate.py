"""Generates tokens with 2 GB of Llama in 400 MB of memory, and shows that nothing else changed.

The checkpoint is made on the spot and kept in .demo/. Plain and streamed run in processes of their
own on the same pages of the page cache; tokens and logits are compared byte for byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import demo_table
from llama_checkpoint import Shape, make_checkpoint
from measured_run import (
    RssWatch,
    RunReport,
    Stopwatch,
    drop_from_page_cache,
    new_folder,
    start_run,
)
from memory_group import MemoryGroup, new_memory_group

DEMO_FOLDER = Path(__file__).resolve().parent.parent / ".demo"
# What the process may take beyond its warm state and the budget: activations, caches, slack.
ALLOWANCE_BYTES = 200 * demo_table.MB
PROMPT = (1, 450, 4996, 17354, 1701, 29916)


class TokenClock:
    """A streamer for generate(): when each token came."""

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self.seconds: list[float] = []

    def put(self, value) -> None:
        self.seconds.append(self._watch.seconds())

    def end(self) -> None:
        """Nothing is held back, so nothing is left to write."""

    def first_token(self) -> float:
        return self.seconds[1]  # the prompt is put first

    def each_further_token(self) -> float:
        return (self.seconds[-1] - self.seconds[1]) / max(1, len(self.seconds) - 2)


def generate(model, new_tokens: int, clock: TokenClock):
    """Greedy tokens, (1, prompt + new) int64, and their logits, (new, vocabulary) float32."""
    import torch

    vocabulary = model.config.vocab_size
    prompt = torch.tensor([[token % vocabulary for token in PROMPT]], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            streamer=clock,
        )
    return out.sequences, torch.cat(out.logits).float()


def warm_up() -> None:
    """Runs a tiny model of the same class, so that what comes after is the real model alone."""
    from transformers import LlamaForCausalLM

    tiny = Shape(hidden=64, inner=128, layers=1, heads=2, key_heads=1, vocabulary=128)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(tiny, Path(folder))
        generate(LlamaForCausalLM.from_pretrained(checkpoint), 2, TokenClock())


def run(options: argparse.Namespace) -> None:
    """One measured run in this process."""
    import transformers

    import tensorstream as ts

    transformers.utils.logging.disable_progress_bar()
    group = MemoryGroup(options.group) if options.group else None
    if group:
        group.enter()
    checkpoint = options.folder / Shape.from_options(options).folder_name()
    weights_bytes = ts.estimate_memory(checkpoint).weights_bytes
    warm_up()

    watch, load = RssWatch(), Stopwatch()
    if group:
        group.limit(watch.baseline_bytes + _budget_bytes(options) + ALLOWANCE_BYTES)
    if options.run == "plain":
        model = transformers.LlamaForCausalLM.from_pretrained(checkpoint)
    else:
        model = ts.from_pretrained(checkpoint, device="cpu", ram_budget=options.budget)
    load_seconds, clock = load.seconds(), TokenClock()
    tokens, logits = generate(model, options.new_tokens, clock)
    report = RunReport(
        weights_bytes=weights_bytes,
        baseline_rss_bytes=watch.baseline_bytes,
        peak_rss_bytes=watch.peak_bytes(),
        load_seconds=load_seconds,
        run_seconds=clock.seconds[-1],
        stats={} if options.run == "plain" else dataclasses.asdict(ts.stats(model)),
        notes={
            "tokens": tokens[0].tolist(),
            "first_token": clock.first_token(),
            "each_token": clock.each_further_token(),
            "group_peak": group.peak_bytes() if group else 0,
        },
    )
    report.write(options.output, tokens.numpy().tobytes() + logits.numpy().tobytes())


def _budget_bytes(options: argparse.Namespace) -> int:
    import tensorstream as ts

    return ts.Config(device="cpu", ram_budget=options.budget).budget_bytes()


def make_in_own_process(shape: Shape, folder: Path, arguments: list[str]) -> None:
    """Makes the checkpoint where it is not there yet, and keeps this process small."""
    checkpoint = folder / shape.folder_name()
    if checkpoint.is_dir():
        print(f"  checkpoint: {checkpoint}, from an earlier run")
        return
    print(f"  checkpoint: {checkpoint}, being made", flush=True)
    maker = Path(__file__).with_name("llama_checkpoint.py")
    subprocess.run([sys.executable, str(maker), *arguments], check=True, stdout=subprocess.DEVNULL)


def compare(options: argparse.Namespace) -> int:
    """Runs both, shows both, says whether every promise was kept."""
    shape = Shape.from_options(options)
    arguments = [*shape.arguments(), "--folder", str(options.folder)]
    make_in_own_process(shape, options.folder, arguments)
    arguments += ["--budget", options.budget, "--new-tokens", str(options.new_tokens)]
    with new_folder(options.folder, "runs") as folder, new_memory_group("tensorstream") as group:
        plain, plain_outputs = start_run(__file__, [*arguments, "--run", "plain"], folder / "plain")
        if options.cold:
            drop_from_page_cache(options.folder / shape.folder_name())
        arguments += ["--run", "streamed", *(["--group", str(group)] if group else [])]
        streamed, outputs = start_run(__file__, arguments, folder / "streamed")
    print(f"  tokens: {streamed.notes['tokens']}\n")
    demo_table.print_table(
        {"plain": plain, "TensorStream": streamed},
        (
            ("  to the first token", lambda report: f"{report.notes['first_token']:.2f} s"),
            ("  each token after it", lambda report: f"{report.notes['each_token']:.3f} s"),
        ),
    )
    limit = streamed.baseline_rss_bytes + streamed.stats["budget_bytes"] + ALLOWANCE_BYTES
    allowed = f"warm RSS + budget + {demo_table.megabytes(ALLOWANCE_BYTES)}"
    print(f"  allowed RSS: {allowed} = {demo_table.megabytes(limit)}")
    print(f"  page cache of the checkpoint: {'dropped' if options.cold else 'warm'} before the run")
    if group:
        peak = demo_table.megabytes(streamed.notes["group_peak"])
        print(
            f"  memory control group: ran in one limited to that, page cache included; peak {peak}"
        )
    else:
        print("  memory control group: none could be made here, so RSS is measured, not enforced")
    wrong = demo_table.faults(streamed, outputs, plain_outputs)
    if streamed.peak_rss_bytes > limit:
        wrong.append(f"the process took {streamed.peak_rss_bytes:,} bytes, {limit:,} are allowed")
    return demo_table.conclude(wrong, len(outputs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    Shape.add_options(parser)
    parser.add_argument("--budget", default="400MB", help="ram_budget of the streamed model")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=DEMO_FOLDER, help="of checkpoints")
    parser.add_argument("--cold", action="store_true", help="stream with a cold page cache")
    parser.add_argument("--run", choices=("plain", "streamed"), help="used by the program itself")
    parser.add_argument("--output", type=Path, help="where that run writes its report")
    parser.add_argument("--group", type=Path, help="the memory control group that it enters")
    options = parser.parse_args()
    if options.run:
        run(options)
        return 0
    return compare(options)


if __name__ == "__main__":
    sys.exit(main())
