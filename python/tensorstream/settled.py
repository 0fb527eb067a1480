"""Parameters on their way between settled residents and weights that are leased: what stands in it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable

from tensorstream.exceptions import UnsupportedError
from tensorstream.forms import HeldStorage, is_dense
from tensorstream.lent import LentGroup
from tensorstream.plain_objects import refuse_swapped
from tensorstream.walk import FoundWeight
from tensorstream.weight import Weight


@dataclasses.dataclass(frozen=True)
class Resident:
    """A settled parameter that was put on memory of the engine's, and that memory."""

    member: FoundWeight
    memory: HeldStorage

    @classmethod
    def of(cls, member: FoundWeight) -> Resident:
        """Of a parameter that was just put there."""
        return cls(member, HeldStorage(member.parameter.untyped_storage()))

    def is_held(self) -> bool:
        """Whether anybody but the parameter, if it is there still, has the memory."""
        return self.memory.is_held(0 if has_left(self) else 1)


def has_left(resident: Resident | None) -> bool:
    """Whether a settled parameter was given memory of another than the engine, or never had its."""
    if resident is None:
        return True
    return resident.member.parameter.untyped_storage() is not resident.memory.storage


def check_no_views(groups: Iterable[LentGroup]) -> None:
    """Checks that nobody holds a view of a place where groups are lent, before places are moved.

    Raises:
        UnsupportedError: Somebody does, as after a forward that was refused for it.
    """
    held = next(filter(None, (group.held() for group in groups)), None)
    if held is not None:  # guard: view-of-a-place
        raise UnsupportedError(
            f"somebody holds a view of the streamed weight '{held}', whose memory would go: a forward that "
            "failed kept it, or its traceback does; let it go before you set the budget"
        )


def check_can_leave(member: FoundWeight, resident: Resident | None) -> None:
    """Checks the parameter of a settled resident that is to be leased from now on.

    Args:
        member: The parameter.
        resident: What of it is the engine's, and goes, if anything.

    Raises:
        UnsupportedError: It cannot be streamed, or somebody else holds its memory.
    """
    parameter, form, name = member.parameter, member.form, member.names[0]
    if hasattr(parameter, "_tensorstream_weight"):  # guard: streamed-by-another
        raise UnsupportedError(
            f"'{name}' is streamed by another offloaded model, which has the module, too; call "
            "tensorstream.restore() on that model before you set the budget of this one"
        )
    alike = parameter.shape == form.shape and parameter.dtype == form.dtype
    if not alike or not is_dense(parameter):
        raise UnsupportedError(
            f"'{name}' became {tuple(parameter.shape)} {parameter.dtype} with strides {parameter.stride()} "
            "since the model was offloaded, and cannot be streamed; call tensorstream.restore(model), and "
            "offload it again"
        )
    held = resident is not None and resident.is_held()
    if held:  # guard: held-view
        raise UnsupportedError(
            f"somebody holds a view of '{name}', whose memory would go, or another parameter was given it; "
            "let it go before you set the budget, or call tensorstream.restore(model)"
        )


def check_returned(weights: list[Weight], lock: threading.RLock) -> None:
    """Checks the weights of a group that is to be settled; `lock` is their loans'.

    Raises:
        UnsupportedError: Somebody holds the value of one, which would be an alias no more.
    """
    with lock:
        for weight in weights:
            mark = getattr(weight.parameter, "_tensorstream_weight", None)
            if mark is not weight:  # guard: swapped-before-settled
                refuse_swapped(weight.name)
            weight.end_pointing()
        if all(weight.owned is not None and not weight.is_home for weight in weights):
            return  # they stay in the memory that they have
        for weight in weights:
            if weight.is_lent_out:  # guard: held-value
                raise UnsupportedError(
                    f"somebody holds the value of '{weight.name}', which would become another's; let it go "
                    "before you set the budget"
                )
