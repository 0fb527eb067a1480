"""The model classes of diffusers: their arguments made small, their inputs made from their signatures."""

from __future__ import annotations

import dataclasses
from typing import Any

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from model_matrix.diffusers_models.inputs import Maker
from model_matrix.diffusers_models.shrinking import small_arguments
from model_matrix.diffusers_models.special_types import COMPLETED, FIXED, INPUTS
from model_matrix.sources import Inputs


@dataclasses.dataclass(frozen=True)
class Level:
    """How far the arguments of a class are cut: by the rules, or not."""

    name: str
    cut: bool


class Diffusers:
    """A source: see `sources.Source`. Its types are classes."""

    package = "diffusers"
    document = "model_types_diffusers.md"
    subject = (
        "Each model class of diffusers {version}, with random weights and arguments made small"
    )
    levels = (Level("narrow", cut=True), Level("as it is", cut=False))

    def __init__(self) -> None:
        diffusers.logging.set_verbosity_error()

    def types(self) -> list[str]:
        return sorted(name for name in dir(diffusers) if _is_model(getattr(diffusers, name, None)))

    def classes(self, model_type: str) -> list[str]:
        return [model_type]

    def make(self, model_type: str, class_name: str, level: Level) -> nn.Module:
        chosen: Any = getattr(diffusers, class_name)
        fixed = FIXED.get(class_name, {})
        made: nn.Module = chosen(**(small_arguments(chosen, fixed) if level.cut else fixed))
        if class_name in COMPLETED:
            COMPLETED[class_name](made)
        return made

    def inputs(self, model_type: str, model: nn.Module) -> Inputs:
        return Maker(model, INPUTS.get(model_type, {}))


def _is_model(value: Any) -> bool:
    """Whether it is a class of models that diffusers has itself, and not one that holds several of them."""
    return (
        isinstance(value, type)
        and issubclass(value, ModelMixin)
        and value is not ModelMixin
        and "Multi" not in value.__name__
    )


SOURCE = Diffusers()
