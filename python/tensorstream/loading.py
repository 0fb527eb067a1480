"""Models from checkpoints, never whole in memory."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from tensorstream import _native, diffusion, gguf_files
from tensorstream.api import PathLike
from tensorstream.config import Config, check_one_type, chosen_dtype, is_left_out, make_config
from tensorstream.exceptions import ConfigError, UnsupportedError
from tensorstream.foreseen import check_room, may_cast
from tensorstream.hub import (
    FINDING,
    brings_adapter,
    check_complete,
    check_regular,
    files_in,
    model_folder,
    named_weights,
    open_checkpoint,
    path_text,
    type_in_index,
)
from tensorstream.made_weights import (
    Described,
    described,
    info_of_transformers,
    keep_types_of_transformers,
    renamed_by_transformers,
)
from tensorstream.model_class import (
    CONFIG_ADVICE,
    OPTION_ADVICE,
    class_for,
    library_errors,
    read_config,
    transformers_module,
)
from tensorstream.modes import outside_inference_mode
from tensorstream.orchestrator import Orchestrator
from tensorstream.packed import StoredPlace, load_packed
from tensorstream.shortages import typed_shortages
from tensorstream.steady import SteadyFiles

# Arguments of transformers and diffusers that place weights: the budget does that here.
_PLACING = {
    "device_map": "the budget decides where weights live; give ram_budget= or vram_budget=",
    "max_memory": "give ram_budget= or vram_budget=",
    "offload_folder": "weights are streamed from the checkpoint itself; nothing is written",
    "offload_state_dict": "weights are streamed from the checkpoint itself",
    "quantization_config": "quantise with transformers, and give the model to tensorstream.offload()",
    "force_download": "nothing is downloaded: hub ids are looked up in the local cache",
    "state_dict": "use tensorstream.offload(model) on a model made in memory",
}
# Of those that change what the library gives, the values that this one needs.
_SETTLED: dict[str, tuple[bool, str]] = {
    "use_safetensors": (True, "weights are streamed from safetensors alone"),
    "output_loading_info": (
        False,
        "the model is the result, and weights that are missing are an error",
    ),
}


@outside_inference_mode
def from_pretrained(
    pretrained_model_name_or_path: PathLike,
    config: Any = None,
    *,
    model_class: Any = None,
    **kwargs: Any,
) -> Any:
    """Loads a checkpoint of transformers or diffusers, whose weights are streamed from its files.

    The library that it is of builds and loads the model; its weights stay mapped, unread. What it casts,
    merges or transposes on the way is made once, owned by RAM and counted in the budget. Of a packed
    checkpoint (tensorstream.pack) the weights are decoded at each use, and are the same bit for bit. The
    folder of a pipeline of diffusers (model_index.json) gives the pipeline: its models are loaded one by
    one, and share one budget. A GGUF file, named by its path or by gguf_file=, is made plain by transformers:
    all of it is in host memory then, dequantised to `dtype`.

    Args:
        pretrained_model_name_or_path: A folder with safetensors files, plain or packed, or the hub id of
            a model in the local cache, which is not asked for over the network.
        config: Options as one value; or the config of the model, of transformers, in place of the one in
            the folder, as its own from_pretrained takes it.
        model_class: A class with from_pretrained; None takes the one that the checkpoint names.
        **kwargs: Fields of Config by name; the rest goes to the library (dtype, revision, variant, parts of
            a pipeline that are there already, ...).

    Returns:
        The model, in eval mode, or the pipeline, offloaded.

    Raises:
        BudgetError: The budget is smaller than the smallest that works, or the system gives no memory.
        ConfigError: An option is unusable, the path holds no model, or weights are missing.
        FormatError: A file of the checkpoint breaks its format.
        UnsupportedError: The checkpoint is packed, and an option or its model needs a plain one; a part
            of a pipeline is of neither library; or a GGUF file cannot be read here.
    """
    config = _check_options(config, model_class, kwargs)
    own = {name: kwargs.pop(name) for name in list(kwargs) if name in _OPTIONS}
    chosen = make_config(config, own)
    path = path_text(pretrained_model_name_or_path)
    with typed_shortages(f"loading '{path}'"), SteadyFiles() as files:
        made, stored = _load(path, chosen, model_class, kwargs, files)
        Orchestrator(made, chosen, None, ram_counts=True, stored=stored)
        files.check()
    return made


def _load(
    path: str, config: Config, model_class: Any, kwargs: dict[str, Any], files: SteadyFiles
) -> tuple[Any, dict[int, StoredPlace]]:
    """The model or pipeline as its library loads it, and the sources of its weights where it is packed."""
    gguf = gguf_files.named_file(path, kwargs)
    if gguf is not None:
        _check_misspelt(model_class, kwargs)
        files.add(gguf)
        return gguf_files.load(gguf, model_class, kwargs), {}
    folder = model_folder(path, kwargs)
    if diffusion.is_pipeline(folder) or diffusion.is_model(folder):
        _check_misspelt(model_class, kwargs)
        _check_room(path, config, model_class, kwargs)
        return diffusion.load(folder, path, model_class, kwargs, files)
    return _load_of_transformers(path, config, model_class, kwargs, files)


def _load_of_transformers(
    path: str, config: Config, model_class: Any, kwargs: dict[str, Any], files: SteadyFiles
) -> tuple[Any, dict[int, StoredPlace]]:
    folder = model_folder(path, kwargs)
    if not os.path.isdir(path):  # what was checked is what is loaded
        kwargs["local_files_only"] = True
    checkpoint = _check_checkpoint(folder, kwargs)
    loader = model_class if model_class is not None else class_for(path, kwargs)
    if not hasattr(loader, "_model_mapping"):  # what it says was followed, or an Auto class does
        kwargs.pop("code_revision", None)
    _check_misspelt(loader, kwargs)
    _check_types(path, model_class, kwargs)
    _check_room(path, config, model_class, kwargs, checkpoint)
    files.add_checkpoint(checkpoint)
    # What does not fit is listed then, and refused below with our error, not transformers'.
    kwargs["ignore_mismatched_sizes"] = True
    stored: dict[int, StoredPlace] = {}
    with library_errors(path, OPTION_ADVICE), _own_loading_refused(loader):
        if checkpoint.packed:
            model, info, stored = load_packed(loader, path, checkpoint, kwargs)
        else:
            model, info = loader.from_pretrained(
                path, output_loading_info=True, use_safetensors=True, **kwargs
            )
    check_complete(path, info)  # guard: missing-weights
    return model, stored


@contextlib.contextmanager
def _own_loading_refused(loader: Any) -> Iterator[None]:
    """Says what to do where a class that loads in its own way does so in none that is of use here.

    Raises:
        UnsupportedError: Its from_pretrained failed.
    """
    usual = transformers_module("the model").PreTrainedModel.from_pretrained.__func__
    try:
        yield
    except (AttributeError, OSError, TypeError) as error:
        of_auto = hasattr(loader, "_model_mapping")
        is_own = not of_auto and getattr(loader.from_pretrained, "__func__", None) is not usual
        if not is_own or getattr(error, "errno", None) or not _is_of_transformers(loader):
            raise
        raise UnsupportedError(
            f"{loader.__name__} has a from_pretrained of its own, which gives no report of missing weights, "
            f"or takes no packed ones ({error}): load the model with that, and give it to "
            "tensorstream.offload()"
        ) from error


def _is_of_transformers(loader: Any) -> bool:
    return bool(loader.__module__.startswith("transformers."))


def describe(
    path: str,
    dtype: Any = None,
    *,
    model_class: Any = None,
    given: Mapping[str, Any] = MappingProxyType({}),
    **kwargs: Any,
) -> Described:
    """The model that a folder's config describes, on the meta device, and what loading makes of its weights.

    Args:
        path: A folder, or a hub id in the local cache, of transformers or diffusers. Of a pipeline the
            result holds its models.
        dtype: The type that from_pretrained would be given, in any of its forms.
        model_class: A class of either library; None takes the one that the config names.
        given: Other options of its, which a model may not be described with: of a pipeline they are parts.
        **kwargs: Others of its options that say what is loaded, those of hub.FINDING.

    Raises:
        ConfigError: The path holds no model that either library knows, weights are missing, or the type is
            none.
        UnsupportedError: Its weights are quantised, or an adapter lies beside them.
    """
    wanted = chosen_dtype(dtype)
    _check_class(model_class)
    folder = model_folder(path, kwargs)
    if diffusion.is_pipeline(folder) or diffusion.is_model(folder):
        return diffusion.describe(folder, wanted, model_class, kwargs.get("variant"), given)
    if given:
        raise UnsupportedError(f"'{path}' is not described with {', '.join(given)}")
    check_one_type(wanted)
    if not os.path.isdir(path):
        kwargs["local_files_only"] = True
    checkpoint = _check_checkpoint(folder, kwargs)
    loader = model_class or class_for(path, kwargs)
    config = _config_for(path, model_class, kwargs)
    if getattr(config, "quantization_config", None) is not None:  # the model would be the plain one
        raise UnsupportedError(
            f"the weights in '{path}' are quantised, and what they take is known once transformers has "
            "loaded them: load the model, and give that"
        )
    if brings_adapter(path, folder):  # guard: described-adapter
        raise UnsupportedError(
            f"'{path}' holds an adapter beside its model (adapter_config.json), and what that takes is known "
            "once transformers has loaded both: load the model, and give that"
        )
    wanted = wanted or getattr(config, "dtype", None) or _usual_type(folder, checkpoint)
    config = copy.deepcopy(config)  # one that was given stays as it is
    of_auto = hasattr(loader, "from_config")
    trusted = {"trust_remote_code": True} if of_auto and kwargs.get("trust_remote_code") else {}
    make = loader.from_config if of_auto else loader._from_config
    with library_errors(folder, CONFIG_ADVICE), torch.device("meta"):
        model: nn.Module = make(config, dtype=wanted, **trusted)
    with library_errors(folder, CONFIG_ADVICE):  # of a transformers that has other rules
        keep_types_of_transformers(model, wanted)
        info = info_of_transformers(model, checkpoint, wanted)
        check_complete(path, info)  # guard: described-missing-weights
        return described(model, checkpoint, renamed_by_transformers(model))


def _check_types(path: str, model_class: Any, kwargs: dict[str, Any]) -> None:
    """Raises ConfigError where types by parts name none of the model's: transformers would leave them out."""
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
    if not isinstance(dtype, dict):
        return
    known = ["", *getattr(_config_for(path, model_class, kwargs), "sub_configs", {})]
    for name in dtype:
        if name not in known:  # guard: type-of-no-config
            raise ConfigError(
                f"dtype has a type of '{name}', which is no part of the model in '{path}': give one type, or "
                f"types of {', '.join(map(repr, known))}"
            )


