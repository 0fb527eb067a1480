"""Streamed groups while their weights are lent, and views of them that outlive the lease."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tensorstream.proxy import ParkedParameter
from tensorstream.weight import Weight, storage_users


class LentGroup:
    """One group that is leased at each use: its weights and their views on its place."""

    def __init__(self, group: int, weights: list[Weight]) -> None:
        self.group = group
        self.weights = weights
        self.place_number = 0  # of the place that the views are on; 0 for none
        self.views: list[torch.Tensor] = []
        self.storages: list[torch.UntypedStorage] = []
        self.addresses: dict[int, Weight] = {}
        self.versions = [0] * len(weights)
        self.depth = 0
        self.hooked = False
        self._users: list[int] = []

    def move(self, place_number: int, places: Iterable[torch.Tensor]) -> None:
        """Makes views on a new place: `places` are uint8 (size_bytes,) each, and nobody else's."""
        weights = self.weights
        self.place_number = place_number
        with torch.inference_mode(False), torch.no_grad():  # views without versions hide writes
            self.views = [
                weight.view_of(place) for weight, place in zip(weights, places, strict=True)
            ]
        self.storages = [view.untyped_storage() for view in self.views]
        self.addresses = {
            storage.data_ptr(): weight
            for storage, weight in zip(self.storages, weights, strict=True)
        }
        # Holders of the views' storages when nobody else has one.
        self._users = [storage_users(storage) for storage in self.storages]

    def lend(self) -> None:
        """Makes the group's parameters usable ones on the arena."""
        for index, (weight, view) in enumerate(zip(self.weights, self.views, strict=True)):
            weight.lend(view)
            self.versions[index] = weight.parameter._version

    def park(self) -> list[tuple[Weight, torch.Tensor]]:
        """Parks the weights; those that were written to while they were lent, with their bytes."""
        with torch.inference_mode(False), torch.no_grad():
            written = [
                (weight, torch.clone(weight.parameter.detach()))
                for weight, view, version in zip(
                    self.weights, self.views, self.versions, strict=True
                )
                if weight.parameter._version != version
                or weight.parameter.data_ptr() != view.data_ptr()
            ]
        for weight in self.weights:
            weight.park()
        return written

    def escaped(self) -> list[int]:
        """Positions of weights of whose bytes in the arena somebody holds a view since the lease."""
        return [
            index
            for index, storage in enumerate(self.storages)
            if storage_users(storage) > self._users[index]
        ]

    def kept(self, returned: list[torch.Tensor]) -> str | None:
        """A weight of which somebody holds another view than those that the forward returned."""
        held = {id(view): view for view in returned}
        held.update({id(view._base): view._base for view in returned if view._base is not None})
        addresses = [view.untyped_storage().data_ptr() for view in held.values()]
        for index in self.escaped():
            storage = self.storages[index]
            known = addresses.count(storage.data_ptr())
            if storage_users(storage) > self._users[index] + known:
                return self.weights[index].name
        return None


def without_views(output: Any, places: Container[int], views: list[torch.Tensor]) -> Any:
    """`output` with clones in place of tensors in `places`; containers keep their types.

    What was replaced is appended to `views`.
    """

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, ParkedParameter):
            return leaf
        if torch._C._functorch.is_functorch_wrapped_tensor(leaf):
            return leaf  # has no storage to look at; whether it keeps a view is checked by count
        if leaf.layout is not torch.strided or leaf.untyped_storage().data_ptr() not in places:
            return leaf
        views.append(leaf)
        return leaf.clone()

    if isinstance(output, dict):
        for key, value in output.items():
            output[key] = without_views(value, places, views)
        return output
    if isinstance(output, list):
        output[:] = [without_views(value, places, views) for value in output]
        return output
    return pytree.tree_map(own, output)
