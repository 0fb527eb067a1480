"""The ways to run a model: each takes it in host RAM and hands it back ready to compute."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cuda_runs.accelerator import Accelerator
from cuda_runs.budgets import budget_options
from cuda_runs.dfloat11_model import write_dfloat11
from cuda_runs.llama_model import weights_bytes
from cuda_runs.machine_sheet import version
from cuda_runs.planned_steps import predictions_of
from cuda_runs.quiet_rounds import HOST


class Offloader:
    """The plain model on the device: what the others are compared with."""

    how = "model.to(device)"

    def __init__(self, accelerator: Accelerator, budget_bytes: int | None = None) -> None:
        self.accelerator = accelerator
        self.budget_bytes = budget_bytes

    def make_ready(self, model: nn.Module) -> None:
        """What is done once for a model, before anything is measured."""

    def predict(self, model: nn.Module) -> dict[str, Any]:
        """What is said of the run before it starts."""
        return {}

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model, ready."""
        return model.to(self.accelerator.device)

    def streamed_bytes(self, model: nn.Module) -> int:
        """Bytes of weights moved so far, as far as the way counts them."""
        return 0

    def conclude(self, model: nn.Module) -> dict[str, Any]:
        """What is said of the run at its end."""
        return {}


class AccelerateDeviceMap(Offloader):
    """accelerate's dispatch_model: what fits the budget on the device, the rest in RAM."""

    how = "infer_auto_device_map(max_memory) and dispatch_model, weights in RAM"

    def prepare(self, model: nn.Module) -> nn.Module:
        from accelerate import dispatch_model, infer_auto_device_map

        device = self.accelerator.device
        on_device = {} if device.type == "cpu" else {device.index: self.budget_bytes}
        device_map = infer_auto_device_map(
            model,
            max_memory={**on_device, "cpu": 2 * weights_bytes(model)},
            no_split_module_classes=getattr(model, "_no_split_modules", None),
        )
        skip = getattr(model, "_skip_keys_device_placement", None)
        return dispatch_model(model, device_map, skip_keys=skip)


class AccelerateCpuOffload(Offloader):
    """accelerate's cpu_offload: every weight is moved at its use."""

    how = "cpu_offload(model, execution_device)"

    def prepare(self, model: nn.Module) -> nn.Module:
        from accelerate import cpu_offload

        return cpu_offload(model, execution_device=self.accelerator.device)


class DiffusersLeaf(Offloader):
    """diffusers' group offload of single leaves, with a stream where there is one."""

    how = "apply_group_offloading(leaf_level, use_stream, record_stream, non_blocking)"

    def prepare(self, model: nn.Module) -> nn.Module:
        from diffusers.hooks import apply_group_offloading

        streams = self.accelerator.device.type != "cpu"
        apply_group_offloading(
            model,
            onload_device=self.accelerator.device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            non_blocking=True,
            use_stream=streams,
            record_stream=streams,
        )
        return model


class DFloat11CpuOffload(Offloader):
    """DFloat11's own model, coded in pinned host memory; its checkpoint is made before."""

    how = "DFloat11Model.from_pretrained(bfloat16_model, cpu_offload, pin_memory)"

    def make_ready(self, model: nn.Module) -> None:
        # Its kernel is loaded as it is imported; where that fails, nothing is encoded.
        import dfloat11.dfloat11  # noqa: F401

        self.folder = tempfile.TemporaryDirectory()
        write_dfloat11(model, Path(self.folder.name), self.accelerator.device)
        self.accelerator.release_cached()

    def prepare(self, model: nn.Module) -> nn.Module:
        from dfloat11.dfloat11 import DFloat11Model

        return DFloat11Model.from_pretrained(
            self.folder.name,
            device=str(self.accelerator.device),
            bfloat16_model=model,
            cpu_offload=True,
            pin_memory=True,
        )

    def conclude(self, model: nn.Module) -> dict[str, Any]:
        return {"packages": {"dfloat11": version("dfloat11")}}


class TensorStream(Offloader):
    """tensorstream.offload under a budget, the weights as they are."""

    how = "tensorstream.offload(model, device, budget, compression='none')"

    @property
    def options(self) -> dict[str, Any]:
        """The device and its budget, as tensorstream takes them."""
        if self.budget_bytes is None:
            raise SystemExit("tensorstream takes --budget")
        return budget_options(str(self.accelerator.device), self.budget_bytes)

    def options_for_all(self, model: nn.Module) -> dict[str, Any]:
        """The same with a budget that holds all weights, twice."""
        return budget_options(str(self.accelerator.device), 2 * weights_bytes(model) + (1 << 30))

    def predict(self, model: nn.Module) -> dict[str, Any]:
        import tensorstream as ts

        HOST.wait()  # it predicts by what the host takes for a call now
        plan = ts.plan(model, **self.options)
        by_native = predictions_of(
            lambda: ts.plan(model, **self.options).predicted_seconds,
            lambda: ts.plan(model, **self.options_for_all(model)).predicted_seconds,
            torch.device(self.accelerator.device),
        )
        return {"plan": plan_numbers(plan), "predicted_by_native": by_native}

    def prepare(self, model: nn.Module) -> nn.Module:
        import tensorstream as ts

        return ts.offload(model, **self.options)

    def streamed_bytes(self, model: nn.Module) -> int:
        import tensorstream as ts

        return ts.stats(model).streamed_bytes

    def conclude(self, model: nn.Module) -> dict[str, Any]:
        import tensorstream as ts

        return {"stats": dataclasses.asdict(ts.stats(model)), "hooks": count_hooks(model)}


class TensorStreamCoded(TensorStream):
    """The same, coded where the engine chooses so."""

    how = "tensorstream.offload(model, device, budget)"

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "compression": "auto"}


OFFLOADERS = {
    "native": Offloader,
    "accelerate-device-map": AccelerateDeviceMap,
    "accelerate-cpu-offload": AccelerateCpuOffload,
    "diffusers-leaf": DiffusersLeaf,
    "dfloat11-cpu-offload": DFloat11CpuOffload,
    "tensorstream": TensorStream,
    "tensorstream-coded": TensorStreamCoded,
}


def has_diffusers() -> bool:
    """Whether diffusers can be imported."""
    return importlib.util.find_spec("diffusers") is not None


def silence_libraries() -> None:
    """Keeps progress bars and hints of the libraries out of what the driver passes on."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if has_diffusers():
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.set_verbosity_error()


def plan_numbers(plan: Any) -> dict[str, Any]:
    """A plan as JSON: its numbers, and how many groups are in each place."""
    numbers = dataclasses.asdict(plan)
    placements = [group["placement"] for group in numbers.pop("groups")]
    numbers["groups"] = {kind: placements.count(kind) for kind in sorted(set(placements))}
    return numbers


def count_hooks(model: nn.Module) -> int:
    """The hooks of tensorstream on the modules of a model."""
    return sum(
        type(hook).__module__.startswith("tensorstream")
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
    )
