"""Where a model's files are: a folder, or a snapshot in Hugging Face's cache; the network is not asked."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import torch

from tensorstream import _native
from tensorstream.exceptions import BudgetError, ConfigError, IoError, UnsupportedError
from tensorstream.shortages import shortage_in

# Of the options of transformers and diffusers, those that say where a file is.
_HUB_OPTIONS = "revision cache_dir subfolder token local_files_only".split()
# Of those of from_pretrained, the ones beside the type that say which model, of which files, is loaded.
FINDING = "model_class trust_remote_code code_revision variant subfolder revision cache_dir".split()
_SHARD = re.compile(r"(.+)-\d+-of-\d+\.safetensors")
# With it a config names a file of weights in place of the usual one.
_WEIGHTS_KEY = "transformers_weights"


def path_text(path: Any) -> str:
    """The text of a path or hub id that a user gave.

    Raises:
        ConfigError: It is none, or one that not every library takes.
    """
    text = os.fspath(path) if isinstance(path, str | bytes | os.PathLike) else None
    if not isinstance(text, str):
        raise ConfigError(f"{path!r} is no path: give text or a pathlib.Path")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the path {text!r} is not UTF-8: rename it, or give a link to it that is"
        ) from error
    first = text.split(os.sep, 1)[0]
    if first.startswith("~") and not os.path.lexists(first):  # guard: home-of-shells
        raise ConfigError(
            f"the path '{text}' begins with '{first}', and there is no such file or folder here: shells "
            "alone take it for a home; give os.path.expanduser(path)"
        )
    if "\0" in text:
        raise ConfigError(f"the path {text!r} has a character that no path can have")
    return text


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that say where transformers finds a file."""
    return {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}


