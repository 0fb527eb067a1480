"""Models from checkpoints, never whole in memory."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from tensorstream import _native
from tensorstream.api import PathLike
from tensorstream.config import Config, make_config
from tensorstream.exceptions import ConfigError
from tensorstream.orchestrator import Orchestrator
from tensorstream.packed import concrete_class, hub_options, load_packed

# Arguments of transformers that place weights: the budget does that here.
_PLACING = {
    "device_map": "the budget decides where weights live; give ram_budget= or vram_budget=",
    "max_memory": "give ram_budget= or vram_budget=",
    "offload_folder": "weights are streamed from the checkpoint itself; nothing is written",
    "offload_state_dict": "weights are streamed from the checkpoint itself",
    "quantization_config": "quantise with transformers, and give the model to tensorstream.offload(): "
    "its quantised weights stay resident",
    "state_dict": "use tensorstream.offload(model) on a model made in memory",
    "gguf_file": "only safetensors checkpoints are supported by this version",
}


def from_pretrained(
    pretrained_model_name_or_path: PathLike,
    config: Config | None = None,
    *,
    model_class: Any = None,
    **kwargs: Any,
) -> Any:
    """Loads a transformers checkpoint as a model whose weights are streamed from its files.

    transformers builds and loads the model; its weights stay mapped, unread. What it casts, merges or
    transposes on the way is made once, owned by RAM and counted in the budget. Of a packed checkpoint
    (tensorstream.pack) the weights are decoded at each use, and are the same bit for bit.

    Args:
        pretrained_model_name_or_path: A folder with safetensors files, plain or packed, or a hub id in
            the local cache.
        config: Options as one value.
        model_class: A transformers class with from_pretrained; None takes the one that the
            checkpoint's config names.
        **kwargs: Fields of Config by name; the rest goes to transformers (dtype, revision, ...).

    Returns:
        The model, in eval mode, offloaded.

    Raises:
        BudgetError: The budget is smaller than the smallest that works.
        ConfigError: An option is unusable, the path holds no model, or weights are missing.
        FormatError: A file of the checkpoint breaks its format.
        UnsupportedError: The checkpoint is packed, and an option or its model needs a plain one.
    """
    for name, advice in _PLACING.items():
        if kwargs.get(name) is not None:
            raise ConfigError(f"{name} has no place in tensorstream.from_pretrained: {advice}")
    own = {name: kwargs.pop(name) for name in list(kwargs) if name in _OPTIONS}
    chosen = make_config(config, own)
    path = os.fspath(pretrained_model_name_or_path)
    checkpoint = _check_checkpoint(path, kwargs)
    loader = model_class if model_class is not None else _class_for(path, kwargs)
    _check_misspelt(loader, kwargs)
    # What does not fit is listed then, and refused below with our error, not transformers'.
    kwargs["ignore_mismatched_sizes"] = True
    stored = None
    if checkpoint.packed:
        loader = concrete_class(loader, path, kwargs)
        model, info, stored = load_packed(loader, path, checkpoint, kwargs)
    else:
        model, info = loader.from_pretrained(
            path, output_loading_info=True, use_safetensors=True, **kwargs
        )
    _check_complete(path, info)  # guard: missing-weights
    Orchestrator(model, chosen, None, ram_counts=True, stored=stored)
    return model


def model_without_weights(path: str) -> nn.Module:
    """The model that a folder's config describes, on the meta device: structure and sizes alone.

    Raises:
        ConfigError: The path holds no model that transformers knows.
    """
    _check_checkpoint(path, {})
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    loader = _class_for(path, {})
    make = loader.from_config if hasattr(loader, "from_config") else loader._from_config
    with torch.device("meta"):
        model: nn.Module = make(config)  # under the config's type; buffers may choose another
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, torch.dtype):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model.eval()


_OPTIONS = tuple(Config.__dataclass_fields__)
# What transformers takes besides fields of a model's config; near misses of our options are told apart by it.
_THEIRS = (
    "adapter_kwargs attn_implementation cache_dir config dtype experts_implementation force_download "
    "generation_config ignore_mismatched_sizes key_mapping local_files_only proxies revision subfolder "
    "token torch_dtype trust_remote_code variant weights_only"
).split()


def _folder_of(path: str, kwargs: dict[str, Any]) -> str:
    """The folder that a path or a cached hub id names."""
    if os.path.isdir(path):
        return os.path.join(path, kwargs.get("subfolder") or "")
    from transformers.utils import cached_file

    try:
        config_file = cached_file(path, "config.json", **hub_options(kwargs))
    except OSError as error:
        raise ConfigError(
            f"'{path}' is no folder, and no model of that name is in the local cache: {error}"
        ) from error
    return os.path.dirname(str(config_file))


def _check_checkpoint(path: str, kwargs: dict[str, Any]) -> _native.Checkpoint:
    """Opens the checkpoint, and checks every header of the checkpoint before transformers touches it."""
    folder = _folder_of(path, kwargs)
    if not os.path.isfile(os.path.join(folder, "config.json")):
        if os.path.isfile(os.path.join(folder, "adapter_config.json")):
            raise ConfigError(
                f"'{folder}' holds an adapter, and no model: load the model that it was made for, and then "
                "peft.PeftModel.from_pretrained(model, folder)"
            )
        raise ConfigError(f"'{folder}' holds no model: there is no config.json in it")
    return _native.Checkpoint.open(folder)


def _class_for(path: str, kwargs: dict[str, Any]) -> Any:
    """The class that the checkpoint's config names, or AutoModel."""
    import transformers

    options = hub_options(kwargs)
    if kwargs.get("trust_remote_code") is not None:
        options["trust_remote_code"] = kwargs["trust_remote_code"]
    config = kwargs.get("config") or transformers.AutoConfig.from_pretrained(path, **options)
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    return transformers.AutoModel


def _check_misspelt(loader: Any, kwargs: dict[str, Any]) -> None:
    config_class = getattr(loader, "config_class", None)
    fields = set(dir(config_class)) if config_class is not None else set()
    for name in kwargs:
        hint = _native.did_you_mean(name, list(_OPTIONS))
        if hint and name not in _THEIRS and name not in fields:
            raise ConfigError(f"unknown option '{name}'{hint}")


def _check_complete(path: str, info: dict[str, Any]) -> None:
    """Refuses a model of which some weights would be random."""
    for kind, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        names = [entry if isinstance(entry, str) else entry[0] for entry in info.get(kind) or ()]
        if names:
            raise ConfigError(
                f"the checkpoint '{path}' does not match the model: {len(names)} weights are {what}, "
                f"'{sorted(names)[0]}' for one; choose the class that it was saved from with model_class="
            )
    if info.get("error_msgs"):
        raise ConfigError(f"transformers could not load '{path}': {info['error_msgs'][0]}")
