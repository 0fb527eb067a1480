"""What records operations, or wraps what they make: it would keep weights that are elsewhere later."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from tensorstream import _native
from tensorstream.exceptions import UnsupportedError

_jit_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_mode_of = torch._C._get_dispatch_mode
_RECORDERS = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
# Only where torch was built with CUDA.
_is_capturing: Callable[[], bool] | None = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)
# Torch's: what of this thread's frames torch.compile takes.
set_eval_frame: Any = torch._C._dynamo.eval_frame.set_eval_frame


def uncompiled(function: Callable[..., Any]) -> Any:
    """`function`, which torch.compile leaves as it is, and all that it calls."""
    return _native.Uncompiled(function, set_eval_frame)


def as_plain(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a method of torch's with parked weights as the tensors that their objects are.

    In one call: of a method in C, what the thread runs in between, such as the handler of a signal, sees
    true values. Those in Python that use it (register_hook, __len__) run some lines.
    """
    return torch._C._disabled_torch_function_impl(func, (), args, kwargs)


@contextlib.contextmanager
def without_modes() -> Iterator[None]:
    """What runs in it is of no mode of the user's, which may give copies of what it sees."""
    count = torch._C._len_torch_function_stack()
    if not count and not _modes():
        yield
        return
    functions = [torch._C._get_function_stack_at(place) for place in range(count)]
    try:
        _each(itertools.starmap(torch._C._pop_torch_function_stack, itertools.repeat((), count)))
        with _disable_current_modes():
            yield
    finally:
        try:
            _put_back(functions)
        finally:  # an interrupt came between
            _put_back(functions)


def _put_back(functions: list[Any]) -> None:
    """Pushes those of the modes that are not on torch's stack, whose bottom is the first."""
    missing = functions[torch._C._len_torch_function_stack() :]
    _each(map(torch._C._push_on_torch_function_stack, missing))


# Goes through an iterator in one call: an interrupt comes before it, or after.
_each = collections.deque[Any](maxlen=0).extend


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """What is made in it has versions, and is of no graph, no mode and no transform of torch.func."""
    with (
        without_modes(),
        torch.inference_mode(False),
        torch.no_grad(),
        temporarily_clear_interpreter_stack(),
    ):
        yield


def in_transform() -> bool:
    """Whether a transform of torch.func wraps the tensors that are made now."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def address_of(tensor: torch.Tensor) -> int | None:
    """Where the memory of a tensor begins; None for one that has none of its own, as a wrapper of others."""
    if tensor.layout is not torch.strided:
        return None
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None


def refuse_tracing() -> None:
    """Checks that torch runs operations on weights now, and does not record them.

    Raises:
        UnsupportedError: torch.jit.trace, torch.export or a mode of fake tensors would get them.
    """
    if _jit_state() is not None:  # guard: jit-trace
        raise UnsupportedError(
            "torch.jit.trace would freeze streamed weights; restore the model first"
        )
    if _modes() and _is_recorded():  # guard: export
        raise UnsupportedError(
            "torch.export, make_fx and fake tensors cannot have streamed weights, which they would freeze or "
            "lose; restore the model first"
        )


def refuse_capture() -> None:
    """Checks that the current stream runs what it is given, and does not record it in a CUDA graph.

    Raises:
        UnsupportedError: The graph would get the weight's bytes of now, at each replay.
    """
    if _is_capturing is not None and torch.cuda.is_initialized() and _is_capturing():
        raise UnsupportedError(
            "a streamed weight is used while its stream is captured into a CUDA graph, which would keep the "
            "place of now; run without capture, or with a budget that holds all weights"
        )


def _is_recorded() -> bool:
    return any(_mode_of(recorder) is not None for recorder in _RECORDERS)


def version_of(parameter: torch.Tensor) -> int | None:
    """Its version, whatever class it is of; None where it was swapped for an inference tensor."""
    try:
        version: int = as_plain(torch.Tensor._version.__get__, parameter)  # type: ignore[attr-defined]
    except RuntimeError:
        return None
    return version
