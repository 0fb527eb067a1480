"""Whether a thread is in an operation on streamed weights."""

from __future__ import annotations

from types import FrameType

from tensorstream import proxy, true_values
from tensorstream.exceptions import ConfigError

_OPERATIONS = frozenset(function.__code__ for function in (proxy.on_values, true_values.on_values))


def check_no_operation(frame: FrameType | None) -> None:
    """Checks that the thread that is in `frame`, and is about to move weights, is in no operation on some.

    Raises:
        ConfigError: It is, as in a handler of a signal: what the operation writes would be lost.
    """
    while frame is not None:
        if frame.f_code in _OPERATIONS:  # guard: restored-amid-an-operation
            raise ConfigError(
                "this thread is in an operation on a streamed weight: call set_budget() or restore() when "
                "that has returned, not in a handler of a signal meanwhile"
            )
        frame = frame.f_back
