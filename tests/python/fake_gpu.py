"""A GPU without a GPU: the engine's CUDA device on the fake driver, whose memory is host memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorstream import _native, backends, orchestrator, tiers
from tensorstream.compute_device import ComputeDevice

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = Path(
    os.environ.get("TENSORSTREAM_FAKE_CUDA", ROOT / "build/dev/tests/cpp/fake_cuda/libfake_cuda.so")
)
RING_BYTES = 64 << 20  # what is staged goes through
DISK_BYTES_PER_SECOND = 3e9


class FakeGpu(ComputeDevice):
    """Torch computes on the CPU with the "device's" memory, once its default stream is drained."""

    def __init__(self, nvidia_fs: Path | None = None) -> None:
        """With nvidia-fs loaded where there is such a path."""
        cufile = _native.CufilePlaces()
        cufile.library, cufile.nvidia_fs = str(LIBRARY), str(nvidia_fs or "/nowhere")
        compiler = str(LIBRARY.with_name("libfake_nvrtc.so"))
        native = _native.cuda_device(
            0, _native.Checking.ON, 1, str(LIBRARY), compiler, cufile=cufile
        )
        super().__init__(native, torch.device("cpu"), _native.ArrayDevice.HOST)
        self.is_host = False
        self.link_bytes_per_second = 25e9  # the same plan each time
        self.settle = self.native.synchronize


class FakeDriver:
    """Its controls, as fake_cuda.h has them for C++: one driver for all tests of the process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(LIBRARY))
        self._library.fake_cuda_calls.restype = ctypes.c_longlong
        self._library.fake_cuda_get.restype = ctypes.c_longlong
        self._library.fake_cuda_set.argtypes = [ctypes.c_char_p, ctypes.c_longlong]

    def set(self, setting: str, value: int) -> None:
        self._library.fake_cuda_set(setting.encode(), value)

    def fail(self, function: str, nth: int, result: int) -> None:
        self._library.fake_cuda_fail(function.encode(), nth, result)

    def all_calls(self) -> int:
        calls: int = self._library.fake_cuda_get(b"calls")
        return calls

    def calls(self, function: str) -> int:
        calls: int = self._library.fake_cuda_calls(function.encode())
        return calls


class FakeTorchMemory:
    """Stands for torch's CUDA allocator: pools are numbers, and segments the engine's, by its functions."""

    def __init__(self) -> None:
        self.has_pools = True
        self.captures = False
        self.keeps_whole = False
        self.releases = 0
        self.pools: list[int] = []
        self.gone: list[int] = []
        self.used: list[tuple[str, int]] = []
        self.active: list[int] = []
        self.caps: list[float] = []
        self.kept: list[int] = []  # free segments, by the latest pool
        library = ctypes.CDLL(_native.__file__)
        self._alloc, self._free = library.ts_torch_alloc, library.ts_torch_free
        self._alloc.restype = ctypes.c_void_p
        self._alloc.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
        self._free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
        self._free.restype = None

    def make_pool(self, index: int) -> int:
        assert index == 0
        if not self.has_pools:
            raise RuntimeError("no pools here")
        for segment in self.kept:
            self.free(segment)
        self.kept.clear()
        self.pools.append(len(self.pools))
        return self.pools[-1]

    @contextlib.contextmanager
    def use(self, pool: int, index: int) -> Iterator[None]:
        assert index == 0
        assert pool not in self.active, "torch takes a pool for one thread"
        self.active.append(pool)
        try:
            yield
        finally:
            self.active.remove(pool)

    def let_go(self, pool: int, index: int) -> None:
        assert index == 0
        assert pool not in self.gone, "torch ends the process where a pool is let go twice"
        self.gone.append(pool)

    def release_free(self) -> bool:
        if self.captures:
            return False
        self.releases += 1
        return True

    def cap(self, share: float, index: int) -> None:
        self.caps.append(share)

    def keep_large_blocks_whole(self) -> bool:
        changes, self.keeps_whole = not self.keeps_whole, True
        return changes

    def malloc(self, size_bytes: int) -> int:
        """As torch asks inside a pool.

        Raises:
            OutOfMemoryError: As torch's, where it is refused.
        """
        assert self.active, "outside a pool"
        data: int | None = self._alloc(size_bytes, 0, None)
        if data is None:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size_bytes}")
        return data

    def free(self, data: int) -> None:
        """As torch gives a segment back."""
        self._free(data, 0, 0, None)


class FakeGpuWithTorch(FakeGpu):
    """The same, with torch's allocator under the engine's ceiling."""

    def __init__(self, memory: FakeTorchMemory) -> None:
        super().__init__()
        self.memory = memory

    def torch_memory(self) -> FakeTorchMemory:
        return self.memory


def use_fake_gpu(
    monkeypatch: pytest.MonkeyPatch,
    *,
    homes: bool | int,
    memory: FakeTorchMemory | None = None,
    link_bytes_per_second: float | None = None,
    nvidia_fs: Path | None = None,
    copies_from_files: bool = False,
) -> None:
    """Makes models run on it; without `homes`, none of their weights fits host memory, or so many bytes.

    With a slow link a small model waits for it, and not for the host, as a large one does on a GPU. Files are
    read, also where folders for tests are in RAM, but with `copies_from_files`.
    """
    assert LIBRARY.exists(), f"{LIBRARY} is missing: make test-cpp builds it"
    ram_bytes = RING_BYTES + int(homes)
    FakeDriver().set("source_register_supported", int(copies_from_files))

    def opened(device: Any, self_check: bool) -> FakeGpu:
        made = FakeGpu(nvidia_fs) if memory is None else FakeGpuWithTorch(memory)
        if link_bytes_per_second is not None:
            made.link_bytes_per_second = link_bytes_per_second
        return made

    monkeypatch.setattr(orchestrator, "open_device", opened)
    monkeypatch.setattr(backends, "open_device", opened)
    # The same plan each time, however busy the disk is, or was when it was measured.
    monkeypatch.setattr(tiers, "disk_bytes_per_second", lambda path: DISK_BYTES_PER_SECOND)
    monkeypatch.setattr(
        orchestrator,
        "_ram_budget",
        lambda config: None if homes is True else _native.create_budget(ram_bytes),
    )


def fake_torch_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchMemory]:
    """Models run on the fake GPU with torch's allocator under the budget, and wait for its link."""
    made = FakeTorchMemory()
    use_fake_gpu(monkeypatch, homes=True, memory=made, link_bytes_per_second=25e6)
    yield made
    assert made.active == []
