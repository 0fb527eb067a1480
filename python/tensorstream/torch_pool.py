"""Torch's allocations of a model's forwards and of their backward, under the engine's ceiling."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

from tensorstream import _native
from tensorstream.backward import at_end, in_backward, watch
from tensorstream.exceptions import CudaBudgetError
from tensorstream.tracing import uncompiled

logger = logging.getLogger("tensorstream")


class Memory(Protocol):
    """What is used of torch.cuda; tests have one of their own."""

    def make_pool(self, index: int) -> Any:
        """A memory pool of a device, whose segments the engine's library allocates."""

    def use(self, pool: Any, index: int) -> contextlib.AbstractContextManager[Any]:
        """Sends allocations of the calling thread to the pool."""

    def let_go(self, pool: Any, index: int) -> None:
        """Has the device's pool keep no more than its tensors need, from the next release_free() on. Once."""

    def release_free(self) -> bool:
        """Gives back what is free outside pools and in those let go. False where that cannot be done now."""

    def cap(self, share: float, index: int) -> None:
        """Refuses what the process allocates of the device beyond a share of it."""

    def keep_large_blocks_whole(self) -> bool:
        """Has torch split no large free block for a smaller tensor; whether it did until now."""


class TorchMemory:
    """Torch's memory pools: torch 2.6 and later, where it is built for CUDA."""

    def make_pool(self, index: int) -> Any:
        """A pool over the engine's library: torch makes it for its current device.

        It is never destroyed, which takes some hundred bytes: torch's destructor ends the process while
        allocations are sent to any pool, on any thread, as in forwards and in captures into graphs.

        Raises:
            RuntimeError: This torch has none.
        """
        with torch.cuda.device(index):
            pool = torch.cuda.MemPool(_allocator().allocator())
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))  # guard: pools-stay
        return pool

    def use(self, pool: Any, index: int) -> contextlib.AbstractContextManager[Any]:
        """Sends allocations to the pool: of the calling thread; torch 2.6 those of all threads."""
        return torch.cuda.use_mem_pool(pool, device=index)

    def let_go(self, pool: Any, index: int) -> None:
        """What the pool's destructor does first."""
        torch.cuda.memory._cuda_releasePool(index, pool.id)

    def release_free(self) -> bool:
        """Gives back what torch keeps, its default allocator included, unless something is captured."""
        if torch.cuda.is_current_stream_capturing():
            return False
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # an assertion that no thread captures
            logger.debug("torch gives nothing back now: %s", error)
            return False
        return True

    def cap(self, share: float, index: int) -> None:
        """Torch's own limit, which covers what its default allocator holds in this process."""
        torch.cuda.set_per_process_memory_fraction(share, index)

    def keep_large_blocks_whole(self) -> bool:
        """Torch's own setting, of the process, beside those that it has. Does nothing where one is set."""
        settings = _allocator_settings()
        if _SPLITS in settings:
            return False
        wanted = f"{_SPLITS}:{_LARGEST_SPLIT_MIB}"
        _set_allocator_settings(f"{settings},{wanted}" if settings else wanted)
        return True


# Torch takes no less.
_SPLITS, _LARGEST_SPLIT_MIB = "max_split_size_mb", 21


