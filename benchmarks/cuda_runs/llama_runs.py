"""What each process of the Llama benchmark measures; every function returns what is printed as JSON."""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from cuda_runs.accelerator import Accelerator
from cuda_runs.budgets import budget_bytes, budget_options
from cuda_runs.llama_model import make_llama, one_layer_of, weights_bytes, write_checkpoint
from cuda_runs.llama_passes import (
    Decoding,
    Lengths,
    Pass,
    Timed,
    decode,
    prefill,
    run_pass,
    run_shortly,
    spread,
    tokens_of,
)
from cuda_runs.memory_watch import MemoryWatch
from cuda_runs.offloaders import OFFLOADERS, Offloader, count_hooks
from cuda_runs.planned_steps import Predictions, times_predicted
from cuda_runs.quiet_rounds import Round, pooled, run_rounds

_MOST_REFUSALS = 3
_ROOM_BYTES = 4 << 30  # for what two models compute
BESIDE_NATIVE = Pass("decode", 1)  # whose steps are held against the plan in turns with native ones
_TURNS, _UNCOUNTED = 4, 3  # of a pair of models, and passes of each turn


def lengths_of(options: argparse.Namespace) -> Lengths:
    """The lengths that the options say."""
    return Lengths(options.prompt, options.new_tokens, options.context, options.repeats)


def warm_up(options: argparse.Namespace, passes: Sequence[Pass], accelerator: Accelerator) -> None:
    """Runs one layer of the same widths natively, at all lengths that are to be timed.

    Contexts, kernels, workspaces and the plans that attention makes for each length are there then.
    """
    model = make_llama(one_layer_of(options.shape), accelerator, in_ram=False)
    lengths = Lengths(options.prompt, options.new_tokens, options.context, 1)
    for one in passes:
        run_pass(one, lengths, model, accelerator)
    del model
    gc.collect()
    accelerator.release_cached()


def host_time_of(timed: Timed) -> dict[str, float]:
    """What the thread that runs the steps takes of its processor, and how often it gives it up in one."""
    if not timed.thread_seconds:
        return {}
    return {
        "thread_seconds_median": statistics.median(timed.thread_seconds),
        "switches_a_step": timed.switches / len(timed.thread_seconds),
    }


def row_of(one: Pass, timed: Timed, watch: MemoryWatch) -> dict[str, Any]:
    """A row of the result, of a pass that was run."""
    times = spread(timed.seconds)
    produced = one.batch if one.kind == "decode" else 0
    return {
        "pass": one.name,
        **times,
        **({"tokens_per_second": produced / times["seconds_median"]} if produced else {}),
        **host_time_of(timed),
        "peak_device_bytes": watch.lap().device_bytes,
        "tokens": timed.tokens,
        "logits_sha256": timed.logits_sha256,
    }


def rounds_of(
    one: Pass, options: argparse.Namespace, model: Any, accelerator: Accelerator
) -> list[Round]:
    """Steps of a decode, which a host may bound, in rounds; a prefill, which it does not, in one."""

    def run() -> Timed:
        return run_pass(one, lengths_of(options), model, accelerator)

    return run_rounds(run) if one.kind == "decode" else run_rounds(run, most=1)


def against_plan(
    one: Pass,
    options: argparse.Namespace,
    model: Any,
    accelerator: Accelerator,
    *,
    native: Any,
    predictions: Predictions,
) -> dict[str, Any]:
    """Steps at batch 1, in turns with native ones, beside what the plan says for the host of each turn."""
    lengths = lengths_of(options)
    tokens = tokens_of(one, lengths, model, accelerator)
    try:
        return times_predicted(
            lambda: Decoding(native, tokens, lengths.new_tokens),
            lambda: Decoding(model, tokens, lengths.new_tokens),
            predictions,
        )
    except torch.OutOfMemoryError as error:  # of two models, which the row is not of
        return {"error": str(error)}
    finally:
        accelerator.release_cached()  # what native steps left is none of the model's


