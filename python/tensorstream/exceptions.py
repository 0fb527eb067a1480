"""The exceptions of TensorStream. The engine raises these very classes."""

from __future__ import annotations

import torch


class TensorStreamError(Exception):
    """Base of every error of the library: what failed, on which object, and what to do."""


class IoError(TensorStreamError, OSError):
    """A read or another file operation failed.

    Attributes:
        errno: The system's error number; 0 where the data is simply not there.
        filename: The file, or the name of the source.
        offset_bytes: Where in the file.
    """

    offset_bytes: int = 0

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FormatError(TensorStreamError, ValueError):
    """A file breaks its format.

    Attributes:
        path: The file.
        tensor: The tensor at fault; empty where it is the file as a whole.
        rule: The rule that was broken.
    """

    path: str = ""
    tensor: str = ""
    rule: str = ""


class BudgetError(TensorStreamError, MemoryError):
    """A budget cannot hold what has to be held.

    Attributes:
        needed_bytes: The smallest budget that would have done.
        budget_bytes: The budget that was given.
    """

    needed_bytes: int = 0
    budget_bytes: int = 0


class CudaBudgetError(BudgetError, torch.OutOfMemoryError):
    """What a forward needs on a GPU does not fit the budget: also torch's own error.

    What looks for that one finds a smaller batch; its text begins as torch's does.
    """


class CudaError(TensorStreamError):
    """A call of the CUDA driver failed.

    Attributes:
        call: The driver's function.
        result: Its result, a CUresult.
    """

    call: str = ""
    result: int = 0


class CufileError(TensorStreamError):
    """A read into device memory by cuFile failed, in a way that the system has no error number for.

    Attributes:
        filename: The file.
        offset_bytes: Where in the file.
        size_bytes: What was to be read.
        result: What cuFile gave, a CUfileOpError.
    """

    filename: str = ""
    offset_bytes: int = 0
    size_bytes: int = 0
    result: int = 0


class ConfigError(TensorStreamError, ValueError):
    """An option or argument cannot be used as given."""


class UnsupportedError(TensorStreamError):
    """What was asked for exists but cannot be had here, or with this input."""


class LeaseError(TensorStreamError):
    """The engine's contract was broken: a lease released twice, a write to a leased group."""
