"""The functions that users call."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from tensorstream import _native, report
from tensorstream.compute_device import open_device
from tensorstream.config import Config, Size, make_config
from tensorstream.exceptions import BudgetError, ConfigError
from tensorstream.foreseen import note_made, walk_described
from tensorstream.hub import FINDING, path_text
from tensorstream.made_weights import Described
from tensorstream.modes import outside_inference_mode
from tensorstream.operations import check_no_operation
from tensorstream.orchestrator import Orchestrator, orchestrator_of
from tensorstream.parts import check_is_no_proxy, parts_of
from tensorstream.shortages import typed_shortages
from tensorstream.sources import note_weights_in_ram
from tensorstream.tiers import disk_rate
from tensorstream.walk import Walk

logger = logging.getLogger("tensorstream")

Model = TypeVar("Model")
PathLike = str | os.PathLike[str]


@outside_inference_mode
def offload(
    model: Model,
    config: Config | None = None,
    *,
    checkpoint: PathLike | None = None,
    **options: Any,
) -> Model:
    """Streams the weights of `model` at each use, under a budget. Outputs stay bit for bit the same.

    The model is changed in place: same object, same classes, same parameters. Weights that lie in
    memory unmodified as mapped from a file (as transformers and safetensors load them) are streamed
    from that file; others from the RAM they are in.

    The models of a pipeline of diffusers share one budget and one arena, and are loaded as they are used.

    Args:
        model: Any module whose parameters are on the CPU, or on the meta device with `checkpoint`; or a
            pipeline of diffusers that has such models.
        config: Options as one value.
        checkpoint: A safetensors file, index or folder that holds the weights of `model`; of a pipeline
            the folder that has one for each of its models. Weights in memory must equal it byte for
            byte, and are let go. Where any is on the meta device, buffers get the values that the checkpoint
            has; else they must equal it too.
        **options: The fields of Config by name.

    Returns:
        `model`.

    Raises:
        BudgetError: The budget is smaller than the smallest that works, which the message names, or the
            system gives no memory.
        ConfigError: An option is unknown or unusable, the model is offloaded already, or the
            checkpoint does not match it.
        FormatError: A file of the checkpoint breaks its format.
        IoError: A file cannot be read.
    """
    check_is_no_proxy(model)
    if not isinstance(model, nn.Module) and not parts_of(model):
        raise ConfigError(
            "offload() takes a torch.nn.Module, or a pipeline of diffusers that has some, not a "
            f"{type(model).__name__}"
        )
    path = None if checkpoint is None else path_text(checkpoint)
    with typed_shortages(f"offloading this {type(model).__name__}"):
        Orchestrator(model, make_config(config, options), path, ram_counts=False)
    return model


def restore(model: Model) -> Model:
    """Makes an offloaded model a plain one again: every parameter in RAM of its own, no hooks.

    Where another thread runs it, or computes gradients, that is waited for.

    Raises:
        BudgetError: The weights do not fit the RAM that is available; the model stays offloaded.
        ConfigError: The model is not offloaded, or this thread is in an operation on streamed weights, as in
            the handler of a signal.
    """
    orchestrator = orchestrator_of(model)
    check_no_operation(sys._getframe())
    needed = orchestrator.restored_bytes()
    available = _native.available_ram_bytes()
    if needed > available:
        error = BudgetError(
            f"restoring the model takes {report.size(needed)} of RAM, and {report.size(available)} "
            "are available; it stays offloaded"
        )
        error.needed_bytes, error.budget_bytes = needed, available
        raise error
    orchestrator.restore(model)
    logger.info("restored: all weights are in RAM, on the CPU")
    return model


def set_budget(
    model: Model, *, vram_budget: Size | None = None, ram_budget: Size | None = None
) -> Model:
    """Moves the budget of an offloaded model, between its forwards.

    More or fewer weights are resident afterwards; outputs stay bit for bit the same. What the model is cut
    into stays as it was offloaded: the smallest budget that works is that of its largest part, beside what
    was too small to be streamed at the first budget. `restore` and `offload` cut it anew, for less.

    Args:
        model: An offloaded model. Where another thread runs it, or computes gradients, that is waited for.
        vram_budget: Of a model on a GPU, in the forms that Config takes.
        ram_budget: Of a model on the CPU.

    Returns:
        `model`.

    Raises:
        BudgetError: The budget is too small, and the message names the smallest that works, or the device
            has not so much; the model is as it was in the first case, and goes on working in both.
        ConfigError: The model is not offloaded, its device has another budget, or the calling thread is in
            a forward of it or an operation on a streamed weight, or computes gradients.
        UnsupportedError: Somebody holds memory of a weight that would go; nothing is changed.
    """
    orchestrator = orchestrator_of(model)
    check_no_operation(sys._getframe())
    given = {"vram_budget": vram_budget, "ram_budget": ram_budget}
    orchestrator.set_budget(orchestrator.config.moved_budget(given, orchestrator.device.native))
    return model


@outside_inference_mode
def analyze(
    model_or_path: Any, *, dtype: torch.dtype | str | None = None, **options: Any
) -> report.ModelAnalysis:
    """What a model is made of: groups, sizes, types, ties. Nothing is loaded or changed.

    Args:
        model_or_path: A model, a pipeline of diffusers, or a path or cached hub id of either.
        dtype: The type that from_pretrained would be given, for a path or id: torch.bfloat16, "bfloat16".
        **options: What it would be given to find the model, for a path or id: model_class, trust_remote_code,
            code_revision, variant, subfolder, revision, cache_dir.
    """
    found, _ = _walk(model_or_path, dtype, options)
    grouping = found.tree.group()
    return report.ModelAnalysis(
        groups=report.group_infos(found.tree, grouping),
        weights_bytes=found.tree.weights_bytes,
        fixed_bytes=found.tree.fixed_bytes,
        ties=tuple(tuple(weight.names) for weight in found.weights if len(weight.names) > 1),
        left=found.left,
    )


@outside_inference_mode
def estimate_memory(
    model_or_path: Any, *, dtype: torch.dtype | str | None = None, **options: Any
) -> report.MemoryEstimate:
    """What budgets mean for a model: the smallest that works, and from where on all fits.

    Takes what analyze() takes. Of a path, what loading casts, merges or transposes counts as resident in RAM,
    as from_pretrained has it; what a rule of transformers converts counts so even where it gives a view.
    """
    found, described = _walk(model_or_path, dtype, options)
    note_made(found, described.made, on_host=Config().torch_device.type == "cpu")
    planned = Config().plan(found.tree, _native.LARGEST_BUDGET_BYTES).plan
    return report.MemoryEstimate(
        weights_bytes=found.tree.weights_bytes,
        smallest_budget_bytes=planned.smallest_budget_bytes,
        everything_fits_bytes=planned.everything_fits_bytes,
    )


@outside_inference_mode
def plan(
    model_or_path: Any,
    config: Config | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> report.Plan:
    """What would live where under a budget, before anything runs.

    Takes what analyze() takes, and the fields of Config.

    Raises:
        BudgetError: The budget is smaller than the smallest that works.
    """
    finding = {name: options.pop(name) for name in list(options) if name in FINDING}
    chosen = make_config(config, options)
    found, described = _walk(model_or_path, dtype, finding, chosen.keep_resident)
    device = open_device(chosen.torch_device, self_check=False)
    note_made(found, described.made, on_host=device.is_host)
    if not device.is_host:
        note_weights_in_ram(found)
    if chosen.backend == "gpudirect":
        opener = _native.FileOpener(chosen.file_backend, device.native)
        found.tree.add_fixed_bytes(opener.device_memory_bytes)
    budget_bytes = chosen.budget_bytes(device.native)
    ram_bytes = None if chosen.ram_budget is None else chosen.ram_budget_bytes()
    planned = chosen.plan(found.tree, budget_bytes, device, ram_bytes=ram_bytes)
    if planned.plan.disk_bytes and described.files:
        rate = disk_rate(described.largest_file())
        planned = chosen.plan(found.tree, budget_bytes, device, ram_bytes=ram_bytes, disk_rate=rate)
    return report.make_plan(found.tree, planned)


def stats(model: Any) -> report.Stats:
    """What the engine did for an offloaded model so far.

    Raises:
        ConfigError: The model is not offloaded.
    """
    orchestrator = orchestrator_of(model)
    torch_part = None if orchestrator.pool is None else orchestrator.pool.statistics()
    return report.make_stats(orchestrator.engine.statistics(), torch_part, orchestrator.backend)


def _walk(
    model_or_path: Any, dtype: Any, finding: dict[str, Any], keep_resident: Sequence[str] = ()
) -> tuple[Walk, Described]:
    """Walks a model, or what a path describes."""
    check_is_no_proxy(model_or_path)
    for name in finding:
        if name not in FINDING:
            hint = _native.did_you_mean(name, FINDING)
            raise ConfigError(
                f"unknown option '{name}'{hint}; the options are dtype, {', '.join(FINDING)}"
            )
    model = model_or_path if isinstance(model_or_path, nn.Module) else parts_of(model_or_path)
    if model is None:
        from tensorstream.loading import describe

        path = path_text(model_or_path)
        with typed_shortages(f"describing '{path}'"):
            described = describe(path, dtype, **finding)
    else:
        for name, given in {"dtype": dtype, **finding}.items():
            if given is not None:
                raise ConfigError(f"{name} is for a path, and a model is given, which is loaded")
        described = Described(model)
    return walk_described(described, keep_resident), described