def _allocator_settings() -> str:
    get = getattr(torch._C, "_accelerator_getAllocatorSettings", str)
    named = (os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
    return str(get()) or next(filter(None, named), "")


def _set_allocator_settings(settings: str) -> None:
    set_ = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if set_ is None:
        set_ = torch.cuda.memory._set_allocator_settings
    set_(settings)


@functools.cache
def _allocator() -> Any:
    """Torch's handle of the two functions. One a process, never let go: segments outlive pools."""
    if not hasattr(torch.cuda, "MemPool"):
        raise RuntimeError("torch.cuda.MemPool is missing")
    return torch.cuda.memory.CUDAPluggableAllocator(
        _native.__file__, "ts_torch_alloc", "ts_torch_free"
    )


class Scopes:
    """How many forwards and backwards allocate from pools now, and whether pools that are gone keep memory.

    Torch gives nothing back while allocations are sent to any pool, on any thread. A model may be
    collected at any moment, so what its pool keeps waits here until none is in use. Thread-safe, and
    re-entrant: a collection may begin anywhere.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # An interrupt may come between any two lines: one that nobody got to know is none.
        self._open: weakref.WeakSet[object] = weakref.WeakSet()
        self._kept_by: Memory | None = None

    def open(self, use: object) -> None:
        """A forward or backward begins to allocate from a pool, until `use` is closed, or is no more."""
        with self._lock:
            self._open.add(use)

    def close(self, use: object) -> None:
        """It does not any more."""
        with self._lock:
            self._open.discard(use)
        self._release()

    def retire(self, pools: list[Any], memory: Memory, index: int) -> None:
        """Empties the list of a device's pools, which nobody allocates from any more."""
        while pools:
            memory.let_go(pools.pop(), index)
            self._kept_by = memory
        self._release()

    def release_free(self, memory: Memory) -> None:
        """Has torch give back what pools that are gone still keep, once that can be done."""
        self._kept_by = memory
        self._release()

    def _release(self) -> None:
        with self._lock:  # as nothing but a with statement lets go of it whenever a signal comes
            memory = self._kept_by
            if memory is None or self._open:  # guard: pool-outside-scopes
                return
            self._kept_by = None  # before, so that what is retired meanwhile is not forgotten
            if not memory.release_free():
                self._kept_by = memory


_scopes = Scopes()


class _Splitting:
    """How often the process was told to split large blocks otherwise."""

    changes = 0


class _Use:
    """A pool that one thread's allocations go to, under a ceiling, until it is closed from any thread."""

    def __init__(
        self, lock: Any, ceiling: _native.Ceiling, scope: contextlib.AbstractContextManager[Any]
    ) -> None:
        """The caller holds `lock`."""
        self._lock = lock
        self.thread = threading.get_ident()
        self._ceiling = ceiling
        self._scope: contextlib.AbstractContextManager[Any] | None = scope
        _scopes.open(self)
        try:
            ceiling.enter()
            scope.__enter__()
        except BaseException:
            self._scope = None
            self._gone()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it was not closed yet."""
        return self._scope is not None

    def close(self) -> None:
        """The end of it, which comes once."""
        with self._lock:
            scope, self._scope = self._scope, None
            if scope is None:
                return
            try:
                scope.__exit__(None, None, None)
            finally:
                self._gone()

    def _gone(self) -> None:
        _scopes.close(self)
        self._ceiling.leave()


def _at_home(process: int, act: Callable[[], None]) -> None:
    """Calls `act`, but not in a child of the process, which must not call the CUDA driver."""
    if process != os.getpid():  # guard: pool-of-the-parent
        return
    act()


# Of each thread, what its last backward used: a weak reference.
_of_thread = threading.local()


def _no_use() -> None:
    """Of a thread that ran no backward yet."""


class TorchPool:
    """Brings what torch allocates in one model's forwards under its engine's budget.

    A pool is in use on one thread at a time: torch takes no more.
    """

    def __init__(
        self, ceiling: _native.Ceiling, index: int, memory: Memory, capped: tuple[int, int]
    ) -> None:
        """`capped` are the bytes that torch may hold where it has no pools, and the device's."""
        self._ceiling = ceiling
        self._index = index
        self._memory = memory
        self._lock = threading.RLock()  # held where a use begins and ends
        self._forward: _Use | None = None
        self._backward: _Use | None = None
        self._enter_backward = uncompiled(functools.partial(_enter_backward, weakref.ref(self)))
        self._trimmed = False
        self._refused = False
        self.trains = False
        self._changes = 0  # of splitting, when the pool was made
        # The pool, or nothing where torch has none. The finalizer retires it, and holds no more.
        self._pools: list[Any] = []
        retire = functools.partial(_scopes.retire, self._pools, memory, index)
        weakref.finalize(self, _at_home, os.getpid(), retire).atexit = False
        try:
            self._take_new_pool()
        except (RuntimeError, OSError, AttributeError) as error:
            room, total = capped
            memory.cap(min(1.0, room / total), index)
            logger.warning(
                "this torch (%s) has no memory pools of our own (%s): its allocations are capped for the "
                "whole process, and resident weights do not give way to them",
                torch.__version__,
                error,
            )

    def _take_new_pool(self) -> None:
        old = list(self._pools)
        self._pools[:] = [self._memory.make_pool(self._index)]
        self._changes = _Splitting.changes
        _scopes.retire(old, self._memory, self._index)

    def enter(self) -> None:
        """The outermost forward begins: this thread's allocations come under the ceiling."""
        if not self._pools or self._forward is not None:
            return
        with self._lock:
            if self._backward is not None:  # of another thread, or an error ended it just now
                self._backward.close()
            if self._trimmed:  # what an exception held of a forward that was refused is gone by now
                _scopes.release_free(self._memory)
            self._forward = self._use()

    def leave(self) -> None:
        """It ended, or was abandoned: from any thread."""
        with self._lock:
            forward, self._forward = self._forward, None
            if forward is not None:
                forward.close()

    def watch(self, output: Any) -> bool:
        """Brings backward under the ceiling from what a forward gave on; whether there can be one."""
        return bool(self._pools) and watch(output, self._enter_backward)

    def enter_backward(self) -> None:
        """The calling thread computes gradients: its allocations come under the ceiling until that ends.

        Nothing is done where the pool is in use for that already, or for a forward that computes gradients.
        """
        if not self._pools or self._is_used_here():
            return
        # Torch takes the pool that was entered first: of another model whose backward came before.
        last: _Use | None = getattr(_of_thread, "backward", _no_use)()
        if last is not None:
            last.close()
        with self._lock:
            if self._is_used_here():
                return
            if self._backward is not None:  # of another thread: a part on the CPU, or another graph
                self._backward.close()
            use = self._backward = self._use()
        _of_thread.backward = weakref.ref(use)
        try:
            at_end(functools.partial(_backward_ended, weakref.ref(self), use))
        except BaseException:
            use.close()
            raise

    def prepare_training(self) -> None:
        """As keep_whole(); leaves room for what torch gives nothing back for. Between forwards."""
        self.trains = True
        self._ceiling.keep_for_small_segments()
        self.keep_whole()

    def keep_whole(self) -> None:
        """Has torch split no large block, and give those back that are free where it needs others.

        To be called between forwards. Training takes tensors of many sizes, the largest once a step.
        """
        try:
            _scopes.release_free(self._memory)  # what torch splits so is never given back
            _Splitting.changes += self._memory.keep_large_blocks_whole()
        except (RuntimeError, ValueError, AttributeError) as error:
            logger.debug("torch splits large blocks: %s", error)

    def _use(self) -> _Use:
        # Torch takes a part of a large block for a whole one, and fails where it gives that back.
        if self._changes != _Splitting.changes:  # guard: split-blocks
            self._take_new_pool()
        scope = self._memory.use(self._pools[0], self._index)
        return _Use(self._lock, self._ceiling, scope)

    def _is_used_here(self) -> bool:
        if self._forward is not None:
            return True
        backward = self._backward
        return (
            backward is not None and backward.is_open and backward.thread == threading.get_ident()
        )

    def forward_ended(self) -> None:
        """Between forwards: lets residents come back, and torch give back what it only keeps."""
        if not self._pools:
            return
        if self._trimmed:  # what died since, of what outlived the old pool
            _scopes.release_free(self._memory)
        self._trimmed = self._ceiling.forward_ended()
        if self._refused:
            self._refused = False
            self._begin_anew()
        elif self._trimmed:
            # A pool keeps its free segments for as long as it lives, whatever empty_cache() is asked for.
            # What tensors hold of the old one stays with them.
            self._take_new_pool()

    def _begin_anew(self) -> None:
        """After a forward that was refused: without what it left in pieces, and with fewer pieces."""
        self.keep_whole()
        self._trimmed = True
        self._take_new_pool()

    def explain(self) -> None:
        """Puts the numbers in the place of torch's error that a forward ends with now, if it does."""
        raised = sys.exc_info()[1]
        error = self.explained(raised)
        if error is not None:
            _native.replace_handled(error)

    def explained(self, raised: BaseException | None) -> CudaBudgetError | None:
        """The same error with the numbers, where it is torch's, of a request that was refused here."""
        refusal = self._ceiling.take_refusal()
        if refusal is None or not isinstance(raised, torch.OutOfMemoryError):
            return None
        self._refused = True
        grown = "gradients that this backward" if in_backward() else "caches that this forward"
        error = CudaBudgetError(
            f"{refusal.message}. The model goes on working; {grown} had grown are the caller's to reset"
        )
        error.needed_bytes, error.budget_bytes = refusal.needed_bytes, refusal.budget_bytes
        error.__cause__ = raised
        return error.with_traceback(raised.__traceback__)

    def say_refused(self) -> None:
        """Says the numbers where a backward ended with an error that nothing can be put in the place of."""
        refusal = self._ceiling.take_refusal()
        if refusal is None:
            return
        self._refused = True
        logger.error("a backward ended for want of memory. %s", refusal.message)

    def statistics(self) -> _native.CeilingStatistics:
        """What torch holds under the ceiling."""
        return self._ceiling.statistics()


def _enter_backward(reference: weakref.ref[TorchPool], *_: Any) -> None:
    """A hook on what a forward gave, which may outlive the model."""
    pool = reference()
    if pool is not None and in_backward():  # which code compiled for a backward is not
        pool.enter_backward()


def _backward_ended(reference: weakref.ref[TorchPool], use: _Use, whole: bool) -> None:
    use.close()
    pool = reference()
    if pool is not None and not whole:
        pool.say_refused()