def measured_row(
    one: Pass,
    options: argparse.Namespace,
    way: Offloader,
    model: Any,
    watch: MemoryWatch,
    *,
    native: Any = None,
    predictions: Predictions = (),
) -> dict[str, Any]:
    """Runs a pass, shortly for its memory and then for its time.

    Where it fails, the row says how, and the next pass is run all the same.

    Where its memory does not suffice it begins anew, as its user would: the plan has changed then.
    """
    refusals = 0
    while True:
        try:
            run_shortly(one, lengths_of(options), model, way.accelerator)
            before = way.streamed_bytes(model)
            with watch.resting():
                rounds = rounds_of(one, options, model, way.accelerator)
                streamed = way.streamed_bytes(model) - before
            break
        except (RuntimeError, MemoryError, OSError) as error:  # torch's and the library's own
            if isinstance(error, torch.OutOfMemoryError) and refusals < _MOST_REFUSALS:
                refusals += 1
                continue
            watch.lap()
            return {"pass": one.name, "error": f"{type(error).__name__}: {error}"}
    timed = pooled(rounds)
    calls = len(timed.logits_sha256) * len(rounds)
    beside = {}
    if native is not None and one == BESIDE_NATIVE:
        turns = {"native": native, "predictions": predictions}
        with watch.resting():
            beside = {
                "times_predicted": against_plan(one, options, model, way.accelerator, **turns)
            }
    return {
        **row_of(one, timed, watch),
        "rounds": [each.as_json() for each in rounds],
        "streamed_bytes_a_pass": streamed // calls,
        **beside,
        **({"refusals": refusals} if refusals else {}),
    }


def native_beside(
    options: argparse.Namespace,
    accelerator: Accelerator,
    predictions: Predictions,
    needed_bytes: int,
) -> Any:
    """A native model to take turns with, where predictions are for that and the device has room for both."""
    free_bytes = accelerator.free_bytes()
    has_room = free_bytes is not None and free_bytes > needed_bytes + _ROOM_BYTES
    if not predictions or not has_room:
        return None
    return make_llama(options.shape, accelerator, in_ram=False)


