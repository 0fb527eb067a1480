"""Where the model computes. CudaAccelerator holds every call of this benchmark to torch.cuda."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

LINK_SIZES_BYTES = (16 << 20, 32 << 20, 64 << 20)
_COPIES = 8  # of one timing
_TIMINGS = 6  # of one size; the best counts


class Accelerator(Protocol):
    """The few things that differ between a GPU and the CPU of a dry run."""

    device: torch.device

    def synchronize(self) -> None:
        """Waits for all work of the device."""

    def release_cached(self) -> None:
        """Gives back what torch's allocator holds and nobody uses."""

    def free_bytes(self) -> int | None:
        """Free memory by the driver's count; None where there is no driver."""

    def reserved_bytes(self) -> int:
        """What torch's allocator holds of the device."""

    def seconds_of_copies(self, size_bytes: int) -> float:
        """Seconds that one copy of a size takes from pinned host memory, of several in a row."""


class CudaAccelerator:
    """One CUDA device through torch."""

    def __init__(self, device: str) -> None:
        if not torch.cuda.is_available():
            raise SystemExit(
                f"device '{device}': torch {torch.__version__} finds no CUDA device here; "
                "for a run without one give --device cpu --dry-run"
            )
        named = torch.device(device)
        self.device = torch.device("cuda", named.index or 0)
        torch.cuda.set_device(self.device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def release_cached(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def free_bytes(self) -> int | None:
        return torch.cuda.mem_get_info(self.device)[0]

    def reserved_bytes(self) -> int:
        return torch.cuda.memory_reserved(self.device)

    def seconds_of_copies(self, size_bytes: int) -> float:
        source = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).fill_(1)
        target = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(_COPIES):
            target.copy_(source, non_blocking=True)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / _COPIES


class HostAccelerator:
    """The CPU, for dry runs: the same calls, and no driver to ask."""

    device = torch.device("cpu")

    def synchronize(self) -> None:
        pass

    def release_cached(self) -> None:
        pass

    def free_bytes(self) -> int | None:
        return None

    def reserved_bytes(self) -> int:
        return 0

    def seconds_of_copies(self, size_bytes: int) -> float:
        source = torch.ones(size_bytes, dtype=torch.uint8)
        target = torch.empty_like(source)
        start = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start


def open_accelerator(device: str) -> Accelerator:
    """The device of that name.

    Raises:
        SystemExit: It is a CUDA device and torch finds none.
    """
    return HostAccelerator() if device == "cpu" else CudaAccelerator(device)


def link_rate(accelerator: Accelerator) -> dict[str, Any]:
    """The best rate of copies from pinned host memory, of some sizes, several times each.

    Torch's pinned memory may be slower than pages of 2 MiB that are registered, which the engine
    measures: what is compared with the link has to stand the faster one.
    """
    rates: dict[str, float] = {}
    for size_bytes in LINK_SIZES_BYTES:
        seconds = [accelerator.seconds_of_copies(size_bytes) for _ in range(_TIMINGS)]
        rates[f"{size_bytes >> 20} MiB"] = size_bytes / min(seconds)
    if accelerator.device.type == "cuda":
        from tensorstream.compute_device import open_device

        measured = open_device(accelerator.device, self_check=False).native.measure_link()
        rates["64 MiB, registered"] = measured
    return {"link_bytes_per_second": max(rates.values()), "by_size": rates}
