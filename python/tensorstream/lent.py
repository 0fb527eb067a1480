"""Streamed groups while their weights are lent, and views of them that outlive the lease."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.utils import _pytree as pytree

from tensorstream import _native
from tensorstream.compute_device import is_made_of_parts
from tensorstream.exceptions import TensorStreamError, UnsupportedError
from tensorstream.flattened import inner_tensors, wrapper_of
from tensorstream.forms import HeldStorage, copy_at, line_offset_of
from tensorstream.generations import given_at
from tensorstream.inner_tensors import Wrappers
from tensorstream.loans import Alias
from tensorstream.places import mark_place, owner_of, refuse_shared
from tensorstream.plain_objects import refuse_swapped
from tensorstream.proxy import LentParameter, ParkedParameter
from tensorstream.tracing import address_of, plain_tensors
from tensorstream.weight import Weight

# A weight, its value and the version that this has for graphs, and who may write to memory that the parameter
# was given for it, if it was.
Written = tuple[Weight, torch.Tensor, int, Alias | None]

_types = _native.ParameterTypes(
    LentParameter,
    ParkedParameter,
    data=torch._C.TensorBase.data,
    version=torch._C.TensorBase._version,
    mark="_tensorstream_weight",
    use_count=torch._C._storage_Use_Count,
    plainly=torch._C.DisableTorchFunctionSubclass,
    address=torch._C.TensorBase.data_ptr,
)


# In a group's addresses: where weights begin and end that are computed with apart from their places.
APART = -1
set_data = torch._C.TensorBase.data.__set__  # type: ignore[attr-defined]
_use_count = torch._C.TensorBase._use_count  # type: ignore[attr-defined]


# In functions of their own: a name that is left for one of these would count as a holder of its memory.
def _views_on(
    places: Iterable[torch.Tensor], weights: list[Weight]
) -> tuple[list[torch.UntypedStorage], list[torch.Tensor]]:
    """The storages of places, and what weights are lent as there."""
    storages, views = [], []
    for weight, place in zip(weights, places, strict=True):
        storages.append(place.untyped_storage())
        mark_place(storages[-1], weight)
        with plain_tensors():  # views without versions hide writes
            views.append(weight.view_of(place))
    return storages, views


def _addresses_of(
    weights: list[Weight], storages: list[torch.UntypedStorage], starts: list[int]
) -> dict[int, Any]:
    """Weights by the addresses of their places, and by ranges where they lie in memory of others."""
    found: dict[int, Any] = {}
    apart: list[tuple[int, int, Weight]] = []
    for weight, storage, start in zip(weights, storages, starts, strict=True):
        if weight.lies_apart:
            apart.append((start, start + weight.size_bytes, weight))
        else:
            found[storage.data_ptr()] = weight
    if apart:
        found[APART] = apart
    return found


def _copy_of(value: torch.Tensor) -> torch.Tensor:
    """A copy, which in RAM begins where `value` does in a cache line."""
    if value.device.type == "cpu":  # guard: written-alignment
        return copy_at(value, line_offset_of(value))
    return torch.clone(value)


class LentGroup(_native.LentParameters):
    """One group that is leased at each use: its weights and their views on its place."""

    def __init__(self, group: int, weights: list[Weight]) -> None:
        wrappers = Wrappers.of(weight.parameter for weight in weights)
        wrappers.follow()  # on a GPU those in wrappers are made anew
        super().__init__(
            _types,
            group,
            parameters=[weight.parameter for weight in weights],
            weights=weights,
            poisons=[weight.poison for weight in weights],
            wrappers=wrappers.entries(),
        )
        self.weights = weights
        for weight in weights:
            weight.lent = weakref.ref(self)
        self.storages: list[torch.UntypedStorage] = []
        self._starts: list[int] = []  # of the views' memory
        self._views: list[torch.Tensor] = []
        self._given: dict[int, Alias] = {}  # what parameters were given in this forward
        self._shared: set[int] = set()  # positions of those whose places others were given
        # Memory of places before, of which somebody held views as others got them.
        self._outlived: list[tuple[str, HeldStorage]] = []
        # Where no hook tells what graphs save: who held parameters as they were lent.
        self._users: list[int] = []
        self._edges: list[Any] = []

    def move(self, place_number: int, places: Iterable[torch.Tensor], stays: bool) -> None:
        """Makes views on a new place: `places` are uint8 (size_bytes,) each, and nobody else's.

        `stays` says that no other group shares it.
        """
        self.leave_place()
        self._outlived = [each for each in self._outlived if each[1].is_held(0)]
        for index in self.escaped():
            self._outlived.append((self.weights[index].name, HeldStorage(self.storages[index])))
        self.storages, views = _views_on(places, self.weights)
        self._starts = [view.data_ptr() for view in views]
        self._views = views
        addresses = _addresses_of(self.weights, self.storages, self._starts)
        self.set_place(
            place_number,
            stays,
            views,
            self.storages,
            handles=[storage._cdata for storage in self.storages],
            addresses=addresses,
            lie_apart=APART in addresses,
        )

    def views_on(self, value: torch.Tensor) -> int:
        """How many of its views lie in the memory of `value`: they are nobody's aliases."""
        memory = value.untyped_storage()
        return sum(view.untyped_storage() is memory for view in self._views)

    def watch_apart(self) -> None:
        """After a lease: takes note of who else has memory that weights are computed with where it lies."""
        for weight in self.weights:
            weight.watch_apart()

    def raise_exchanged(self, position: int) -> None:
        """Raises UnsupportedError: something else was put in the place of a parameter."""
        refuse_swapped(self.weights[position].name)

    def park_those_lent(self) -> None:
        """Parks what a lease that failed had lent."""
        self.forget_place()
        for weight in self.weights:
            if isinstance(weight.parameter, LentParameter):
                weight.park()
        Wrappers.of(weight.parameter for weight in self.weights).follow()

    def exchange(self, weight: Weight, value: torch.Tensor) -> None:
        """`parameter.data = value` while it is lent: it lies there, and what lay on its place stays.

        Raises:
            UnsupportedError: `value` is of another type, shape or device, or has gaps.
        """
        weight.check_form(value)
        owner = owner_of(value)
        lender = None if owner is None or owner is weight else owner.lent()
        if lender is not None and lender.depth:  # guard: written-as-another
            lender.note_shared(owner)
        position = self._position_of(weight)
        with plain_tensors():
            set_data(weight.parameter, value.detach())
        self._given[position] = Alias(value)
        is_back = (
            weight.parameter.data_ptr() == self._starts[position]
            and weight.parameter.stride() == weight.form.stride()
        )
        self.note_exchanged(position, not is_back or position in self._shared)

    def note_shared(self, weight: Weight) -> None:
        """Another weight is given its place, and may be written to there until the forward ends."""
        position = self._position_of(weight)
        self._shared.add(position)
        self.note_exchanged(position, True)

    def _position_of(self, weight: Weight) -> int:
        return next(i for i, one in enumerate(self.weights) if one is weight)

    def values(self, positions: list[int]) -> list[Written]:
        """Weights that were written to while they were lent, with their bytes and versions.

        Raises:
            UnsupportedError: One was given the memory of another one.
        """
        given, self._given = self._given, {}
        self._shared.clear()
        with plain_tensors():
            for i in positions:
                parameter = self.weights[i].parameter
                if wrapper_of(parameter) is not None:  # guard: saved-before-wrapper-written
                    increment_version(parameter)  # the wrapper's was raised alone
            return [self._written(i, given.get(i)) for i in positions]

    def _written(self, position: int, given: Alias | None) -> Written:
        weight = self.weights[position]
        parameter = weight.parameter
        value = torch.Tensor.detach(parameter)
        version = 0 if parameter.is_inference() else parameter._version
        owner = owner_of(value)
        if value.data_ptr() == self._starts[position] or owner is weight:
            # Memory that is not the engine's stays the weight's, and who has it has an alias. In `data` it
            # has versions of its own: what the next forward writes is not written through an alias.
            return weight, value.data if weight.lies_apart else _copy_of(value), version, None
        alias_lacks = weight.is_lent_out and not weight.holds(self._views[position])
        if alias_lacks:  # guard: written-and-left
            raise UnsupportedError(
                f"the streamed weight '{weight.name}' was written to and then given other memory in one "
                "forward, while somebody has an alias of it: let go of the alias, or call "
                "tensorstream.restore(model) first"
            )
        if owner is None:
            if given is None or given.address != value.data_ptr():
                given = Alias(value)
            given.note()
            return weight, value, given_at(version), given
        refuse_shared(owner, value, weight.name)
        return weight, _copy_of(value), given_at(version), Alias(value)

    def check_unwritten(self) -> None:
        """Raises UnsupportedError where a loan was written to while its weight was in use."""
        for weight in self.weights:
            weight.check_unwritten()

    def own(self, output: Any) -> tuple[Any, list[torch.Tensor]]:
        """`output` with clones in the place of views of the group's place, and those views."""
        views: list[torch.Tensor] = []
        if self.storages:  # guard: returned-view
            output = without_views(output, self.addresses, views)
        return output, views

    def kept(self, returned: list[torch.Tensor]) -> str | None:
        """A weight of which somebody holds another view than those that the forward returned."""
        held = {id(view): view for view in returned}
        held.update({id(view._base): view._base for view in returned if view._base is not None})
        addresses = [view.untyped_storage().data_ptr() for view in held.values()]
        for index in self.escaped():
            known = addresses.count(self.storages[index].data_ptr())
            if self.other_holders(index) > known:
                return self.weights[index].name
        return None

    def held(self) -> str | None:
        """A weight of which somebody holds a view on a place, now or of before; nobody uses the group."""
        outlived = (name for name, memory in self._outlived if memory.is_held(0))
        return self.kept([]) or next(outlived, None)

    def note_users(self) -> None:
        """Counts who holds the parameters, lent where graphs tell no hook what they save."""
        with plain_tensors():
            # What gradients are added to holds one, too, once a graph has it.
            self._edges = [
                torch.autograd.graph.get_gradient_edge(weight.parameter)
                for weight in self.weights
                if weight.parameter.requires_grad
            ]
            self._users = [_use_count(weight.parameter) for weight in self.weights]

    def check_unsaved(self, returned: list[torch.Tensor] | None) -> None:
        """Checks that no graph has saved a parameter since note_users(), beside views that were `returned`.

        Raises:
            UnsupportedError: One has, and finds others' bytes in it from now on.
        """
        with plain_tensors():
            users = [_use_count(weight.parameter) for weight in self.weights]
        self._edges.clear()
        bases = [id(view._base) for view in {id(view): view for view in returned or ()}.values()]
        for weight, now, before in zip(self.weights, users, self._users, strict=True):
            if now > before + bases.count(id(weight.parameter)):  # guard: saved-in-transform
                raise UnsupportedError(
                    f"a graph keeps the streamed weight '{weight.name}' where hooks for saved tensors are "
                    "off (torch.func: grad, vjp, jacrev, hessian): use torch.autograd, or call "
                    "tensorstream.restore(model) first"
                )

    def check_kept(self, returned: list[torch.Tensor]) -> None:
        """Checks that no view of the weights outlives their lease but those that a forward returned.

        Raises:
            UnsupportedError: Somebody holds another, whose bytes will be replaced.
        """
        name = self.kept(returned)
        if name is not None:  # guard: kept-view
            advice = f"keep it on the device: keep_resident=('{name}',)"
            if _freezes():
                advice = (
                    "torch.compile keeps weights as constants where torch._inductor.config.freezing is set: "
                    "turn that off, call tensorstream.restore(model), and offload it again"
                )
            raise UnsupportedError(
                f"a view of the streamed weight '{name}' was kept beyond its module's forward, and its "
                f"bytes will be replaced; {advice}"
            )


