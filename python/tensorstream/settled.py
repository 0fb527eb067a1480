"""Parameters on their way between settled residents and weights that are leased: what stands in it."""

from __future__ import annotations

from tensorstream.exceptions import UnsupportedError
from tensorstream.forms import is_dense, is_shared
from tensorstream.walk import FoundWeight
from tensorstream.weight import Weight


def check_can_leave(member: FoundWeight, on_engine: bool) -> None:
    """Checks the parameter of a settled resident that is to be leased from now on.

    Args:
        member: The parameter.
        on_engine: Whether its memory is the engine's, and goes.

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
    held = on_engine and is_shared(parameter)
    if held:  # guard: held-view
        raise UnsupportedError(
            f"somebody holds a view of '{name}', whose memory would go; let it go before you set the "
            "budget"
        )


def check_returned(weights: list[Weight]) -> None:
    """Checks the weights of a group that is to be settled.

    Raises:
        UnsupportedError: Somebody holds the value of one, which would be an alias no more.
    """
    for weight in weights:
        weight.end_pointing()
    if all(weight.owned is not None and not weight.is_home for weight in weights):
        return  # they stay in the memory that they have
    for weight in weights:
        if weight.is_lent_out:  # guard: held-value
            raise UnsupportedError(
                f"somebody holds the value of '{weight.name}', which would become another's; let it go "
                "before you set the budget"
            )
