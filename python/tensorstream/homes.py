"""Streamed weights on their way into pinned host memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from tensorstream import _native, report
from tensorstream.exceptions import BudgetError, IoError
from tensorstream.interrupts import HeldBack
from tensorstream.weight import Weight

logger = logging.getLogger("tensorstream")


def bring_home(
    engine: _native.Engine,
    weights: Mapping[int, Weight],
    tensors_of: Sequence[Sequence[int]],
    held: HeldBack,
) -> None:
    """Moves what is streamed into pinned host memory, as far as there is room.

    Args:
        engine: The model's.
        weights: The streamed weights by their ids.
        tensors_of: The ids of each group.
        held: Says when it may be given up, which is between groups.
    """
    refused: BudgetError | IoError | None = None
    for _ in range(2):  # homes that came out smaller than expected leave room for more
        for group in engine.groups_to_bring_home():
            held.check()
            try:
                engine.bring_home(group)
            except (BudgetError, IoError) as error:
                refused = error
                continue
            for tensor in tensors_of[group]:
                if not weights[tensor].is_home:
                    weights[tensor].come_home()
        engine.plan_anew()
    plan = engine.plan
    if plan.homeless_groups:
        logger.warning(
            "host memory holds only a part of the weights: %d groups are read from where they are "
            "at each use, which is slower%s%s",
            plan.homeless_groups,
            f"; {report.size(plan.disk_bytes)} a pass from files" if plan.disk_bytes else "",
            f": {refused}" if refused is not None else "",
        )