def _freezes() -> bool:
    config = sys.modules.get("torch._inductor.config")
    return bool(getattr(config, "freezing", False))


def without_views(output: Any, places: Container[int], views: list[torch.Tensor]) -> Any:
    """`output` with clones in place of tensors in `places`; containers keep their types.

    What was replaced is appended to `views`.
    """

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, ParkedParameter):
            return leaf
        if is_made_of_parts(leaf) and wrapper_of(leaf) is None:
            inner = [each.tensor for each in inner_tensors(leaf)]
            of_places = [each for each in inner if address_of(each) in places]
            views.extend(of_places)
            return leaf.clone() if of_places else leaf
        if address_of(leaf) not in places:  # whether a wrapped one keeps a view is checked by count
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


def keep_written(written: Iterable[Written]) -> None:
    """Makes what a forward wrote to weights their bytes: all that can be, whatever is refused.

    Raises:
        UnsupportedError: Of the first that cannot.
    """
    refused: list[TensorStreamError] = []
    for weight, value, version, given in written:
        try:
            weight.check_unwritten()  # guard: exchanged-beside-an-alias
            if given is not None:
                weight.assign(value, version, given)
            else:
                weight.keep(value, version)
        except TensorStreamError as error:
            refused.append(error)
    if refused:
        raise refused[0]