def model_folder(path: str, kwargs: dict[str, Any]) -> str:
    """The folder that a path, or the hub id of a model in the local cache, names.

    Args:
        path: What from_pretrained was given.
        kwargs: Its options, of which `revision`, `cache_dir` and `subfolder` count; `variant` is checked.

    Raises:
        ConfigError: There is no such folder, and no such model in the cache; or the path is a file's.
        UnsupportedError: The path is that of a GGUF file.
    """
    if is_gguf(path) and os.path.exists(path):
        refuse_gguf(path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise ConfigError(
            f"'{path}' is a file, and a model is loaded from the folder that holds its config and all of its "
            f"weights: give '{os.path.dirname(path) or os.curdir}'"
        )
    for option in ("subfolder", "cache_dir"):
        given = kwargs.get(option)
        if given is not None and not isinstance(given, str | os.PathLike):
            raise ConfigError(f"{option} is {given!r}; give text or a pathlib.Path")
        if given is not None:
            path_text(given)
    if not isinstance(kwargs.get("variant"), str | None) or kwargs.get("variant") == "":
        raise ConfigError(f"variant is {kwargs['variant']!r}; give the name of one, as 'fp16'")
    if not isinstance(kwargs.get("revision"), str | None):
        raise ConfigError(
            f"revision is {kwargs['revision']!r}; give the name of a branch, tag or commit"
        )
    folder = path if os.path.isdir(path) else _snapshot(path, kwargs)
    below = kwargs.get("subfolder")
    return os.path.join(folder, below) if below else folder.rstrip(os.sep) or os.sep


def is_gguf(path: str) -> bool:
    """Whether a path is, by its name, that of a GGUF file."""
    return path.lower().endswith(".gguf") and not os.path.isdir(path)


def refuse_gguf(name: str) -> None:
    """Raises UnsupportedError: what to do with a GGUF file."""
    raise UnsupportedError(
        f"'{name}' is a GGUF file, and only safetensors are streamed from files: "
        "tensorstream.from_pretrained has transformers make plain weights of it, in host memory; set "
        "model.hf_quantizer = None there, del model.config.quantization_config, call save_pretrained, and "
        "stream that folder"
    )


def _snapshot(path: str, kwargs: dict[str, Any]) -> str:
    """The folder of a revision of a model in the cache."""
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError as error:
        raise UnsupportedError(
            f"'{path}' is no folder, and the local cache is looked up by huggingface_hub, which cannot be "
            f"imported ({error}): give a folder, or pip install huggingface_hub"
        ) from error

    cache = kwargs.get("cache_dir") or constants.HF_HUB_CACHE
    revision = kwargs.get("revision")
    try:
        found: str = snapshot_download(
            path, revision=revision, cache_dir=cache, local_files_only=True
        )
    except (OSError, ValueError) as error:  # not there, or no name that a model could have
        of_revision = f" in revision '{revision}'" if revision else ""
        option = f" --revision {revision}" if revision else ""
        raise ConfigError(
            f"'{path}' is no folder, and no model of that name{of_revision} is in the local cache "
            f"'{os.fspath(cache)}'; download it first (hf download {path}{option}), or give cache_dir="
        ) from error
    return found


def check_regular(path: str) -> None:
    """Raises ConfigError where a file is a pipe or a device, which would be waited for."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ConfigError(f"'{path}' is no regular file: put the file itself there")


def brings_adapter(path: str, folder: str) -> bool:
    """Whether transformers adds an adapter to the model: one that lies beside it, if peft is installed.

    Args:
        path: What from_pretrained was given.
        folder: That of the model.
    """
    from transformers.utils import is_peft_available

    where = path if os.path.isdir(path) else folder
    return is_peft_available() and os.path.isfile(os.path.join(where, "adapter_config.json"))


def files_in(folder: str) -> list[str]:
    """The names in a folder, sorted; none where it is no folder.

    Raises:
        IoError: It cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(f"the folder '{folder}' cannot be read", folder, error) from error


def _unreadable(what: str, path: str, error: OSError) -> BudgetError | IoError:
    short = shortage_in(error, what)
    if short is not None:
        return short
    failed = IoError(f"{what}: {error.strerror}")
    failed.errno, failed.filename = error.errno, path
    return failed


def read_json(path: str) -> dict[str, Any]:
    """The object in a JSON file; an empty one where it holds something else.

    Raises:
        ConfigError: It is not there, or is no JSON.
        IoError: It cannot be read.
    """
    check_regular(path)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' cannot be read as JSON: {error}") from error
    except OSError as error:
        raise _unreadable(f"'{path}' cannot be read", path, error) from error
    return found if isinstance(found, dict) else {}


def weights_in_config(folder: str) -> Any:
    """What the config in a folder names in place of the usual weights of transformers; None for nothing."""
    try:
        return read_json(os.path.join(folder, "config.json")).get(_WEIGHTS_KEY)
    except ConfigError:  # whoever needs the config says so
        return None


def named_weights(folder: str, kwargs: dict[str, Any]) -> str | None:
    """The path of the file or index that transformers loads by name; None where it takes the usual ones.

    Args:
        folder: Of one model.
        kwargs: Options of from_pretrained, of which `config` and `transformers_weights` count.

    Raises:
        ConfigError: There is no such file in the folder, or it is not safetensors.
    """
    config = kwargs.get("config")
    said = weights_in_config(folder) if config is None else getattr(config, _WEIGHTS_KEY, None)
    name = kwargs.get(_WEIGHTS_KEY, said)
    if name is None:
        return None
    what = f"the config of '{folder}' has {name!r} for its weights ({_WEIGHTS_KEY})"
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ConfigError(
            f"{what}, which is no safetensors file and no index of them: convert it, or remove that key"
        )
    whole = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(whole, name))
    if os.path.commonpath([whole, path]) != whole:
        raise ConfigError(f"{what}, which is outside of it: put the file there, or remove that key")
    if not os.path.isfile(path):
        raise ConfigError(
            f"{what}, and there is no such file: put it there (of a packed folder tensorstream.unpack "
            "makes it), or remove that key"
        )
    return path


def type_in_index(folder: str, checkpoint: _native.Checkpoint) -> str | None:
    """The type that the index of a checkpoint's shards names, as "bfloat16"; None where it names none.

    Args:
        folder: Of one model.
        checkpoint: What was opened of it.
    """
    shards = {os.path.relpath(file, folder) for file in checkpoint.files}
    for name in files_in(folder):
        if not name.endswith(".json") or ".safetensors.index." not in name:
            continue
        try:
            index = read_json(os.path.join(folder, name))
        except ConfigError:  # none that was opened
            continue
        weight_map = index.get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else ()
        if {str(shard) for shard in named} != shards:  # of a variant, or what an earlier save left
            continue
        if checkpoint.packed:
            index = json.loads(index["metadata"].get("tensorstream.index", "{}"))
        metadata = index.get("metadata")
        found = metadata.get("dtype") if isinstance(metadata, dict) else None
        if isinstance(found, str) and isinstance(getattr(torch, found, None), torch.dtype):
            return found
    return None


