"""The ways to bring a checkpoint of safetensors files to a ready model on the device."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cuda_runs.budgets import budget_options

# What holds all weights, and the arena of a plan that holds them.
_EVERYTHING = 4


class Loader:
    """safetensors into mapped memory, then the model to the device: the one to compare with.

    Attributes:
        how: The calls.
        package: What has to be installed.
        environment: Variables that are set before the package is imported.
    """

    how = "safetensors.torch.load_file, load_state_dict(assign=True), model.to(device)"
    package = "safetensors"
    environment: Mapping[str, str] = MappingProxyType({})

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def missing(self) -> str | None:
        """What is not installed, as text; None where the way can run."""
        found = importlib.util.find_spec(self.package.replace("-", "_")) is not None
        return None if found else f"{self.package} is not installed: it was not measured"

    def bring_in(self) -> None:
        """Imports the package, and loads nothing."""
        os.environ.update(self.environment)
        __import__(self.package.replace("-", "_"))

    def load(self, folder: Path, weights_bytes: int) -> Any:
        """The model, ready to compute, in eval mode."""
        from safetensors.torch import load_file

        return model_of(folder, tensors_of(folder, load_file)).to(self.device)


class OnDevice(Loader):
    """safetensors straight to the device, tensor by tensor."""

    how = "safetensors.torch.load_file(device=device), load_state_dict(assign=True)"

    def load(self, folder: Path, weights_bytes: int) -> Any:
        from safetensors.torch import load_file

        on_device = tensors_of(folder, lambda path: load_file(path, device=str(self.device)))
        return model_of(folder, on_device).to(self.device)


class Transformers(Loader):
    """transformers with the weights placed by accelerate."""

    how = "LlamaForCausalLM.from_pretrained(folder, device_map=device)"
    package = "transformers"

    def load(self, folder: Path, weights_bytes: int) -> Any:
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM.from_pretrained(folder, device_map=str(self.device)).eval()


class FastSafetensors(Loader):
    """fastsafetensors by reads into pinned memory, through the page cache as the others."""

    how = (
        "fastsafetensors.SafeTensorsFileLoader(nogds=True).copy_files_to_device(), "
        "load_state_dict(assign=True), FASTSAFETENSORS_ODIRECT=0"
    )
    package = "fastsafetensors"
    environment = MappingProxyType({"FASTSAFETENSORS_ODIRECT": "0"})

    def load(self, folder: Path, weights_bytes: int) -> Any:
        from fastsafetensors import SafeTensorsFileLoader

        files = SafeTensorsFileLoader(None, device=str(self.device), nogds=True)
        files.add_filenames({0: [str(path) for path in shards_of(folder)]})
        buffers = files.copy_files_to_device()
        # Its tensors keep the memory that they lie in.
        model = model_of(folder, {name: buffers.get_tensor(name) for name in files.get_keys()})
        buffers.close()
        files.close()
        return model.to(self.device)


class RunaiStreamer(Loader):
    """runai-model-streamer, through the page cache as the others."""

    how = (
        "runai_model_streamer.SafetensorsStreamer.stream_files(device=device), "
        "load_state_dict(assign=True), RUNAI_STREAMER_FS_STRATEGY=sync_buffered"
    )
    package = "runai-model-streamer"
    environment = MappingProxyType({"RUNAI_STREAMER_FS_STRATEGY": "sync_buffered"})

    def load(self, folder: Path, weights_bytes: int) -> Any:
        from runai_model_streamer import SafetensorsStreamer

        with SafetensorsStreamer() as streamer:
            streamer.stream_files(
                [str(path) for path in shards_of(folder)], device=str(self.device)
            )
            tensors = dict(streamer.get_tensors())
        return model_of(folder, tensors).to(self.device)


class TensorStream(Loader):
    """tensorstream with a budget that holds everything."""

    how = f"tensorstream.from_pretrained(folder, device, budget: {_EVERYTHING} x weights)"
    package = "tensorstream"

    def load(self, folder: Path, weights_bytes: int) -> Any:
        import tensorstream as ts

        budget = budget_options(str(self.device), _EVERYTHING * weights_bytes)
        return ts.from_pretrained(folder, **budget)


LOADERS: dict[str, type[Loader]] = {
    "native": Loader,
    "safetensors-on-device": OnDevice,
    "transformers": Transformers,
    "fastsafetensors": FastSafetensors,
    "runai-model-streamer": RunaiStreamer,
    "tensorstream-load": TensorStream,
}


def shards_of(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order."""
    return sorted(folder.glob("*.safetensors"))


def tensors_of(
    folder: Path, load: Callable[[Path], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The tensors of all shards."""
    return {name: tensor for path in shards_of(folder) for name, tensor in load(path).items()}


def model_of(folder: Path, tensors: dict[str, torch.Tensor]) -> Any:
    """A Llama whose parameters are these tensors; its buffers are on the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval()


def offer_cuda_runtime(folder: Path) -> None:
    """Lets the processes started from here find torch's CUDA runtime by its plain name, libcudart.so.

    fastsafetensors 0.5.0 opens it by that name, which only a toolkit's development files have.
    """
    try:
        ctypes.CDLL("libcudart.so")
        return
    except OSError:
        pass
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    found = next((path for path in mapped if Path(path).name.startswith("libcudart.so")), None)
    if found is None:
        return
    (folder / "libcudart.so").symlink_to(found)
    others = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([str(folder), *([others] if others else [])])