def _config_for(path: str, model_class: Any, kwargs: dict[str, Any]) -> Any:
    config_class = getattr(model_class, "config_class", None)
    return read_config(path, kwargs | ({"config_class": config_class} if config_class else {}))


def _check_room(
    path: str,
    config: Config,
    model_class: Any,
    kwargs: dict[str, Any],
    checkpoint: _native.Checkpoint | None = None,
) -> None:
    """Raises BudgetError where the budget has no room for what loading casts; nothing is made until then."""
    if config.torch_device.type != "cpu":  # elsewhere RAM has no budget that has to hold it
        return
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
    finding = {name: kwargs[name] for name in (*FINDING, "config") if name in kwargs}
    given = {name: value for name, value in kwargs.items() if name not in _SEEN}
    try:
        if checkpoint is not None:  # of a model of transformers, whose description may take long
            wanted = dtype or getattr(_config_for(path, model_class, kwargs), "dtype", None)
            usual = wanted or _usual_type(model_folder(path, kwargs), checkpoint)
            if not may_cast(checkpoint, usual):
                return
        described = describe(path, dtype, model_class=model_class, given=given, **finding)
        check_room(described, config, dtype)  # guard: casts-foreseen
    except (ConfigError, UnsupportedError):  # it is loading that says so, or that can do more
        return


