"""Models of GGUF files, which transformers makes plain: whole in host memory, as it would without us."""

from __future__ import annotations

import importlib.util
import os
import struct
from typing import Any

from tensorstream.exceptions import ConfigError, FormatError, UnsupportedError
from tensorstream.hub import check_complete, check_regular, is_gguf, model_folder
from tensorstream.model_class import OPTION_ADVICE, transformers_module

_MAGIC = b"GGUF"
_OF_DIFFUSERS = (
    "a model of diffusers is loaded from GGUF by its class, Class.from_single_file(file, "
    "quantization_config=GGUFQuantizationConfig(...)); give it to tensorstream.offload()"
)


def named_file(path: str, kwargs: dict[str, Any]) -> str | None:
    """The GGUF file that from_pretrained is to load, or None: by its own path, or by gguf_file=.

    Raises:
        ConfigError: There is no such file.
        FormatError: It is not GGUF.
    """
    name = kwargs.pop("gguf_file", None)
    if name is None and not is_gguf(path):
        return None
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"gguf_file is {name!r}; give the name of a file")
    found = path if name is None else os.path.join(model_folder(path, kwargs), name)
    for option in ("revision", "cache_dir", "subfolder"):  # they led to the file
        kwargs.pop(option, None)
    check_regular(found)
    try:
        with open(found, "rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ConfigError(f"'{found}' cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise FormatError(f"'{found}' does not begin with {_MAGIC.decode()}: it is no GGUF file")
    if not found.endswith(".gguf"):
        raise ConfigError(
            f"'{found}' cannot be loaded: transformers takes GGUF files by names that end in .gguf; rename "
            "it, or make a link that does"
        )
    return found


def load(file: str, model_class: Any, kwargs: dict[str, Any]) -> Any:
    """The model of a GGUF file, its weights dequantised in host memory.

    Args:
        file: Its path.
        model_class: A class with from_pretrained; None takes AutoModelForCausalLM.
        kwargs: For transformers.

    Raises:
        ConfigError: Weights are missing.
        FormatError: The file breaks its format.
        UnsupportedError: The package gguf is missing, or it is no model of transformers that can be read so.
    """
    if hasattr(model_class, "from_single_file"):  # guard: gguf-of-diffusers
        raise UnsupportedError(f"'{file}' is a GGUF file: {_OF_DIFFUSERS}")
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedError(
            f"'{file}' is a GGUF file, which transformers reads by the package gguf: pip install gguf"
        )
    transformers = transformers_module(f"'{file}'")
    loader = model_class or transformers.AutoModelForCausalLM
    folder, name = os.path.split(file)
    try:
        model, info = loader.from_pretrained(
            folder or ".", gguf_file=name, output_loading_info=True, **kwargs
        )
    except TypeError as error:  # an option that the model does not take, for one
        raise ConfigError(f"'{file}' cannot be loaded: {error}; {OPTION_ADVICE}") from error
    except (ValueError, IndexError, KeyError, OSError, OverflowError, struct.error) as error:
        if "not supported" in str(error):
            raise UnsupportedError(f"'{file}': {error}; {_OF_DIFFUSERS}") from error
        raise FormatError(f"'{file}' cannot be read as GGUF: {error}") from error
    check_complete(file, info)
    return model
