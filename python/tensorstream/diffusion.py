"""Models and pipelines of diffusers, loaded part by part; their weights stay mapped, unread."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tensorstream import _native
from tensorstream.config import check_one_type, is_left_out
from tensorstream.exceptions import ConfigError, UnsupportedError
from tensorstream.hub import check_complete, files_in, named_weights, open_checkpoint, read_json
from tensorstream.made_weights import Described, described
from tensorstream.model_class import OPTION_ADVICE, library_errors, transformers_module
from tensorstream.packed import StoredPlace, load_packed
from tensorstream.packed_diffusion import is_kept_in_float32, load_packed_model
from tensorstream.parts import Parts, ordered_parts, parts_of
from tensorstream.steady import SteadyFiles

logger = logging.getLogger("tensorstream")

PIPELINE_INDEX = "model_index.json"
_STEM = "diffusion_pytorch_model"
_STEM_OF_TRANSFORMERS = "model"
# Those of from_pretrained that are no arguments of a class.
_PASSED = (
    "custom_revision dtype ignore_mismatched_sizes load_connected_pipeline parallel_config provider "
    "provider_options proxies sess_options trust_remote_code variant"
).split()
_CONFIG_ADVICE = "correct its config.json, or update diffusers"
# Arguments of diffusers that have no place here.
_PLACING = {
    "config": "the folder has its own; options of ours go by name, or in a tensorstream.Config",
    "low_cpu_mem_usage": "weights stay in the files",
    "disable_mmap": "weights stay in the files",
    "custom_pipeline": "give its class as model_class=",
    "use_onnx": "only safetensors are streamed",
    "use_flashpack": "only safetensors are streamed",
}


def is_pipeline(folder: str) -> bool:
    """Whether a folder holds a pipeline of diffusers."""
    return os.path.isfile(os.path.join(folder, PIPELINE_INDEX))


def is_model(folder: str) -> bool:
    """Whether a folder holds a model of diffusers."""
    path = os.path.join(folder, "config.json")
    return os.path.isfile(path) and "_class_name" in read_json(path)


def load(
    folder: str, path: str, model_class: Any, kwargs: dict[str, Any], files: SteadyFiles
) -> tuple[Any, dict[int, StoredPlace]]:
    """Has diffusers make the model or pipeline in `folder`.

    Args:
        folder: Where the files are.
        path: What the user gave: the folder's path or the hub id.
        model_class: A class of diffusers with from_pretrained; None takes the one that the folder names.
        kwargs: For diffusers: the type, the variant, and parts of the pipeline that are there already.
        files: Takes the files that are read.

    Returns:
        The model, in eval mode, or the pipeline; and where the bytes of weights are that are packed, by
        the ids of their parameters.

    Raises:
        ConfigError: An option has no place here, or a folder's weights do not match its model.
        FormatError: A file breaks its format.
        UnsupportedError: Weights are quantised or not safetensors, a class is not diffusers' own, or
            weights are packed, and an option or their model needs plain ones.
    """
    options = dict(kwargs)
    for name, why in _PLACING.items():
        if not is_left_out(options.pop(name, None)):
            raise ConfigError(f"{name} has no place in tensorstream.from_pretrained: {why}")
    for name in ("revision", "cache_dir", "subfolder", "token", "local_files_only"):
        options.pop(name, None)
    older = options.pop("torch_dtype", None)  # what diffusers called dtype
    options["dtype"] = older if options.get("dtype") is None else options["dtype"]
    file = PIPELINE_INDEX if is_pipeline(folder) else "config.json"
    if file != PIPELINE_INDEX:
        check_one_type(options["dtype"])
    loader = _class_named(folder, file) if model_class is None else model_class
    _check_names(loader, options)
    load_it = _load_pipeline if file == PIPELINE_INDEX else _load_model
    stored: dict[int, StoredPlace] = {}
    made: Any = load_it(folder, loader, options, files, stored)
    made.register_to_config(_name_or_path=path)
    return made, stored


def describe(
    folder: str, dtype: Any, model_class: Any, variant: str | None, given: Mapping[str, Any]
) -> Described:
    """The model in a folder, or the models of its pipeline, and what loading makes of their weights.

    Args:
        folder: Where the files are.
        dtype: A type, or types by parts of the pipeline; None for what diffusers takes by itself.
        model_class: A class of diffusers; None takes the one that the folder names.
        variant: Of the weights.
        given: Other options of from_pretrained: of a pipeline, parts that are not loaded.

    Raises:
        ConfigError: No part has that variant.
        UnsupportedError: Weights are quantised.
    """
    if not is_pipeline(folder):
        if given:
            raise UnsupportedError(f"'{folder}' is not described with {', '.join(given)}")
        model_class = model_class or _class_named(folder, "config.json")
        return _describe_model(model_class, folder, dtype, variant)
    from tensorstream.loading import describe as describe_transformers

    loader = model_class or _class_named(folder, PIPELINE_INDEX)
    varied = _parts_of_variant(folder, variant)
    _check_types(folder, dtype)
    parts: dict[str, Described] = {}
    for name, library, part_class in _parts_in(folder):
        if name in given or not _takes_part(loader, name):
            continue
        _check_known(folder, name, part_class)
        below, of_part = os.path.join(folder, name), _of_part(dtype, name)
        of_files = variant if name in varied else None
        if library == "transformers":
            _check_weights(below, _STEM_OF_TRANSFORMERS, {"variant": of_files})
            parts[name] = describe_transformers(
                below, of_part, model_class=part_class, variant=of_files
            )
        else:
            parts[name] = _describe_model(part_class, below, of_part, of_files)
    models = {name: part.model for name, part in parts.items()}
    whole = Described(ordered_parts(models, getattr(loader, "model_cpu_offload_seq", None)))
    for name, part in parts.items():
        whole.add(part, name)
    return whole


def _of_part(dtype: Any, name: str) -> torch.dtype | None:
    """The type of a part of a pipeline."""
    found = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
    assert found is None or isinstance(found, torch.dtype)
    return found


def _check_types(folder: str, dtype: Any) -> None:
    """Raises ConfigError where types by parts name none of the pipeline's: diffusers would leave them out."""
    if not isinstance(dtype, dict):
        return
    parts = [name for name in read_json(os.path.join(folder, PIPELINE_INDEX)) if name[:1] != "_"]
    for name in dtype:
        if name != "default" and name not in parts:  # guard: type-of-no-part
            hint = _native.did_you_mean(str(name), parts)
            raise ConfigError(
                f"dtype has a type of '{name}', which is no part of the pipeline in '{folder}'{hint}"
            )


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise UnsupportedError(
            "the folder is one of diffusers, which is not installed: pip install diffusers"
        ) from error