def check_same_file(same: bool, now: _native.Reader) -> None:
    """Raises IoError where the file that `now` reads is not the `same` that was looked at before."""
    if not same:  # guard: opened-anew-same-file
        changed = IoError(f"'{now.name}' changed while it was opened; open the model again")
        changed.errno, changed.filename = 0, now.name
        raise changed


def open_checkpoint(
    folder: str, stem: str, variant: str | None, named: str | None = None
) -> _native.Checkpoint:
    """Opens the weights in a folder; every header is checked.

    Args:
        folder: Of one model.
        stem: What its weights are called: "model", or "diffusion_pytorch_model".
        variant: As transformers and diffusers take it, "fp16" for one; None takes the usual weights.
        named: The path of the file or index to open in place of all that.

    Raises:
        ConfigError: The folder holds no weights, or not that variant.
        FormatError: A file breaks its format.
        UnsupportedError: It holds weights in other formats alone.
    """
    if named is not None:  # guard: named-weights
        return _native.Checkpoint.open(named)
    path = folder if variant is None else _variant_path(folder, stem, variant)
    try:
        checkpoint = _native.Checkpoint.open(path or folder)
    except ConfigError:
        _check_usual(folder, stem, variant)
        raise
    # A packed one has no variants, and files of any name.
    as_libraries_look = not checkpoint.packed and (path is None or (variant is None and stem != ""))
    if as_libraries_look:  # guard: usual-weights
        _check_usual(folder, stem, variant)
    return checkpoint


def _check_usual(folder: str, stem: str, variant: str | None) -> None:
    """Says what is amiss where a folder has not the files that the libraries look for.

    Raises:
        ConfigError: Weights are there, and of a variant, without their index, or of another name.
    """
    names = files_in(folder)
    files = [name for name in names if name.endswith(".safetensors")]
    if variant is None and any(name.endswith(".safetensors.index.json") for name in names):
        return
    usual = f"{stem}.safetensors"
    if not files or (variant is None and stem and usual in files):
        return
    of_variant = re.compile(rf"{re.escape(stem)}\.([^.]+?)(-\d+-of-\d+)?\.safetensors")
    found = sorted({match[1] for match in map(of_variant.fullmatch, files) if match and stem})
    shown = ", ".join(f"variant='{each}'" for each in found)
    if variant in found:
        index = f"{stem}.safetensors.index.{variant}.json"
        raise ConfigError(f"'{folder}' holds shards of the variant '{variant}', and no '{index}'")
    if variant is not None:
        advice = f"give {shown}, or leave it out" if found else "leave it out"
        raise ConfigError(f"'{folder}' holds no safetensors of the variant '{variant}': {advice}")
    if found:
        raise ConfigError(f"'{folder}' holds weights of a variant alone: give {shown}")
    shards = [match for match in map(_SHARD.fullmatch, files) if match]
    if shards:
        raise ConfigError(
            f"'{folder}' holds shards of a checkpoint ('{shards[0][0]}' for one), and their index "
            f"'{shards[0][1]}.safetensors.index.json' is missing: put it there"
        )
    if stem:
        raise ConfigError(
            f"'{folder}' holds no '{usual}', but '{files[0]}', which no library looks for: rename it"
        )


def _variant_path(folder: str, stem: str, variant: str) -> str | None:
    """The file, or the index of the files, of a variant of the weights."""
    names = (f"{stem}.safetensors.index.{variant}.json", f"{stem}.{variant}.safetensors")
    paths = (os.path.join(folder, name) for name in names)
    return next((path for path in paths if os.path.isfile(path)), None)


def check_complete(path: str, info: dict[str, Any]) -> None:
    """Refuses a model of which some weights would be random, by what loading said of it.

    Raises:
        ConfigError: Weights are missing, or of another shape.
    """
    for kind, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        names = [entry if isinstance(entry, str) else entry[0] for entry in info.get(kind) or ()]
        if names:
            raise ConfigError(
                f"the checkpoint '{path}' does not match the model: {len(names)} weights are {what}, "
                f"'{sorted(names)[0]}' for one; choose the class that it was saved from with model_class=, "
                "or have its library load it, which makes such weights at random, and give that to "
                "tensorstream.offload()"
            )
    if info.get("error_msgs"):
        raise ConfigError(f"'{path}' could not be loaded: {info['error_msgs'][0]}")
