"""The machine sheet of a result: hardware, driver, versions, date and commit. Imports no torch."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMIT_VARIABLE = "TENSORSTREAM_COMMIT"
PACKAGES = (
    "tensorstream torch transformers accelerate diffusers safetensors nanobind scikit-build-core cmake "
    "pytest numpy"
).split()
_GPU_FIELDS = {
    "name": str,
    "driver_version": str,
    "memory.total": int,
    "pcie.link.gen.max": str,
    "pcie.link.width.max": str,
}


def commit() -> str:
    """The commit that is measured: git's word, else that of TENSORSTREAM_COMMIT."""
    said = os.environ.get(COMMIT_VARIABLE)
    if said:
        return said
    described = first_line("git", "describe", "--always", "--dirty", "--abbrev=12", folder=ROOT)
    return described or "unknown"


def gpus() -> list[dict[str, Any]]:
    """Each GPU as nvidia-smi tells it; memory in MiB. Empty where there is no nvidia-smi."""
    query = f"--query-gpu={','.join(_GPU_FIELDS)}"
    text = output_of("nvidia-smi", query, "--format=csv,noheader,nounits") or ""
    found = []
    for line in text.strip().splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(_GPU_FIELDS):
            pairs = zip(_GPU_FIELDS.items(), values, strict=True)
            found.append({name: _as(kind, value) for (name, kind), value in pairs})
    return found


def machine_sheet() -> dict[str, Any]:
    """Everything that a number of this run depends on and that can be asked for."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "gpus": gpus(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "compiler": first_line("g++", "--version"),
        "nvcc": last_line("nvcc", "--version"),
        "load_average_at_start": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output_of(*command: str, folder: Path | None = None) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def first_line(*command: str, folder: Path | None = None) -> str | None:
    """The first line that a command prints, or None."""
    lines = (output_of(*command, folder=folder) or "").strip().splitlines()
    return lines[0] if lines else None


def last_line(*command: str) -> str | None:
    """The last line that a command prints, or None."""
    lines = (output_of(*command) or "").strip().splitlines()
    return lines[-1] if lines else None


def _as(kind: type, value: str) -> Any:
    try:
        return kind(value)
    except ValueError:  # "[N/A]"
        return value


def _cpu() -> str:
    try:
        information = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [row.split(":")[1].strip() for row in information.splitlines() if "model name" in row]
    return names[0] if names else platform.processor()
