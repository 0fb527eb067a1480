"""A GPU without a GPU: the engine's CUDA device on the fake driver, whose memory is host memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tensorstream import _native, orchestrator
from tensorstream.compute_device import ComputeDevice

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = Path(
    os.environ.get("TENSORSTREAM_FAKE_CUDA", ROOT / "build/dev/tests/cpp/fake_cuda/libfake_cuda.so")
)


class FakeGpu(ComputeDevice):
    """Torch computes on the CPU with the "device's" memory, once its default stream is drained."""

    def __init__(self) -> None:
        native = _native.cuda_device(0, _native.Checking.ON, 1, str(LIBRARY))
        super().__init__(native, torch.device("cpu"), _native.ArrayDevice.HOST)
        self.is_host = False

    def settle(self) -> None:
        self.native.synchronize()


def use_fake_gpu(monkeypatch: pytest.MonkeyPatch, *, homes: bool) -> None:
    """Makes models run on it; without `homes`, none of their weights fits host memory."""
    assert LIBRARY.exists(), f"{LIBRARY} is missing: make test-cpp builds it"
    ring_bytes = 64 << 20  # a ring for staging is all that fits
    monkeypatch.setattr(orchestrator, "open_device", lambda device, self_check: FakeGpu())
    monkeypatch.setattr(
        orchestrator,
        "_ram_budget",
        lambda config: None if homes else _native.create_budget(ring_bytes),
    )
