"""Where Python's packages have NVIDIA's libraries that the engine opens: no loader knows their folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def compiler_folders() -> list[str]:
    """The folders that NVRTC, the compiler of kernels, may be in."""
    # Of the packages nvidia-cuda-nvrtc (13 and newer) and nvidia-cuda-nvrtc-cu12.
    return _folders("cu13/lib", "cuda_nvrtc/lib")


def cufile_folders() -> list[str]:
    """The folders that cuFile may be in."""
    # Of the packages nvidia-cufile (13 and newer) and nvidia-cufile-cu12.
    return _folders("cu13/lib", "cufile/lib")


def _folders(*names: str) -> list[str]:
    package = importlib.util.find_spec("nvidia")
    roots = [] if package is None else package.submodule_search_locations or []
    candidates = [Path(root, name) for root in roots for name in names]
    return [str(folder) for folder in candidates if folder.is_dir()]