def measure_way(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """One way to run the model: set-up and the rows of its passes."""
    passes = [Pass.parse(text) for text in options.passes.split(",")]
    warm_up(options, passes, accelerator)
    model = make_llama(options.shape, accelerator)
    total = weights_bytes(model)
    budget = budget_bytes(options.budget, total) if options.budget else None
    way = OFFLOADERS[options.way](accelerator, budget)
    way.make_ready(model)
    predicted = way.predict(model)
    predictions = predicted.get("predicted_by_native", ())
    wanted = BESIDE_NATIVE in passes
    native = (
        native_beside(options, accelerator, predictions, total + (budget or 0)) if wanted else None
    )
    with MemoryWatch(accelerator, options.sample_s) as watch:
        with watch.resting() if options.time_setup else contextlib.nullcontext():
            start = time.perf_counter()
            model = way.prepare(model)
            accelerator.synchronize()
            setup_seconds = time.perf_counter() - start
        setup_peak = watch.lap()
        rows = [
            measured_row(one, options, way, model, watch, native=native, predictions=predictions)
            for one in passes
        ]
        whole = watch.whole()
    return {
        "how": way.how,
        "weights_bytes": total,
        "budget_bytes": budget,
        **predicted,
        "setup_seconds": setup_seconds,
        "setup_peak_device_bytes": setup_peak.device_bytes,
        "peak_device_bytes": whole.device_bytes,
        "host_bytes_beyond_the_model": whole.host_bytes,
        "reserved_at_baseline_bytes": watch.reserved_at_baseline_bytes,
        "rows": rows,
        **way.conclude(model),
    }


def paired_row(
    one: Pass, options: argparse.Namespace, native: Any, ours: Any, accelerator: Accelerator
) -> dict[str, Any]:
    """Times a prefill of both models in turns of some passes each, of which the first do not count.

    Each keeps the GPU at clocks of its own, by what it takes of its power, and is first in every other turn.
    `ratio_min` and `ratio_max` are of turns.
    """
    tokens = tokens_of(one, lengths_of(options), native, accelerator)
    plain, streamed = Timed(), Timed()
    each = max(1, options.pairs // _TURNS)
    ratios = []
    for turn in range(_TURNS):
        pair = [(native, plain), (ours, streamed)]
        for model, timed in reversed(pair) if turn % 2 else pair:
            for repeat in range(_UNCOUNTED + each):
                seconds, logits = prefill(model, tokens)
                timed.keep(logits)
                if repeat >= _UNCOUNTED:
                    timed.seconds.append(seconds)
        its, own = plain.seconds[-each:], streamed.seconds[-each:]
        ratios.append(statistics.median(own) / statistics.median(its))
    return {
        "pass": one.name,
        **spread(streamed.seconds),
        "native": spread(plain.seconds),
        "ratio_of_medians": statistics.median(streamed.seconds) / statistics.median(plain.seconds),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "tokens": streamed.tokens,
        "logits_sha256": streamed.logits_sha256,
        "identical_to_paired": streamed.logits_sha256 == plain.logits_sha256,
    }


def measure_paired(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """A budget, against a native model in the same process, whose passes take turns with ours."""
    import tensorstream as ts

    passes = [Pass.parse(text) for text in options.passes.split(",")]
    warm_up(options, passes, accelerator)
    native = make_llama(options.shape, accelerator, in_ram=False)
    model = make_llama(options.shape, accelerator)
    total = weights_bytes(model)
    budget = budget_bytes(options.budget, total)
    taken = budget_options(str(accelerator.device), budget)
    is_coded = options.command == "paired-coded"
    if is_coded:
        taken["compression"] = "auto"
    with MemoryWatch(accelerator, options.sample_s) as watch:
        ts.offload(model, **taken)
        rows = [paired_row(one, options, native, model, accelerator) for one in passes]
        peak = watch.whole()
    return {
        "how": "tensorstream.offload, and native, in turns",
        "weights_bytes": total,
        "budget_bytes": budget,
        # Of a small budget the native model's activations would be most of it.
        **({} if is_coded else {"peak_device_bytes": peak.device_bytes}),
        "rows": rows,
        "hooks": count_hooks(model),
    }


def measure_checkpoint(options: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """From safetensors in the page cache to the first token."""
    from transformers import LlamaForCausalLM

    import tensorstream as ts

    one = Pass("decode", 1)
    warm_up(options, [one], accelerator)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = options.folder / name
        # Imports what from_pretrained imports.
        small = make_llama(one_layer_of(options.tiny_shape), accelerator)
        write_checkpoint(small, folder / "small", options.shape.shard_bytes)
        LlamaForCausalLM.from_pretrained(folder / "small")
        model = make_llama(options.shape, accelerator)
        total = weights_bytes(model)
        write_checkpoint(model, folder / "whole", options.shape.shard_bytes)
        tokens = tokens_of(one, lengths_of(options), model, accelerator)
        del model, small
        budget = budget_bytes(options.budget, total)
        with MemoryWatch(accelerator, options.sample_s) as watch:
            start = time.perf_counter()
            place = budget_options(str(accelerator.device), budget)
            model = ts.from_pretrained(folder / "whole", **place)
            loaded_seconds = time.perf_counter() - start
            timed = decode(model, tokens, 0)
            first_token_seconds = time.perf_counter() - start
            peak = watch.whole()
        del model
        gc.collect()
    return {
        "how": "tensorstream.from_pretrained, page cache warm, to the first token",
        "weights_bytes": total,
        "budget_bytes": budget,
        "loaded_seconds": loaded_seconds,
        "first_token_seconds": first_token_seconds,
        "peak_device_bytes": peak.device_bytes,
        "host_bytes": peak.host_bytes,
        "rows": [{"pass": one.name, "tokens": timed.tokens, "logits_sha256": timed.logits_sha256}],
    }