def _usual_type(folder: str, checkpoint: _native.Checkpoint) -> torch.dtype:
    """The type that transformers takes where a config names none."""
    named = type_in_index(folder, checkpoint)
    if named is not None:
        found: torch.dtype = getattr(torch, named)
        return found
    types = [getattr(torch, tensor.dtype) for tensor in checkpoint.tensors]
    return next((dtype for dtype in types if dtype.is_floating_point), torch.get_default_dtype())


_OPTIONS = tuple(Config.__dataclass_fields__)
# What they take besides fields of a model's config; near misses of our options are told apart by it.
_THEIRS = (
    "adapter_kwargs attn_implementation cache_dir code_revision config dtype experts_implementation "
    "generation_config ignore_mismatched_sizes key_mapping local_files_only proxies revision subfolder "
    "token torch_dtype trust_remote_code variant weights_only use_safetensors"
).split()
# Of what they take, what makes no other model: it can be described without.
_SEEN = (
    *FINDING,
    *"config dtype torch_dtype attn_implementation generation_config proxies token".split(),
    *"ignore_mismatched_sizes local_files_only weights_only".split(),
)


def _check_checkpoint(folder: str, kwargs: dict[str, Any]) -> _native.Checkpoint:
    """Opens the checkpoint, and checks every header of the checkpoint before transformers touches it."""
    names = files_in(folder)
    if not os.path.isfile(os.path.join(folder, "config.json")):
        if os.path.isfile(os.path.join(folder, "adapter_config.json")):
            raise ConfigError(
                f"'{folder}' holds an adapter, and no model: load the model that it was made for, and then "
                "peft.PeftModel.from_pretrained(model, folder)"
            )
        raise ConfigError(f"'{folder}' holds no model: there is no config.json in it")
    for name in names:
        if name.endswith(".json"):  # transformers reads more of them than its config
            check_regular(os.path.join(folder, name))
    return open_checkpoint(folder, "model", kwargs.get("variant"), named_weights(folder, kwargs))


