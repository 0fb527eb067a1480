"""The model families of timm: a type is a module of timm.models; the smallest models of it are tried."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from model_matrix.image_models import LEVELS, AsItIs, ImageInputs, smallest, torchvision
from model_matrix.sources import Inputs


class Timm:
    """A source: see `sources.Source`."""

    package = "timm"
    document = "model_types_timm.md"
    subject = """
Of each module of timm {version} the first of three small models that runs, with random weights
""".strip()
    levels = LEVELS

    def __init__(self) -> None:
        torchvision()
        self._timm = importlib.import_module("timm")

    def types(self) -> list[str]:
        return sorted(self._timm.list_modules())

    def classes(self, model_type: str) -> list[str]:
        return smallest(self._timm.list_models(module=model_type))

    def make(self, model_type: str, class_name: str, level: AsItIs) -> nn.Module:
        made: nn.Module = self._timm.create_model(class_name, pretrained=False, num_classes=10)
        return made

    def inputs(self, model_type: str, model: nn.Module) -> Inputs:
        config: Any = model.pretrained_cfg
        return ImageInputs(model.forward, [tuple(config["input_size"])])


SOURCE = Timm()
