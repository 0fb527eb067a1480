"""Which ways to read files can be had here, and why the others cannot."""

from __future__ import annotations

import dataclasses

import torch

from tensorstream import _native
from tensorstream.compute_device import open_device
from tensorstream.config import BACKENDS, Config


@dataclasses.dataclass(frozen=True)
class BackendProbe:
    """What can be had of a backend.

    Attributes:
        usable: Whether models on the device can be read so. A file system may still refuse a file.
        peer_to_peer: Of "gpudirect": whether it is proven that the disk writes to the GPU's memory itself.
        reason: How files are read, or why they cannot be.
    """

    usable: bool
    peer_to_peer: bool
    reason: str


def probe_backends(device: str | torch.device | None = None) -> dict[str, BackendProbe]:
    """Asks each backend, by the name that `Config.backend` has for it, whether it can be used here.

    "auto" is none of them: what it is for a model `stats(model).backend` says. To ask "gpudirect" opens
    cuFile, which writes a cufile.log to the working folder.

    Args:
        device: Where models are to compute, as in `Config`.
    """
    native = open_device(Config(device=device).torch_device, self_check=False).native
    return {name: _probe(backend, native) for name, backend in BACKENDS.items() if name != "auto"}


def _probe(backend: _native.FileBackend, device: _native.Device) -> BackendProbe:
    result = _native.probe(backend, device)
    return BackendProbe(result.is_usable, result.is_peer_to_peer, result.reason)
