"""Where models come from: what the matrix asks of a library of models, and the libraries by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import nn

Arguments = dict[str, Any]


class Size(Protocol):
    """One way to make the models of a library small."""

    @property
    def name(self) -> str:
        """As the rows say it."""


class Inputs(Protocol):
    """What a model's forward takes."""

    def attempts(self) -> Iterator[Arguments]:
        """Sets of arguments to try, in this order."""

    def repaired(self, arguments: Arguments, error: Exception) -> Arguments | None:
        """Other arguments, where what the forward raised says what was wrong with these."""


class Source(Protocol):
    """A library of models.

    Attributes:
        package: The distribution that has it, whose version the table says.
        document: The name of its document in docs/.
        subject: How its document begins: what is tried of it, and how small.
        levels: The ways to make a model small, tried in this order.
    """

    package: str
    document: str
    subject: str
    levels: Sequence[Any]

    def types(self) -> list[str]:
        """Every model type, by name."""

    def classes(self, model_type: str) -> list[str]:
        """The model classes of a type, in the order in which they are tried."""

    def make(self, model_type: str, class_name: str, level: Any) -> nn.Module:
        """A model with random weights, on the current default device."""

    def inputs(self, model_type: str, model: nn.Module) -> Inputs:
        """What the forward of such a model takes."""


_MODULES = {
    "transformers": "model_matrix.transformers_models",
    "diffusers": "model_matrix.diffusers_models",
    "timm": "model_matrix.timm_models",
    "torchvision": "model_matrix.torchvision_models",
}
NAMES = tuple(_MODULES)


def source_named(name: str) -> Source:
    """A library of `NAMES`, which is imported for it."""
    found: Source = importlib.import_module(_MODULES[name]).SOURCE
    return found
