"""What the system has no more of for this process, as errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import torch

from tensorstream.exceptions import BudgetError, IoError, TensorStreamError

# As the system, Rust's safetensors and torch's allocator say it, in errors of any type.
_NO_MEMORY = ("cannot allocate memory", "can't allocate memory", "not enough memory")
_NO_DESCRIPTORS = "too many open files"


@contextlib.contextmanager
def typed_shortages(what: str) -> Iterator[None]:
    """Has an error by which memory or descriptors ran out be one of ours.

    Args:
        what: What is done within, and with which object: "loading '/models/a'".

    Raises:
        BudgetError: The process got no more memory.
        IoError: It may open no more files.
    """
    try:
        yield
    except (TensorStreamError, torch.OutOfMemoryError):
        raise
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        found = shortage_in(error, what)
        if found is None:
            raise
        raise found from error


def shortage_in(error: Exception, what: str) -> BudgetError | IoError | None:
    """Our error for one by which memory or descriptors ran out; None for any other."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error).lower()
    if number == errno.EMFILE or _NO_DESCRIPTORS in text:
        failed = IoError(
            f"{what}: this process may open no more files ({error}); close some, or raise `ulimit -n`"
        )
        failed.errno = errno.EMFILE
        failed.filename = error.filename if isinstance(error, OSError) else None
        return failed
    is_memory = isinstance(error, MemoryError) or number == errno.ENOMEM
    if is_memory or any(each in text for each in _NO_MEMORY):
        said = f" ({error})" if str(error) else ""
        return BudgetError(
            f"{what}: the system gives this process no more memory{said}; free some, or raise its limits "
            "(`ulimit -v`, the container's)"
        )
    return None
