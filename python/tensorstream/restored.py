"""Parameters of a model that is plain again: each has memory of its own, in RAM."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch

from tensorstream.compute_device import move_gradient
from tensorstream.forms import copy_at, line_offset_of
from tensorstream.plain_objects import make_plain_class
from tensorstream.settled import Resident, has_left
from tensorstream.tracing import version_of
from tensorstream.weight import Weight

_RAM = torch.device("cpu")


def values_in_ram(
    weights: Iterable[Weight],
    residents: Iterable[Resident],
    lock: threading.RLock,
    is_host: bool,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The parameters that are the engine's, with the values that they are to have. Nothing is changed."""
    values: list[tuple[torch.Tensor, torch.Tensor]] = []
    for weight in weights:
        mark = getattr(weight.parameter, "_tensorstream_weight", None)
        if mark is weight:  # or it is plain already, or another engine's
            with lock:
                values.append((weight.parameter, weight.truth() if is_host else weight.on_host()))
    for resident in residents:
        parameter = resident.member.parameter
        if hasattr(parameter, "_tensorstream_weight"):  # guard: of-another-engine
            continue
        value = parameter.data
        is_others = is_host and (has_left(resident) or resident.is_held())
        if is_others:  # guard: held-when-restored
            values.append((parameter, value))  # who has memory of the engine's keeps that
            continue
        values.append(
            (parameter, copy_at(value, line_offset_of(value)) if is_host else value.cpu())
        )
    return values


def make_plain(values: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Puts parameters on the values, in RAM, and their gradients too."""
    for parameter, value in values:
        make_plain_class(parameter)
        was_elsewhere = parameter.device != _RAM
        with torch.inference_mode(version_of(parameter) is None):
            parameter.data = value.clone() if torch.is_inference_mode_enabled() else value
        if was_elsewhere:  # or another thread's zero_grad() may be at it
            move_gradient(parameter, _RAM)
