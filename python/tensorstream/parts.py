"""What is offloaded as one: a model, or the models of a pipeline."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from tensorstream.exceptions import ConfigError


class Parts(nn.ModuleDict):
    """The models of a pipeline by their names, as one module, which is never called."""

    def __init__(self, models: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self._modules.update(models)  # a name may be one that ModuleDict has a method for


def check_is_no_proxy(model: object) -> None:
    """Raises ConfigError where a model is given by a weak proxy, which passes for a module and is none."""
    if isinstance(model, weakref.ProxyTypes):
        raise ConfigError(
            "a weakref.proxy stands in the place of a model: give the model itself, or what a weakref.ref "
            "of it gives"
        )


def parts_of(model: object) -> Parts | None:
    """The models of a pipeline, in the order in which it uses them; None for what is no pipeline.

    A pipeline is any object with `components`, a mapping, as those of diffusers have it; what of them is
    None, a scheduler or a tokenizer is no part.
    """
    components: Any = None if isinstance(model, nn.Module) else getattr(model, "components", None)
    if not isinstance(components, Mapping):
        return None
    return ordered_parts(components, getattr(model, "model_cpu_offload_seq", None))


def as_module(model: Any) -> nn.Module:
    """A model as it is; the models of a pipeline as one module."""
    parts = parts_of(model)
    return model if parts is None else parts


def ordered_parts(components: Mapping[str, Any], sequence: str | None) -> Parts:
    """The models among `components`; those that `sequence` names ("text_encoder->unet") come first."""
    names = [name for name in (sequence or "").split("->") if name in components]
    names += [name for name in components if name not in names]
    return Parts(
        (name, components[name]) for name in names if isinstance(components[name], nn.Module)
    )


def is_container(module: nn.Module, *, top: bool) -> bool:
    """Whether nobody need call a module to use what is in it: a list, or a whole autoencoder.

    Args:
        module: Any module.
        top: Whether it is what the user calls: a model, or a part of a pipeline.
    """
    return isinstance(module, nn.ModuleList | nn.ModuleDict) or (top and _has_two_entries(module))


def _has_two_entries(module: nn.Module) -> bool:
    """Whether diffusers calls `encode` or `decode` of a module, and not its forward."""
    theirs = any(base.__module__.startswith("diffusers.") for base in type(module).__mro__)
    return theirs and hasattr(module, "encode") and hasattr(module, "decode")


def top_modules(model: nn.Module) -> list[nn.Module]:
    """The model, or the parts of a pipeline."""
    return list(model.children()) if isinstance(model, Parts) else [model]


def entry_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that are called from outside of a model, or of the parts of a pipeline."""
    for module in top_modules(model):
        yield module
        if _has_two_entries(module):
            yield from module.children()
