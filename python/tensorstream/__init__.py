"""Runs PyTorch models larger than memory, unchanged and bit-identical, by streaming their weights."""

from tensorstream import log as _log
from tensorstream._native import version as __version__
from tensorstream.api import analyze, estimate_memory, offload, plan, restore, set_budget, stats
from tensorstream.backends import BackendProbe, probe_backends
from tensorstream.config import Config
from tensorstream.exceptions import (
    BudgetError,
    ConfigError,
    CudaError,
    CufileError,
    FormatError,
    IoError,
    LeaseError,
    TensorStreamError,
    UnsupportedError,
)
from tensorstream.io import pack, unpack, verify
from tensorstream.loading import from_pretrained
from tensorstream.report import (
    CheckpointReport,
    GroupInfo,
    MemoryEstimate,
    ModelAnalysis,
    Plan,
    Stats,
)

__all__ = [
    "BackendProbe",
    "BudgetError",
    "CheckpointReport",
    "Config",
    "ConfigError",
    "CudaError",
    "CufileError",
    "FormatError",
    "GroupInfo",
    "IoError",
    "LeaseError",
    "MemoryEstimate",
    "ModelAnalysis",
    "Plan",
    "Stats",
    "TensorStreamError",
    "UnsupportedError",
    "__version__",
    "analyze",
    "estimate_memory",
    "from_pretrained",
    "offload",
    "pack",
    "plan",
    "probe_backends",
    "restore",
    "set_budget",
    "stats",
    "unpack",
    "verify",
]

_log.connect()
