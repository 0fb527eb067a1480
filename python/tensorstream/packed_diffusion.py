"""Models of diffusers from packed checkpoints, as its from_pretrained makes them of plain ones.

It takes no tensors in the place of a file. So the model is made here, without memory for its weights, and
gets stored tensors: only what loading casts is decoded.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tensorstream import _native
from tensorstream.exceptions import UnsupportedError
from tensorstream.packed import StoredPlace, stored_tensors, take_out

# Options of from_pretrained that say nothing of a model whose files are packed.
_WITHOUT_MEANING = ("ignore_mismatched_sizes", "proxies", "trust_remote_code")


def load_packed_model(
    loader: Any,
    folder: str,
    checkpoint: _native.Checkpoint,
    dtype: torch.dtype | None,
    options: dict[str, Any],
) -> tuple[nn.Module, dict[str, Any], dict[int, StoredPlace]]:
    """A model of diffusers from a packed checkpoint.

    Args:
        loader: Its class.
        folder: With its config.
        checkpoint: The same, opened.
        dtype: Of its weights; None for what the class makes of them, float32.
        options: Others of from_pretrained: fields of the config.

    Returns:
        The model, in eval mode, whose parameters are on the meta device where they are as the files have
        them; what weights are missing or of another shape; and where the bytes of those parameters are, by
        their ids.

    Raises:
        UnsupportedError: An option needs plain files, or accelerate is not installed.
    """
    fields = {name: value for name, value in options.items() if name not in _WITHOUT_MEANING}
    _check_options(folder, fields)
    config, given = loader.load_config(folder, return_unused_kwargs=True, **fields)
    with _without_memory(folder, dtype):
        model: nn.Module = loader.from_config(config, **given)
    state = stored_tensors(checkpoint)
    if len(checkpoint.files) == 1:  # as diffusers has it: shards have the names of now
        model._fix_state_dict_keys_on_load(state)  # type: ignore[operator]
    info = _put(model, state, dtype)
    model.register_to_config(_name_or_path=folder)  # type: ignore[operator]
    model.eval()
    return model, info, take_out(model)


def _check_options(folder: str, options: dict[str, Any]) -> None:
    for name in ("variant", "parallel_config"):
        if options.pop(name, None) is not None:
            raise UnsupportedError(
                f"{name} cannot be used with '{folder}', which is packed: leave it out, and the weights that "
                "were packed are loaded; or make a plain one of it with tensorstream.unpack(source, target)"
            )


@contextlib.contextmanager
def _without_memory(folder: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Parameters that are made meanwhile are on the meta device; buffers have their values, in `dtype`."""
    try:
        accelerate = importlib.import_module("accelerate")
    except ImportError as error:
        raise UnsupportedError(
            f"'{folder}' is packed, and loading it needs accelerate: pip install accelerate"
        ) from error
    usual = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        with accelerate.init_empty_weights(include_buffers=False):
            yield
    finally:
        torch.set_default_dtype(usual)


def _put(
    model: nn.Module, state: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> dict[str, Any]:
    """Gives the model its weights, in the types that diffusers gives them; what it has none for."""
    wanted = model.state_dict()
    differing = []
    for name, stored in state.items():  # of several names of one weight the last one counts
        old = wanted.get(name)
        if old is None:
            continue
        if stored.shape != old.shape:
            differing.append(name)
            continue
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        value = stored.to(_type_of(model, name, stored, old, dtype))
        parameter = module._parameters.get(last)
        if parameter is None:
            module._buffers[last] = value
            continue
        made = nn.Parameter(value, parameter.requires_grad)
        kept = {key: each for key, each in vars(parameter).items() if key not in vars(made)}
        vars(made).update(kept)
        module._parameters[last] = made
    return {"missing_keys": wanted.keys() - state.keys(), "mismatched_keys": differing}


def _type_of(
    model: Any, name: str, value: torch.Tensor, old: torch.Tensor, dtype: torch.dtype | None
) -> torch.dtype:
    if dtype is None or not value.is_floating_point():
        return old.dtype
    return torch.float32 if is_kept_in_float32(model, name) else dtype


def is_kept_in_float32(model: Any, name: str) -> bool:
    """Whether a model of diffusers, or its class, has a weight in float32 whatever type is asked for."""
    kept = model._keep_in_fp32_modules or []
    parts = name.split(".")
    return any(each in parts for each in (kept if isinstance(kept, list) else [kept]))
