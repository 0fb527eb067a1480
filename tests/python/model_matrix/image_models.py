"""What the libraries of image models have in common: types with several sizes, and one image as input."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from model_matrix.sources import Arguments

# Of the models of a family those come first whose names say that they are small.
_SMALL = "test atto femto pico nano micro xxs tiny _xs mini _s_ small lite".split()
_MOST_MODELS = 3


@dataclasses.dataclass(frozen=True)
class AsItIs:
    """These models have no configurations to cut."""

    name: str = "as it is"


LEVELS = (AsItIs(),)


def smallest(names: Sequence[str]) -> list[str]:
    """Some models of a family, those first that seem to be the smallest by their names."""

    def rank(name: str) -> tuple[int, int, str]:
        found = [place for place, word in enumerate(_SMALL) if word in f"{name}_"]
        return (min(found, default=len(_SMALL)), len(name), name)

    return sorted(names, key=rank)[:_MOST_MODELS]


def torchvision() -> Any:
    """The package, imported beside any torch.

    Its wheel on PyPI is built for a torch with CUDA. Beside another one its own operators are not loaded, and
    then its import fails for the names of these two.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _libraries.append(library)
    return importlib.import_module("torchvision")


_libraries: list[torch.library.Library] = []  # an operator is there as long as its library


class ImageInputs:
    """One image, or one short video, for each argument that a forward asks for."""

    def __init__(self, forward: Callable[..., Any], shapes: Sequence[tuple[int, ...]]) -> None:
        parameters = inspect.signature(forward).parameters.values()
        self._names = [each.name for each in parameters if each.default is each.empty]
        self._shapes = shapes

    def attempts(self) -> Iterator[Arguments]:
        for shape in self._shapes:
            generator = torch.Generator().manual_seed(7)
            yield {name: torch.randn((1, *shape), generator=generator) for name in self._names}

    def repaired(self, arguments: Arguments, error: Exception) -> Arguments | None:
        return None