def _class_named(folder: str, file: str) -> Any:
    """The class of diffusers that a config names: of a pipeline or of a model, as its file says.

    Raises:
        UnsupportedError: It is none of this diffusers.
    """
    diffusers = _diffusers()
    base = diffusers.DiffusionPipeline if file == PIPELINE_INDEX else diffusers.ModelMixin
    name = read_json(os.path.join(folder, file)).get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (inspect.isclass(found) and issubclass(found, base)):
        kind = "pipeline" if file == PIPELINE_INDEX else "model"
        raise UnsupportedError(
            f"'{folder}' was saved from {name!r}, which is no {kind} of diffusers {diffusers.__version__}: "
            "give the class as model_class="
        )
    return found


def _parts_in(folder: str) -> Iterator[tuple[str, str, Any]]:
    """The models of a pipeline: name, library and class; not schedulers, tokenizers and the like.

    The class is None of what has the files of a model, where no library that is there has its class.
    """
    for name, entry in read_json(os.path.join(folder, PIPELINE_INDEX)).items():
        if name.startswith("_") or not isinstance(entry, list) or not all(entry):
            continue
        if not name.isidentifier():  # a path, which may lead out of the folder
            raise ConfigError(
                f"'{name}' in '{os.path.join(folder, PIPELINE_INDEX)}' names no part of a pipeline"
            )
        if not entry[1:]:
            raise ConfigError(
                f"'{name}' in '{os.path.join(folder, PIPELINE_INDEX)}' is {entry}, not a library and a class"
            )
        library, class_name, *_ = map(str, entry)
        if library == "transformers":
            where = transformers_module(f"'{folder}/{name}'")
        elif library == "diffusers":
            where = _diffusers()
        else:  # a package within diffusers, or the user's own module, which diffusers would not import
            where = getattr(_diffusers().pipelines, library, sys.modules.get(library))
        found = getattr(where, class_name, None)
        if inspect.isclass(found) and issubclass(found, nn.Module):
            theirs = issubclass(found, _diffusers().ModelMixin)
            yield name, "diffusers" if theirs else "transformers", found
        elif found is None and _holds_model(os.path.join(folder, name)):
            yield name, library, None


