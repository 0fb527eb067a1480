"""The model types of the installed transformers, and the classes that its auto classes have for each."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any

import transformers
from transformers.models.auto import configuration_auto, modeling_auto

# The class that says most about a type comes first: a language model runs its head too.
_BY_PREFERENCE = """
    IMAGE_TEXT_TO_TEXT MULTIMODAL_LM CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ CTC PRETRAINING MASKED_LM
    IMAGE_CLASSIFICATION OBJECT_DETECTION UNIVERSAL_SEGMENTATION DEPTH_ESTIMATION AUDIO_CLASSIFICATION
""".split()


def model_types() -> list[str]:
    """Every model type, by name."""
    return sorted(configuration_auto.CONFIG_MAPPING_NAMES)


def config_class(model_type: str) -> Any:
    """The class of a type's configurations."""
    return transformers.CONFIG_MAPPING[model_type]


def class_names(model_type: str) -> list[str]:
    """The model classes of a type, those that the matrix prefers first; of a part of a model, its own."""
    tables = [f"MODEL_FOR_{task}_MAPPING_NAMES" for task in _BY_PREFERENCE]
    tables += ["MODEL_MAPPING_NAMES"]
    tables += [
        name for name in dir(modeling_auto) if re.fullmatch(r"MODEL_\w+_MAPPING_NAMES", name)
    ]
    found: dict[str, None] = {}
    for table in tables:
        names = getattr(modeling_auto, table).get(model_type, ())
        found.update(dict.fromkeys((names,) if isinstance(names, str) else names))
    return list(found) or _classes_of_config(model_type)


def _classes_of_config(model_type: str) -> list[str]:
    """The classes beside a type's configuration that are made of it."""
    config = config_class(model_type)
    return [
        name
        for module in _modeling_modules(model_type)
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, transformers.PreTrainedModel)
        and value.__module__ == module.__name__
        and _is_made_of(value, config)
        and "forward" in vars(value)
    ]


def _is_made_of(model: type[transformers.PreTrainedModel], config: type) -> bool:
    given = inspect.signature(model.__init__).parameters.get("config")
    named = None if given is None else given.annotation
    return model.config_class is config or named is config or named == config.__name__


def _modeling_modules(model_type: str) -> list[Any]:
    """The modules of a type's package that have models."""
    package = importlib.import_module(config_class(model_type).__module__.rpartition(".")[0])
    names = [found.name for found in pkgutil.iter_modules(package.__path__)]
    wanted = [name for name in names if name.startswith("modeling_")]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in wanted]


def model_class(model_type: str, name: str) -> Any:
    """A model class by its name."""
    if hasattr(transformers, name):
        return getattr(transformers, name)
    return next(
        getattr(module, name) for module in _modeling_modules(model_type) if hasattr(module, name)
    )
