"""Plans a model for its tiers: device memory, host memory, files, and how the files are read."""

from __future__ import annotations

import dataclasses
import functools

from tensorstream import _native
from tensorstream.compute_device import ComputeDevice
from tensorstream.config import Config
from tensorstream.disk_rate import disk_bytes_per_second
from tensorstream.exceptions import BudgetError, UnsupportedError
from tensorstream.sources import Sources
from tensorstream.walk import Walk

# What "auto" may be.
NAMES = {
    _native.FileBackend.PREAD: "pread",
    _native.FileBackend.DIRECT: "direct",
    _native.FileBackend.CACHED: "cached",
    _native.FileBackend.GPUDIRECT: "gpudirect",
}


@dataclasses.dataclass
class TierPlan:
    """What was decided.

    Attributes:
        planned: Groups and their places.
        config: The user's options, with the backend that was chosen.
        disk_bytes_per_second: What the disk gives; None where it does not matter or is not known.
        about: How files are read, and why.
    """

    planned: _native.ModelPlan
    config: Config
    disk_bytes_per_second: float | None
    about: str


def plan_tiers(
    config: Config,
    found: Walk,
    sources: Sources,
    device: ComputeDevice,
    budgets: tuple[int, int | None],
) -> TierPlan:
    """Plans for `budgets`, of the device and of host memory, and opens files anew where that is better."""
    budget_bytes, ram_bytes = budgets
    found.tree.add_fixed_bytes(sources.device_bytes)  # guard: readers-memory
    sources.note_pinned(found)
    planned = config.plan(found.tree, budget_bytes, device, ram_bytes=ram_bytes)
    rate = None
    if planned.plan.disk_bytes:
        rate = disk_rate(sources.largest_file())
        planned = config.plan(found.tree, budget_bytes, device, ram_bytes=ram_bytes, disk_rate=rate)
    if config.backend != "auto":
        about = f"{config.backend} (asked for): {sources.how_read()}"
        return TierPlan(planned, config, rate, about)
    choose = functools.partial(
        _native.choose_backend,
        planned.plan,
        device.compute_place,
        _native.ram_room(),
        _native.cached_files([*sources.plain_files, *sources.packed_files]),
    )
    choice = choose(_native.probe_peer_to_peer(device.native))
    try:
        if choice.backend == _native.FileBackend.GPUDIRECT:
            taken = _native.FileOpener(choice.backend, device.native).device_memory_bytes
            config.plan(found.tree, max(0, budget_bytes - taken), device, ram_bytes=ram_bytes)
            sources.open_anew(choice.backend, device.native)
            found.tree.add_fixed_bytes(sources.device_bytes)
    # Of a file, as it was proven of the device; or there is no room for what cuFile takes.
    except (UnsupportedError, BudgetError) as error:
        choice = choose(_native.ProbeResult(False, False, str(error)))
    name, reason = NAMES[choice.backend], choice.reason
    if name not in ("pread", "gpudirect"):
        try:
            sources.open_anew(choice.backend, device.native)
        except UnsupportedError as error:
            name, reason = "pread", f"{choice.reason}, but {error}"
    if name != "pread":
        sources.note_pinned(found)
        config = dataclasses.replace(config, backend=name)
        planned = config.plan(found.tree, budget_bytes, device, ram_bytes=ram_bytes, disk_rate=rate)
    return TierPlan(planned, config, rate, f"{name} (auto: {reason}): {sources.how_read()}")


def disk_rate(path: str | None) -> float | None:
    """As disk_bytes_per_second(), for no file too."""
    return None if path is None else disk_bytes_per_second(path)
