"""What forked children do, in tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def in_child(act: Callable[[], object]) -> int:
    """What a forked child ends with: 0, or 1 where `act` is False or raises; a signal where it hangs."""
    child = os.fork()
    if child == 0:
        # What a call waits for may be a thread that is not here: no handler runs then.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            os._exit(1 if act() is False else 0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
