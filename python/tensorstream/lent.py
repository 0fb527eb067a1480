"""Streamed groups while their weights are lent, and views of them that outlive the lease."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tensorstream import _native
from tensorstream.exceptions import UnsupportedError
from tensorstream.proxy import LentParameter, ParkedParameter
from tensorstream.weight import Weight, storage_users

_switch = _native.ParameterSwitch(
    LentParameter,
    ParkedParameter,
    data=torch._C.TensorBase.data,
    version=torch._C.TensorBase._version,
    mark="_tensorstream_weight",
    use_count=torch._C._storage_Use_Count,
)


class LentGroup:
    """One group that is leased at each use: its weights and their views on its place.

    Between uses parameters are parked without bytes, for others share the place; where the group has
    its place for itself they are parked on it, which costs less.
    """

    def __init__(self, group: int, weights: list[Weight]) -> None:
        self.group = group
        self.weights = weights
        self.place_number = 0  # of the place that the views are on; 0 for none
        self.views: list[torch.Tensor] = []
        self.storages: list[torch.UntypedStorage] = []
        self.addresses: dict[int, Weight] = {}
        self.depth = 0
        self.hooked = False
        self.stays = False  # on its place between uses
        self._is_on_place = False
        self._parameters = [weight.parameter for weight in weights]
        self._poisons = [weight.poison for weight in weights]
        # Of the parameters on their views, when they were last parked or moved there.
        self._versions: list[int] = []
        # Of the views' storages, and how many holders each has when nobody else has one.
        self._handles: list[int] = []
        self._users: list[int] = []

    def move(self, place_number: int, places: Iterable[torch.Tensor], stays: bool) -> None:
        """Makes views on a new place: `places` are uint8 (size_bytes,) each, and nobody else's.

        `stays` says that no other group shares it.
        """
        self.leave_place()
        weights = self.weights
        self.place_number = place_number
        self.stays = stays
        with torch.inference_mode(False), torch.no_grad():  # views without versions hide writes
            self.views = [
                weight.view_of(place) for weight, place in zip(weights, places, strict=True)
            ]
        self.storages = [view.untyped_storage() for view in self.views]
        self.addresses = {
            storage.data_ptr(): weight
            for storage, weight in zip(self.storages, weights, strict=True)
        }
        self._versions = []
        self._handles = [storage._cdata for storage in self.storages]
        self._users = [storage_users(storage) for storage in self.storages]

    def lend(self) -> None:
        """Makes the group's parameters usable ones on the arena.

        Raises:
            UnsupportedError: Something else was put in the place of one; the others are parked.
        """
        parameters = self._parameters
        try:
            count = _switch.lend(parameters, None if self._is_on_place else self.views)
            if count != len(parameters):
                raise self.weights[count].exchanged()
            if not self._versions:
                self._versions = _switch.versions(parameters)
        except BaseException:
            self._park_those_lent()
            raise

    def _park_those_lent(self) -> None:
        self._is_on_place = False
        for weight in self.weights:
            if isinstance(weight.parameter, LentParameter):
                weight.park()

    def park(self) -> list[tuple[Weight, torch.Tensor]]:
        """Parks the weights; those that were written to while they were lent, with their bytes."""
        parameters = self._parameters
        changed = _switch.changed(parameters, self._versions, self.weights)
        written = self._values(changed) if changed else []
        self._is_on_place = self.stays and not changed
        for i in changed:  # torch exchanges what objects hold with them
            self._parameters[i]._tensorstream_weight = self.weights[i]  # type: ignore[attr-defined]
            self._versions = []
        _switch.park(parameters, None if self._is_on_place else self._poisons)
        return written

    def _values(self, positions: list[int]) -> list[tuple[Weight, torch.Tensor]]:
        with torch.inference_mode(False), torch.no_grad():
            return [(self.weights[i], torch.clone(self._parameters[i].detach())) for i in positions]

    def leave_place(self) -> None:
        """Takes the bytes away from parked parameters that stay on a place: it is another's now."""
        if self._is_on_place:
            _switch.park(self._parameters, self._poisons)
            self._is_on_place = False

    def escaped(self) -> list[int]:
        """Positions of parked weights of whose bytes on the place somebody else holds a view."""
        return _switch.held(self._handles, self._users, self._is_on_place)

    def kept(self, returned: list[torch.Tensor]) -> str | None:
        """A weight of which somebody holds another view than those that the forward returned."""
        held = {id(view): view for view in returned}
        held.update({id(view._base): view._base for view in returned if view._base is not None})
        addresses = [view.untyped_storage().data_ptr() for view in held.values()]
        for index in self.escaped():
            storage = self.storages[index]
            known = addresses.count(storage.data_ptr())
            if storage_users(storage) > self._users[index] + self._is_on_place + known:
                return self.weights[index].name
        return None

    def check_kept(self, returned: list[torch.Tensor]) -> None:
        """Checks that no view of the weights outlives their lease but those that a forward returned.

        Raises:
            UnsupportedError: Somebody holds another, whose bytes will be replaced.
        """
        name = self.kept(returned)
        if name is not None:
            raise UnsupportedError(
                f"a view of the streamed weight '{name}' was kept beyond its module's forward, and its "
                f"bytes will be replaced; keep it on the device: keep_resident=('{name}',)"
            )


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
