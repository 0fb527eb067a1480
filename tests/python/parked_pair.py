"""A model with parked weights beside a plain twin, its weights from a file or from memory."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from conftest import assert_same, offload_tightly
from model_shapes import Stack, make_stack, row_ids
from tensorstream.proxy import ParkedParameter


@dataclasses.dataclass
class Pair:
    """The same model twice: plain, and offloaded with the smallest budget."""

    plain: Stack
    streamed: Stack

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The same weight of a block: the parked one first."""
        return self.streamed.blocks[1].up.weight, self.plain.blocks[1].up.weight

    def on_both(self, edit: Callable[[Stack], Any]) -> tuple[Any, Any]:
        """Runs `edit` on both; what it gave on the offloaded one comes first."""
        return edit(self.streamed), edit(self.plain)

    def check_forward(self, what: str = "forward") -> None:
        """Both give the same output, in two forwards: the second takes what was prefetched."""
        ids = row_ids()
        with torch.no_grad():
            expected = self.plain(ids)
            assert_same(self.streamed(ids), expected, f"{what}, first forward")
            assert_same(self.streamed(ids), expected, f"{what}, second forward")


def make_pair(source: str, folder: Path, **options: Any) -> Pair:
    """`source` is "file" or "memory"."""
    model = make_stack(3)
    plain = copy.deepcopy(model)
    options.setdefault("prefetch", "aggressive")  # writes then meet what was loaded ahead
    if source == "file":
        options["checkpoint"] = folder / "model.safetensors"
        save_file(model.state_dict(), options["checkpoint"])
    pair = Pair(plain, offload_tightly(model, **options))
    parked, _ = pair.weights
    assert isinstance(parked, ParkedParameter), "the weight under test is not streamed"
    return pair
