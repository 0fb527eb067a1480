"""Which class of transformers a checkpoint's model is of, by its config."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError

from tensorstream.exceptions import ConfigError, IoError, TensorStreamError, UnsupportedError
from tensorstream.hub import hub_options
from tensorstream.shortages import shortage_in

OPTION_ADVICE = "correct the option that is named, or the files"
CONFIG_ADVICE = "correct its config.json, update transformers, or give the config as config="


@contextlib.contextmanager
def library_errors(path: str, advice: str) -> Iterator[None]:
    """Has what transformers or diffusers raise of a config or an argument be one of our errors.

    Args:
        path: The folder or hub id that it was given.
        advice: What to do.

    Raises:
        BudgetError: The system gave it no memory.
        ConfigError: It raised; its error is the cause.
        IoError: The system did not give it a file.
        UnsupportedError: A package is missing.
    """
    try:
        yield
    except (TensorStreamError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise UnsupportedError(f"'{path}' needs what is not installed: {error}") from error
    except _refusals() as error:
        short = shortage_in(error, f"loading '{path}'")
        if short is not None:
            raise short from error
        if isinstance(error, OSError) and error.errno:  # of the system, not of the library
            failed = IoError(f"'{path}' cannot be loaded: {error}")
            failed.errno, failed.filename = error.errno, error.filename
            raise failed from error
        name = type(error).__name__
        raise ConfigError(f"'{path}' cannot be loaded: {name}: {error}; {advice}") from error
    except Exception as error:  # the code of a repository may raise anything
        if not _is_of_repository(error):
            raise
        raise ConfigError(
            f"the code that '{path}' brings failed: {type(error).__name__}: {error}; correct it, or do "
            "without trust_remote_code"
        ) from error


def _is_of_repository(error: Exception) -> bool:
    """Whether the code of a repository raised an error, or called what did."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(_is_downloaded(frame.f_globals.get("__name__")) for frame in frames)


def _refusals() -> tuple[type[Exception], ...]:
    """What the libraries, and torch below them, raise of what they cannot use."""
    named: tuple[type[Exception], ...] = (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,  # RecursionError and NotImplementedError are some
        SafetensorError,
        SyntaxError,
        TypeError,
        ValueError,
    )
    # Of a field of another type; older releases of huggingface_hub have none.
    errors = sys.modules.get("huggingface_hub.errors")
    of_field = getattr(errors, "StrictDataclassError", None)
    return named if of_field is None else (*named, of_field)


def transformers_module(what: str) -> Any:
    """The package transformers, which `what` needs.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UnsupportedError(
            f"{what} is for transformers, which cannot be imported ({error}): pip install transformers"
        ) from error


def read_config(path: str, kwargs: dict[str, Any]) -> Any:
    """The config that is in `kwargs`, or that of a folder or hub id, of the `config_class` there or any.

    Raises:
        ConfigError: transformers cannot use it.
    """
    if kwargs.get("config") is not None:
        return kwargs["config"]
    transformers = transformers_module(f"'{path}'")
    options = hub_options(kwargs)
    for name in ("trust_remote_code", "code_revision"):
        if kwargs.get(name) is not None:
            options[name] = kwargs[name]
    with library_errors(path, CONFIG_ADVICE):
        return kwargs.get("config_class", transformers.AutoConfig).from_pretrained(path, **options)


def class_for(path: str, kwargs: dict[str, Any]) -> Any:
    """The class that the checkpoint's config names, or AutoModel where it names none.

    With trust_remote_code= it may be of the repository's own code, as for the Auto classes of transformers.

    Args:
        path: The folder or hub id.
        kwargs: Options of from_pretrained.

    Raises:
        ConfigError: The config names a class that cannot be had, or one class while its code has another.
    """
    transformers = transformers_module(f"'{path}'")
    config = read_config(path, kwargs)
    names = _architectures(config, path, kwargs)
    theirs = _classes_of_code(config)
    trusted = theirs if kwargs.get("trust_remote_code") else {}
    for name in names:
        if name in trusted:  # guard: code-of-repository
            return _from_repository(trusted[name], path, kwargs)
        found = getattr(transformers, str(name), None) or _registered(config, name)
        if not (inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel)):
            continue
        if trusted:  # an Auto class would take that one, by what it is asked for
            raise ConfigError(
                f"the config of '{path}' names {name}, and its code has {', '.join(trusted)}: give "
                "the class that you mean as model_class=, or leave trust_remote_code out"
            )
        return found
    if names or trusted:  # guard: class-not-known
        advice = "give the class as model_class= to tensorstream.from_pretrained"
        if theirs:
            advice = f"its code is the checkpoint's own: give trust_remote_code=True, or {advice}"
        shown = ", ".join(map(str, names)) or "no class"
        raise ConfigError(
            f"the config of '{path}' names {shown}, of which transformers {transformers.__version__} has "
            f"none; {advice}"
        )
    return transformers.AutoModel


def _architectures(config: Any, path: str, kwargs: dict[str, Any]) -> Any:
    """The names of classes in a config; where it was given and has none, in that of the folder."""
    names = getattr(config, "architectures", None)
    if names or kwargs.get("config") is None:
        return names or ()
    try:
        stored = read_config(path, {name: kwargs[name] for name in kwargs if name != "config"})
    except ConfigError:  # the one that was given may be there for that
        return ()
    if stored.model_type != config.model_type:
        return ()
    return getattr(stored, "architectures", None) or ()


def _classes_of_code(config: Any) -> dict[str, str]:
    """References to the classes of models in a repository's code, by their names."""
    listed = getattr(config, "auto_map", None)
    entries = listed.items() if isinstance(listed, dict) else ()
    return {
        reference.rpartition(".")[2]: reference
        for auto, reference in entries
        if auto.startswith("AutoModel") and isinstance(reference, str)
    }


def _from_repository(reference: str, path: str, kwargs: dict[str, Any]) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto import auto_factory

    with library_errors(path, "correct the code beside its config.json"):
        found = get_class_from_dynamic_module(
            reference, path, code_revision=kwargs.get("code_revision"), **hub_options(kwargs)
        )
    return auto_factory.add_generation_mixin_to_remote_model(found)


def _registered(config: Any, name: object) -> Any:
    """The class of that name that the user registered with an Auto class for configs of this type."""
    from transformers.models.auto import modeling_auto

    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None) if inspect.isclass(auto) else None
        found = getattr(mapping, "_extra_content", {}).get(type(config))
        if (
            inspect.isclass(found)
            and found.__name__ == name
            and not _is_downloaded(found.__module__)
        ):
            return found
    return None


def _is_downloaded(module: object) -> bool:
    """Whether a module is some repository's code: Auto classes register its classes for a type of config."""
    return isinstance(module, str) and module.startswith("transformers_modules.")
