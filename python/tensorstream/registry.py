"""Which orchestrator runs which model."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import nn

from tensorstream.exceptions import ConfigError

if TYPE_CHECKING:
    from tensorstream.orchestrator import Orchestrator

# By the model that was given to offload(): lets `stats(model)` find it without a mark on the model.
_by_model: weakref.WeakKeyDictionary[nn.Module, Orchestrator] = weakref.WeakKeyDictionary()
# Those too whose model is gone: the hooks on what is left of it keep them.
_alive: weakref.WeakSet[Orchestrator] = weakref.WeakSet()


def register(model: nn.Module, orchestrator: Orchestrator) -> None:
    """Says that `orchestrator` runs `model`, and keeps it as long as the model is kept."""
    _by_model[model] = orchestrator
    _alive.add(orchestrator)


def forget(orchestrator: Orchestrator) -> None:
    """Says that it runs no model any more."""
    for model in [model for model, found in _by_model.items() if found is orchestrator]:
        del _by_model[model]
    _alive.discard(orchestrator)


def is_offloaded(model: nn.Module) -> bool:
    """Whether `model` itself was given to offload()."""
    return model in _by_model


def orchestrators() -> list[Orchestrator]:
    """All that run a model, or what is left of one."""
    return list(_alive)


def orchestrator_of(model: nn.Module) -> Orchestrator:
    """The orchestrator of an offloaded model.

    Libraries of adapters wrap models and unwrap them: so also that of a model which holds the offloaded
    one, or has every streamed weight that is left of it.

    Raises:
        ConfigError: The model is not offloaded, is a part of one, or holds several.
    """
    found = _by_model.get(model) if isinstance(model, nn.Module) else None
    if found is not None:
        return found
    what = f"this {type(model).__name__}"
    related = _related(model) if isinstance(model, nn.Module) else []
    if len(related) == 1:
        return related[0]
    if related:
        raise ConfigError(f"{what} holds {len(related)} offloaded models; call with one of them")
    for root in list(_by_model):
        if any(model is part for part in root.modules()):
            raise ConfigError(
                f"{what} is a part of an offloaded {type(root).__name__}; call with that one"
            )
    raise ConfigError(f"{what} is not offloaded; call tensorstream.offload(model) first")


def _related(model: nn.Module) -> list[Orchestrator]:
    parts = {id(part) for part in model.modules()}
    weights = {id(parameter) for parameter in model.parameters()}
    roots = {id(found): root for root, found in _by_model.items()}
    return [found for found in _alive if _stands_for(roots.get(id(found)), found, parts, weights)]


def _stands_for(
    root: nn.Module | None, orchestrator: Orchestrator, parts: set[int], weights: set[int]
) -> bool:
    """Whether a model of these parts and weights has all that is left of what was offloaded."""
    streamed = orchestrator.streamed_ids()
    if root is None:
        return not streamed.isdisjoint(weights)
    left = streamed.intersection(id(parameter) for parameter in root.parameters())
    return id(root) in parts or (bool(left) and left <= weights)
