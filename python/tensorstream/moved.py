"""What of a model stays beside its streamed weights, moved to the device and back."""

from __future__ import annotations

import torch
from torch import nn

from tensorstream.compute_device import move, moves_itself
from tensorstream.flattened import wrapper_of


class Moved:
    """Buffers, and parameters that cannot be streamed, on the device; and where they were."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._from: list[tuple[torch.Tensor, torch.device]] = []

    def bring(self, model: nn.Module) -> None:
        """Puts them on the device."""
        kept = [
            tensor
            for tensor in [*model.buffers(), *model.parameters()]
            if not hasattr(tensor, "_tensorstream_weight")
            and wrapper_of(tensor) is None
            and tensor.device != self._device
        ]
        for tensor in kept:
            self._from.append((tensor, tensor.device))
            move(tensor, self._device)

    def undo(self) -> None:
        """Puts them where they were."""
        for tensor, device in self._from:
            move(tensor, device)

    def put_back(self, model: nn.Module) -> None:
        """The same, and in RAM what came to the device since, but for what moves itself."""
        self.undo()
        for tensor in [*model.buffers(), *model.parameters()]:
            if tensor.device == self._device and not moves_itself(tensor):
                move(tensor, torch.device("cpu"))
