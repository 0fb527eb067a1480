"""Which orchestrator runs which model."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from tensorstream import _native
from tensorstream.exceptions import ConfigError
from tensorstream.parts import as_module, check_is_no_proxy, parts_of, top_modules

if TYPE_CHECKING:
    from tensorstream.orchestrator import Orchestrator

# By the model or pipeline that was given to offload(): lets `stats(model)` find it without a mark there.
_by_model: weakref.WeakKeyDictionary[Any, Orchestrator] = weakref.WeakKeyDictionary()
# The models of offloaded pipelines, and who runs them.
_by_part: weakref.WeakKeyDictionary[nn.Module, Orchestrator] = weakref.WeakKeyDictionary()
# Those too whose model is gone: the hooks on what is left of it keep them.
_alive: weakref.WeakSet[Orchestrator] = weakref.WeakSet()


# Modules that a thread is offloading, by id.
_claimed: set[int] = set()
# One, of all of these. What a collection runs may offload models, on a thread that has it.
_locks = [threading.RLock()]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with _locks[0]:
        yield


@contextlib.contextmanager
def claimed(model: Any) -> Iterator[None]:
    """Within it no other thread offloads a model or pipeline, or what it shares a part with.

    Raises:
        ConfigError: One is doing so, or it is offloaded already.
    """
    ours = {id(part) for part in as_module(model).modules()}
    with _locked():
        check_not_offloaded(model)
        if not _claimed.isdisjoint(ours):  # guard: offloaded-by-another
            raise ConfigError("another thread is offloading this model, or a part of it")
        _claimed.update(ours)
    try:
        yield
    finally:
        with _locked():
            _claimed.difference_update(ours)


def register(model: Any, orchestrator: Orchestrator) -> None:
    """Says that `orchestrator` runs a model or pipeline, and keeps it as long as that is kept."""
    module = as_module(model)
    parts = [] if module is model else top_modules(module)
    with _locked():
        _by_model[model] = orchestrator
        _by_part.update((part, orchestrator) for part in parts)
        _alive.add(orchestrator)


def forget(orchestrator: Orchestrator) -> None:
    """Says that it runs no model any more."""
    with _locked():
        for known in (_by_model, _by_part):
            for model in [model for model, found in known.items() if found is orchestrator]:
                del known[model]
        _alive.discard(orchestrator)


def check_not_offloaded(model: Any) -> None:
    """Checks a model or pipeline that is given to offload().

    Raises:
        ConfigError: It is offloaded, or one of its parts is.
    """
    if model in _by_model:
        raise ConfigError("this model is offloaded already; call tensorstream.restore(model) first")
    tops = set(top_modules(as_module(model)))
    for part in as_module(model).modules():
        if part in _by_model or (part in tops and part in _by_part):  # guard: offloaded-part
            raise ConfigError(
                f"this {type(part).__name__} is offloaded already, by itself or with a pipeline; call "
                "tensorstream.restore() on what was given to offload() first"
            )


def orchestrators() -> list[Orchestrator]:
    """All that run a model, or what is left of one."""
    with _locked():
        return list(_alive)


def _renew_locks() -> None:
    """In a forked child: threads of the parent may have held locks, or have been offloading."""
    _locks[0] = threading.RLock()
    _claimed.clear()
    for orchestrator in orchestrators():
        orchestrator.renew_locks()


os.register_at_fork(after_in_child=_renew_locks)
atexit.register(_native.keep_waiting_threads)  # guard: waits-for-good


def orchestrator_of(model: Any) -> Orchestrator:
    """The orchestrator of an offloaded model or pipeline.

    Libraries of adapters wrap models and unwrap them: so also that of a model which holds the offloaded
    one, or has every streamed weight that is left of it.

    Raises:
        ConfigError: It is not offloaded, is a part of what is, or holds several that are.
    """
    check_is_no_proxy(model)
    what = f"this {type(model).__name__}"
    is_pipeline = parts_of(model) is not None
    if not is_pipeline and not isinstance(model, nn.Module):
        raise ConfigError(f"{what} is not offloaded; call tensorstream.offload(model) first")
    found = _by_model.get(model)
    if found is not None:
        return found
    module = as_module(model)
    related = _related(module)
    if len(related) == 1:
        return related[0]
    if related:
        raise ConfigError(f"{what} holds {len(related)} offloaded models; call with one of them")
    own = {id(part) for part in (module.modules() if is_pipeline else [module])}
    for root in _roots().values():
        if any(id(part) in own for part in as_module(root).modules()):
            is_one = "has parts of" if is_pipeline else "is a part of"
            raise ConfigError(
                f"{what} {is_one} an offloaded {type(root).__name__}; call with that one"
            )
    raise ConfigError(f"{what} is not offloaded; call tensorstream.offload(model) first")


def _related(model: nn.Module) -> list[Orchestrator]:
    parts = {id(part) for part in model.modules()}
    weights = {id(parameter) for parameter in model.parameters()}
    roots = _roots()
    return [
        found
        for found in orchestrators()
        if _stands_for(roots.get(id(found)), found, parts, weights)
    ]


def _roots() -> dict[int, Any]:
    """What was given to offload(), by the ids of who runs it."""
    with _locked():
        return {id(found): root for root, found in _by_model.items()}


def _stands_for(root: Any, orchestrator: Orchestrator, parts: set[int], weights: set[int]) -> bool:
    """Whether a model of these parts and weights has all that is left of what was offloaded."""
    known = orchestrator.known_ids()
    if root is None:
        return not known.isdisjoint(weights)
    module = as_module(root)
    left = known.intersection(id(parameter) for parameter in module.parameters())
    return id(module) in parts or (bool(left) and left <= weights)