def _holds_model(folder: str) -> bool:
    return any(
        name == "config.json" or name.endswith((".safetensors", ".bin"))
        for name in files_in(folder)
    )


def _check_known(folder: str, name: str, part_class: Any) -> None:
    """Raises UnsupportedError where a part of a pipeline is a model of an unknown class."""
    if part_class is None:  # guard: class-of-part
        library, class_name, *_ = read_json(os.path.join(folder, PIPELINE_INDEX))[name]
        raise UnsupportedError(
            f"'{name}' of the pipeline in '{folder}' is a {class_name} of {library}, which cannot be had "
            f"here: install or import what has it, or load it yourself, and give from_pretrained {name}="
        )


def _check_names(loader: Any, options: dict[str, Any]) -> None:
    """Raises ConfigError where `loader` takes no option of a name: diffusers would leave it out."""
    taken = inspect.signature(loader.__init__).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values()):
        return
    for name in options:
        if name not in taken and name not in _PASSED:
            hint = _native.did_you_mean(name, [*taken, *_PASSED])
            raise ConfigError(f"unknown option '{name}'{hint}: {loader.__name__} takes none")


def _load_pipeline(
    folder: str,
    loader: Any,
    options: dict[str, Any],
    files: SteadyFiles,
    stored: dict[int, StoredPlace],
) -> Any:
    dtype, variant = options.pop("dtype"), options.pop("variant", None)
    varied = _parts_of_variant(folder, variant)
    _check_types(folder, dtype)
    loaded: dict[str, nn.Module] = {}
    for name, library, part_class in _parts_in(folder):
        if name in options or not _takes_part(loader, name):
            continue
        _check_known(folder, name, part_class)
        of_part = _of_part(dtype, name)
        below = os.path.join(folder, name)
        part_options = {"dtype": of_part, "variant": variant if name in varied else None}
        if library == "transformers":
            loaded[name] = _load_transformers_model(below, part_class, part_options, files, stored)
        else:
            loaded[name] = _load_model(below, part_class, part_options, files, stored)
    with library_errors(folder, OPTION_ADVICE):
        pipeline = loader.from_pretrained(folder, **loaded, **options)
    given = [*loaded.values(), *options.values()]
    for name, part in (parts_of(pipeline) or Parts(())).items():
        if not any(part is each for each in given):  # guard: unknown-part
            raise UnsupportedError(
                f"'{name}' of the pipeline in '{folder}' is a {type(part).__name__}, which is no model of "
                f"diffusers or transformers: load it yourself, and give it as {name}="
            )
    return pipeline


def _takes_part(loader: Any, name: str) -> bool:
    """Whether a pipeline of the class `loader` has such a part; classes that find their own take any."""
    own_class = issubclass(loader, _diffusers().DiffusionPipeline)
    return not own_class or name in inspect.signature(loader.__init__).parameters


def _parts_of_variant(folder: str, variant: str | None) -> set[str]:
    """The parts of a pipeline that have files of a variant; the others are loaded from their usual ones.

    Raises:
        ConfigError: None has.
    """
    if variant is None:
        return set()
    of_variant = re.compile(rf"\.{re.escape(variant)}[.-]")
    names = [name for name, _, _ in _parts_in(folder)]
    found = {
        name for name in names if any(map(of_variant.search, files_in(os.path.join(folder, name))))
    }
    if not found:  # guard: variant-of-no-part
        raise ConfigError(
            f"no part of the pipeline in '{folder}' ({', '.join(names)}) has files of the variant "
            f"'{variant}': correct variant=, or leave it out"
        )
    return found


