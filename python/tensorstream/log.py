"""The engine's messages in Python's logging."""

from __future__ import annotations

import atexit
import logging

from tensorstream import _native

_LEVELS = {
    _native.LogLevel.DEBUG: logging.DEBUG,
    _native.LogLevel.INFO: logging.INFO,
    _native.LogLevel.WARNING: logging.WARNING,
    _native.LogLevel.ERROR: logging.ERROR,
}


def connect() -> None:
    """Sends the engine's messages to the logger "tensorstream"."""
    logger = logging.getLogger("tensorstream")
    _native.set_log_sink(lambda level, message: logger.log(_LEVELS[level], "%s", message))
    # A thread of the engine that has something to say must not wait for an interpreter that ends.
    atexit.register(_native.drop_log_sink)
