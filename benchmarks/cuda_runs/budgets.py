"""Budgets as text: bytes ("1.25GiB") or a multiple of the weights ("x0.25")."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}


def budget_bytes(text: str, weights_bytes: int) -> int:
    """Bytes of a budget; "x0.25" is a quarter of `weights_bytes`."""
    if text.startswith("x"):
        return int(float(text[1:]) * weights_bytes)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]i?B)?", text)
    if found is None:
        raise SystemExit(f"budget '{text}': give bytes as '1.25GiB', or 'x0.25' of the weights")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def budget_options(device: str, size_bytes: int) -> dict[str, Any]:
    """The options of tensorstream that say a device and its budget, of weights that stay raw."""
    budget = "ram_budget" if device == "cpu" else "vram_budget"
    return {"device": device, budget: size_bytes, "compression": "none"}
