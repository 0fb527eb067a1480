"""Models that tests pack, and what has to be the same of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import tensorstream as ts
from conftest import same_bytes, save


def packed_of(made: Any, folder: Path, shard: str = "1MB", level: int = 4) -> tuple[Path, Path]:
    source = save(made, folder / "source", shard=shard)
    ts.pack(source, folder / "packed", level=level)
    return source, folder / "packed"


def budgets_of(path: Path) -> tuple[int, int]:
    estimate = ts.estimate_memory(path)
    return estimate.smallest_budget_bytes, estimate.everything_fits_bytes


def assert_same_model(model: nn.Module, plain: nn.Module) -> None:
    """Everything that is neither weights nor hooks, and then the weights."""
    assert type(model) is type(plain)
    assert not model.training
    left, right = dict(model.named_buffers()), dict(plain.named_buffers())
    assert left.keys() == right.keys()
    for name, buffer in left.items():
        assert same_bytes(buffer, right[name]), name
        assert type(buffer) is torch.Tensor
    left, right = dict(model.named_parameters()), dict(plain.named_parameters())
    assert left.keys() == right.keys()  # ties too
    for name, parameter in left.items():
        assert parameter.requires_grad == right[name].requires_grad
        assert same_bytes(parameter, right[name]), name
    configs = [each.config.to_dict() for each in (model, plain)]
    for config in configs:  # what was given, and it is not the same folder
        assert Path(config.pop("_name_or_path")).is_dir()
    assert configs[0] == configs[1]
    generation = getattr(model, "generation_config", None)
    assert (generation is None) == (getattr(plain, "generation_config", None) is None)
    if generation is not None:
        assert generation.to_dict() == plain.generation_config.to_dict()