def _check_weights(folder: str, stem: str, options: dict[str, Any]) -> _native.Checkpoint:
    named = named_weights(folder, {}) if stem == _STEM_OF_TRANSFORMERS else None
    return open_checkpoint(folder, stem, options.get("variant"), named)


def _load_transformers_model(
    folder: str,
    loader: Any,
    options: dict[str, Any],
    files: SteadyFiles,
    stored: dict[int, StoredPlace],
) -> nn.Module:
    """As pipelines of diffusers load a model of transformers."""
    checkpoint = _check_weights(folder, _STEM_OF_TRANSFORMERS, options)
    files.add_checkpoint(checkpoint)
    given = {name: value for name, value in options.items() if name == "dtype" or value is not None}
    with library_errors(folder, OPTION_ADVICE):
        if checkpoint.packed:
            model, info, places = load_packed(loader, folder, checkpoint, given)
            stored.update(places)
        else:
            model, info = loader.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True, **given
            )
    check_complete(folder, info)  # guard: missing-diffusers-weights
    return model  # type: ignore[no-any-return]


def _check_not_quantised(folder: str) -> None:
    config = read_json(os.path.join(folder, "config.json"))
    if config.get("quantization_config") is not None:
        raise UnsupportedError(f"the model in '{folder}' is quantised, which is not supported")


def _load_model(
    folder: str,
    loader: Any,
    options: dict[str, Any],
    files: SteadyFiles,
    stored: dict[int, StoredPlace],
) -> nn.Module:
    _check_not_quantised(folder)
    checkpoint = _check_weights(folder, _STEM, options)
    files.add_checkpoint(checkpoint)
    dtype = options.pop("dtype")
    with library_errors(folder, OPTION_ADVICE):
        if checkpoint.packed:
            model, info, places = load_packed_model(loader, folder, checkpoint, dtype, options)
            stored.update(places)
        else:
            model, info = loader.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                # What does not fit is listed then, and refused below with our error, not diffusers'.
                **{**options, "ignore_mismatched_sizes": True},
            )
    check_complete(folder, info)  # guard: missing-diffusers-weights
    asked = [(n, p) for n, p in model.named_parameters() if not is_kept_in_float32(model, n)]
    taken = dtype is None or not asked or any(each.dtype == dtype for _, each in asked)
    if not taken:  # guard: type-taken
        raise UnsupportedError(
            f"diffusers {_diffusers().__version__} did not load '{folder}' as {dtype}: use 0.42, which "
            "takes dtype=, or a later one"
        )
    types = sorted({tensor.dtype for tensor in checkpoint.tensors} & {"bfloat16", "float16"})
    if dtype is None and types:
        logger.warning(
            "diffusers makes float32 of the %s weights in '%s', which are in RAM then; give "
            "dtype=torch.%s to have them streamed from their files",
            types[0],
            folder,
            types[0],
        )
    return model


def _describe_model(model_class: Any, folder: str, dtype: Any, variant: str | None) -> Described:
    """A model of diffusers on the meta device, in the types that loading gives it."""
    check_one_type(dtype)
    _check_not_quantised(folder)
    checkpoint = _check_weights(folder, _STEM, {"variant": variant})
    with library_errors(folder, _CONFIG_ADVICE), torch.device("meta"):
        model: nn.Module = model_class.from_config(model_class.load_config(folder))
    for name, parameter in model.named_parameters():
        kept = is_kept_in_float32(model, name)
        if parameter.is_floating_point() and dtype is not None and not kept:
            parameter.data = parameter.data.to(dtype)
    stored = {tensor.name: tensor for tensor in checkpoint.tensors}
    if len(checkpoint.files) == 1:  # as diffusers has it: shards have the names of now
        model._fix_state_dict_keys_on_load(stored)  # type: ignore[operator]
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differing = [
        name
        for name in shapes
        if name in stored and tuple(stored[name].torch_shape) != shapes[name]
    ]
    info = {"missing_keys": shapes.keys() - stored.keys(), "mismatched_keys": differing}
    check_complete(folder, info)  # guard: described-missing-diffusers-weights
    names = {tensor.name: name for name, tensor in stored.items()}
    return described(model, checkpoint, names.get)
