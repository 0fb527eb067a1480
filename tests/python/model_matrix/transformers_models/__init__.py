"""The model types of transformers: small configurations of them, and inputs by their signatures."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from model_matrix.sources import Inputs
from model_matrix.transformers_models import catalogue
from model_matrix.transformers_models.inputs import Maker
from model_matrix.transformers_models.shrinking import LEVELS, Level
from model_matrix.transformers_models.special_types import small_config


class Transformers:
    """A source: see `sources.Source`."""

    package = "transformers"
    document = "model_types.md"
    subject = "Each model type of transformers {version}, with random weights and a configuration made small"
    levels = LEVELS

    def __init__(self) -> None:
        transformers.logging.set_verbosity_error()

    def types(self) -> list[str]:
        return catalogue.model_types()

    def classes(self, model_type: str) -> list[str]:
        return catalogue.class_names(model_type)

    def make(self, model_type: str, class_name: str, level: Level) -> nn.Module:
        chosen: Any = catalogue.model_class(model_type, class_name)
        config = small_config(model_type, level)
        made: nn.Module = (
            chosen._from_config(config) if hasattr(chosen, "_from_config") else chosen(config)
        )
        return made

    def inputs(self, model_type: str, model: nn.Module) -> Inputs:
        return Maker(model)


SOURCE = Transformers()
