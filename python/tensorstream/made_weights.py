"""What loading makes of weights, told without loading: which it casts, merges or transposes in RAM."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

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
        cast: What files have of those that are cast and no more: the types there, by name.
        frame_bytes: Of a packed checkpoint, about what the frames of the other parameters take, by name.
        files: The paths of its files of weights.
    """

    model: nn.Module
    made: set[str] = dataclasses.field(default_factory=set)
    cast: dict[str, str] = dataclasses.field(default_factory=dict)
    frame_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    files: list[str] = dataclasses.field(default_factory=list)

    def add(self, part: Described, name: str) -> None:
        """Takes over what is known of a part that the model has by that name."""
        self.made |= {f"{name}.{each}" for each in part.made}
        self.cast |= {f"{name}.{each}": dtype for each, dtype in part.cast.items()}
        self.frame_bytes |= {f"{name}.{each}": size for each, size in part.frame_bytes.items()}
        self.files += part.files

    def largest_file(self) -> str | None:
        """The largest file of weights; None where there is none."""
        return max(self.files, key=os.path.getsize, default=None)


def described(model: nn.Module, checkpoint: _native.Checkpoint, renamed: Renamed) -> Described:
    """What loading makes of a checkpoint's tensors in `model`.

    Args:
        model: On the meta device.
        checkpoint: What it is loaded from.
        renamed: The model's name for a tensor of the checkpoint; None where that is converted.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept: dict[int, _native.CheckpointTensor] = {}  # by the parameters' ids
    cast: dict[int, str] = {}
    for tensor in checkpoint.tensors:
        parameter = parameters.get(renamed(tensor.name) or "")
        if parameter is None:
            continue
        dtype = str(parameter.dtype).removeprefix("torch.")
        if list(parameter.shape) != list(tensor.torch_shape):
            continue
        if dtype == tensor.dtype:
            kept[id(parameter)] = tensor
        else:
            cast[id(parameter)] = tensor.dtype
    found = Described(model.eval(), files=list(checkpoint.files))
    readers: dict[int, _native.Reader] = {}
    for name, parameter in parameters.items():
        stored = kept.get(id(parameter))
        if stored is None:
            found.made.add(name)
            if id(parameter) in cast:
                found.cast[name] = cast[id(parameter)]
        elif checkpoint.packed:
            if stored.file not in readers:
                readers[stored.file] = _native.open_packed_reader(checkpoint.files[stored.file])
            reader = readers[stored.file]
            found.frame_bytes[name] = reader.frame_bytes(stored.offset_bytes, stored.size_bytes)
    return found


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


def info_of_transformers(
    model: nn.Module, checkpoint: _native.Checkpoint, dtype: torch.dtype
) -> dict[str, Any]:
    """What transformers would say of loading a checkpoint into `model`: it loads tensors without bytes.

    Nothing where a conversion fails, as it may for want of bytes.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    tensors = {
        stored.name: torch.empty(
            tuple(stored.torch_shape), dtype=getattr(torch, stored.dtype), device="meta"
        )
        for stored in checkpoint.tensors
    }
    into: Any = copy.deepcopy(model)
    options = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": "meta"},
        dtype=dtype,
        dtype_plan=into._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(into),
    )
    with _no_progress_bar():
        info, _ = convert_and_load_state_dict_in_model(into, tensors, options, None)
    if info.conversion_errors:
        return {}
    into.mark_tied_weights_as_initialized(info)
    into.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    into._adjust_missing_and_unexpected_keys(info)
    return info.to_dict()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def keep_types_of_transformers(model: nn.Module, dtype: torch.dtype) -> None:
    """Gives weights and saved buffers that transformers keeps in another type than `dtype` that type."""
    from transformers.core_model_loading import build_glob_alternation

    kept = model._get_dtype_plan(dtype)  # type: ignore[operator]
    if not kept:
        return
    pattern, by_group, _ = build_glob_alternation(list(kept))
    for name, tensor in model.state_dict(keep_vars=True).items():
        found = pattern.search(name)
        if found is not None and tensor.is_floating_point():
            tensor.data = tensor.data.to(kept[by_group[found.lastgroup]])
