"""Where Python's packages have NVRTC, the compiler of the engine's kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Of the packages nvidia-cuda-nvrtc (13 and newer) and nvidia-cuda-nvrtc-cu12.
_FOLDERS = ("cu13/lib", "cuda_nvrtc/lib")


def compiler_folders() -> list[str]:
    """The folders of installed packages that NVRTC may be in, which no loader knows."""
    package = importlib.util.find_spec("nvidia")
    roots = [] if package is None else package.submodule_search_locations or []
    candidates = [Path(root, folder) for root in roots for folder in _FOLDERS]
    return [str(folder) for folder in candidates if folder.is_dir()]
