"""Operations whose streamed weights nobody finds among their arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from tensorstream.exceptions import UnsupportedError

_under_way = threading.local()


def once_more(func: Callable[..., Any], args: Any, kwargs: Any, leaves: Sequence[Any]) -> Any:
    """Calls an operation again that had a streamed weight among its arguments, and has none now.

    Another thread's forward may have lent it since, or it was restored; `leaves` are the arguments.

    Raises:
        UnsupportedError: The same comes back: a weight is where nobody looks for it.
    """
    call = (func, [id(leaf) for leaf in leaves])
    before = getattr(_under_way, "call", None)
    if call == before:  # guard: hidden-in-arguments
        name = getattr(func, "__name__", str(func))
        raise UnsupportedError(
            f"an argument of {name}() holds a streamed weight in a container that torch does not look into; "
            "give a list, a tuple or a dict"
        )
    _under_way.call = call
    try:
        return func(*args, **kwargs)
    finally:
        _under_way.call = before
