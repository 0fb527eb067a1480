"""The model families of torchvision: a type is a module of it; the smallest models of it are tried."""

from __future__ import annotations

import inspect

from torch import nn

from model_matrix.image_models import LEVELS, AsItIs, ImageInputs, smallest, torchvision
from model_matrix.sources import Inputs

# Of images and of videos.
_SHAPES = ((3, 224, 224), (3, 16, 112, 112), (3, 16, 224, 224), (3, 299, 299))


class Torchvision:
    """A source: see `sources.Source`."""

    package = "torchvision"
    document = "model_types_torchvision.md"
    subject = """
Of each module of torchvision {version} the first of three small models that runs, with random weights
""".strip()
    levels = LEVELS

    def __init__(self) -> None:
        self._models = torchvision().models

    def types(self) -> list[str]:
        return sorted({self._family(name) for name in self._models.list_models()})

    def classes(self, model_type: str) -> list[str]:
        names = self._models.list_models()
        return smallest([name for name in names if self._family(name) == model_type])

    def make(self, model_type: str, class_name: str, level: AsItIs) -> nn.Module:
        build = self._models.get_model_builder(class_name)
        backbone = (
            {"weights_backbone": None}
            if "weights_backbone" in str(inspect.signature(build))
            else {}
        )
        made: nn.Module = build(weights=None, **backbone)
        return made

    def inputs(self, model_type: str, model: nn.Module) -> Inputs:
        return ImageInputs(model.forward, _SHAPES)

    def _family(self, name: str) -> str:
        module: str = self._models.get_model_builder(name).__module__
        return module.removeprefix("torchvision.models.")


SOURCE = Torchvision()
