"""A model whose order of execution is given at each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from model_shapes import Block

X = torch.randn(3, 256, generator=torch.Generator().manual_seed(2))


class Flexible(nn.Module):
    """Runs its blocks in the order that `order` says; `act` runs before each."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.shared = self.blocks[2]
        self.order: Sequence[int] = range(blocks)
        self.act: Callable[[int], None] = lambda position: None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for position, index in enumerate(self.order):
            self.act(position)
            x = self.blocks[index](x)
        return x

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """An entry point that is not forward, and uses a weight without its module's forward."""
        x = self.blocks[1](x) + nn.functional.linear(x, self.blocks[4].up.weight)
        return self.shared(x)

    def recurse(self, x: torch.Tensor, depth: int) -> torch.Tensor:
        """Forward inside forward."""
        if depth == 0:
            return self.blocks[0](x)
        return self.blocks[depth](self.recurse(x, depth - 1)) + self(x)


def make_flexible(blocks: int = 6) -> Flexible:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        return Flexible(blocks)