def _check_options(config: Any, model_class: Any, kwargs: dict[str, Any]) -> Config | None:
    """Checks what has one meaning here, and has types be torch's; the options that are ours, of `config`.

    A config of transformers is put among `kwargs`, where its from_pretrained has it.

    Raises:
        ConfigError: An option has no place here, or is not what it has to be.
    """
    for name, advice in _PLACING.items():
        if not is_left_out(kwargs.pop(name, None)):
            raise ConfigError(f"{name} has no place in tensorstream.from_pretrained: {advice}")
    for name, (wanted, why) in _SETTLED.items():
        given = kwargs.pop(name, None)
        if given is not None and given is not wanted:
            raise ConfigError(f"{name} is {given!r}, and can only be {wanted}: {why}")
    for name in ("dtype", "torch_dtype"):
        if kwargs.get(name) is not None:
            kwargs[name] = chosen_dtype(kwargs[name])
    _check_class(model_class)
    if config is None or isinstance(config, Config):
        return config
    if not isinstance(config, transformers_module("what config= has").PretrainedConfig):
        raise ConfigError(
            f"config is {type(config).__name__}, neither a tensorstream.Config nor a config of transformers"
        )
    kwargs["config"] = config
    return None


def _check_class(model_class: Any) -> None:
    loads = callable(getattr(model_class, "from_pretrained", None))
    if model_class is not None and not (loads and inspect.isclass(model_class)):
        raise ConfigError(
            f"model_class is {model_class!r}; give a class that has from_pretrained, as "
            "transformers.LlamaForCausalLM"
        )


def _check_misspelt(loader: Any, kwargs: dict[str, Any]) -> None:
    config_class = getattr(loader, "config_class", None)
    fields = set(dir(config_class)) if config_class is not None else set()
    for name in kwargs:
        hint = _native.did_you_mean(name, list(_OPTIONS))
        if hint and name not in _THEIRS and name not in fields:
            raise ConfigError(f"unknown option '{name}'{hint}")
