"""Which weights loading makes anew in RAM, cast, merged or transposed, told without loading."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import nn

from tensorstream import _native

Renamed = Callable[[str], str | None]


@dataclasses.dataclass
class Described:
    """A model as a path describes it.

    Attributes:
        model: Its structure, on the meta device, in the types that loading gives it.
        made: Names of the parameters whose bytes are in no file as they are: RAM owns them once loaded.
    """

    model: nn.Module
    made: set[str] = dataclasses.field(default_factory=set)


def made_names(
    model: nn.Module, stored: Iterable[_native.CheckpointTensor], renamed: Renamed
) -> set[str]:
    """Names of the parameters of `model` that no tensor of a checkpoint is, byte for byte.

    Args:
        model: On the meta device.
        stored: The checkpoint's tensors.
        renamed: The model's name for one of the checkpoint's; None where that is converted.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept: set[int] = set()
    for tensor in stored:
        parameter = parameters.get(renamed(tensor.name) or "")
        if parameter is None:
            continue
        dtype = str(parameter.dtype).removeprefix("torch.")
        if (dtype, list(parameter.shape)) == (tensor.dtype, list(tensor.torch_shape)):
            kept.add(id(parameter))
    return {name for name, parameter in parameters.items() if id(parameter) not in kept}


def renamed_by_transformers(model: nn.Module) -> Renamed:
    """What transformers calls a tensor of a checkpoint in `model`: its rules, which only transformers knows.

    A tensor that a conversion takes up is one that loading makes anew, even if it gives a view.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix, names = model.base_model_prefix, model.state_dict()

    def renamed(name: str) -> str | None:
        found, converted = rename_source_key(name, renamings, converters, prefix, names)
        if found not in names and name in names:
            found, converted = rename_source_key(name, [], [], prefix, names)
        return None if converted is not None else str(found)

    return renamed


def keep_types_of_transformers(model: nn.Module, dtype: torch.dtype) -> None:
    """Gives parameters that transformers keeps in another type than `dtype` that type."""
    from transformers.core_model_loading import build_glob_alternation

    kept = model._get_dtype_plan(dtype)  # type: ignore[operator]
    if not kept:
        return
    pattern, by_group, _ = build_glob_alternation(list(kept))
    for name, parameter in model.named_parameters():
        found = pattern.search(name)
        if found is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(kept[by_group[found.lastgroup]])
