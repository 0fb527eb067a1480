"""What TensorStream shows: plans, analyses and statistics as plain values."""

from __future__ import annotations

import dataclasses
from typing import Any

from tensorstream import _native


@dataclasses.dataclass(frozen=True)
class GroupInfo:
    """One group: weights that are loaded and released together.

    Attributes:
        name: The module, or the tensor, that the group is.
        size_bytes: Bytes of its weights.
        dtypes: The element types of its weights.
        placement: "resident", "resident coded", "streamed", "streamed from disk" or "on demand"; empty before
            a plan. What is streamed otherwise comes from host memory, on the CPU also from files.
    """

    name: str
    size_bytes: int
    dtypes: tuple[str, ...]
    placement: str = ""


@dataclasses.dataclass(frozen=True)
class ModelAnalysis:
    """What a model is made of.

    Attributes:
        groups: By structure: repeated blocks, large leaves.
        weights_bytes: All parameters, tied ones once.
        fixed_bytes: Buffers, and parameters that cannot be streamed.
        ties: Sets of names that are one tensor.
        left: Parameters that cannot be streamed, with the reason.
    """

    groups: tuple[GroupInfo, ...]
    weights_bytes: int
    fixed_bytes: int
    ties: tuple[tuple[str, ...], ...]
    left: dict[str, str]

    def __str__(self) -> str:
        rows = [f"{group.name or '(model)'}: {size(group.size_bytes)}" for group in self.groups]
        head = f"{size(self.weights_bytes)} of weights in {len(rows)} groups"
        return "\n".join([head, *rows])


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """What budgets mean for a model, in bytes. Activations and caches come on top.

    Attributes:
        weights_bytes: All parameters.
        smallest_budget_bytes: The smallest budget that works; loading is synchronous there.
        everything_fits_bytes: From this budget on all weights are resident as they are.
    """

    weights_bytes: int
    smallest_budget_bytes: int
    everything_fits_bytes: int

    def __str__(self) -> str:
        return (
            f"{size(self.weights_bytes)} of weights; smallest budget "
            f"{size(self.smallest_budget_bytes)}; nothing is streamed from "
            f"{size(self.everything_fits_bytes)} on"
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which group lives where, and what that predicts. Sizes in bytes, times in seconds.

    Attributes:
        groups: In the order of use, with their placements.
        budget_bytes: What the plan was made for.
        resident_bytes: On the device for good, buffers included.
        kept_bytes: What groups that are resident coded take: they are decoded at each use.
        kept_weights_bytes: What these are as weights.
        arena_bytes: Memory that streamed groups, and those that are resident coded, compute in.
        streamed_bytes: Loaded in each pass over the model, by the places that these take: up to 4 KiB a group
            more than what is moved.
        link_bytes: What of these crosses the link: less where weights cross it coded.
        disk_bytes: What of these is read from files, as it finds no room in host memory beside a GPU.
        home_bytes: Pinned host memory that the others take beside a GPU.
        ring_bytes: Device memory that coded weights are decoded from, beside residents and arena.
        on_demand_bytes: Tables of which rows are read.
        smallest_budget_bytes: The smallest budget that works.
        everything_fits_bytes: From this budget on all weights are resident as they are.
        exposed_loads: Loads of one pass that cannot overlap with the use before them; 0 where groups
            are loaded at their use, as all of them are then.
        predicted_seconds: Time of one pass at batch 1, by the model of time: the link's rate as it was
            measured when the device was opened, the disk's where files are read, and of the host what
            is usual for so many parameters, by what an operation was measured to take of it then.
            Stats has it by what forwards took. What the GPU computes for is not known, and left out.
        bound: What bounds it: "link", "disk", "decode", "compute", "host" (Python and its leases) or
            "nothing streamed".
    """

    groups: tuple[GroupInfo, ...]
    budget_bytes: int
    resident_bytes: int
    kept_bytes: int
    kept_weights_bytes: int
    arena_bytes: int
    streamed_bytes: int
    link_bytes: int
    disk_bytes: int
    home_bytes: int
    ring_bytes: int
    on_demand_bytes: int
    smallest_budget_bytes: int
    everything_fits_bytes: int
    exposed_loads: int
    predicted_seconds: float
    bound: str

    def __str__(self) -> str:
        counts = dict.fromkeys((*PLACEMENTS.values(), FROM_DISK), 0)
        for group in self.groups:
            counts[group.placement] += 1
        coded = f", in {size(self.link_bytes)} coded" if self.ring_bytes else ""
        kept = ""
        if self.kept_bytes:
            kept = f"{size(self.kept_weights_bytes)} more in {size(self.kept_bytes)} coded, "
        shown = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        disk = f", {size(self.disk_bytes)} of it from disk" if self.disk_bytes else ""
        return (
            f"budget {size(self.budget_bytes)}: {shown} groups; {size(self.resident_bytes)} resident, "
            f"{kept}{size(self.arena_bytes)} arena; {size(self.streamed_bytes)} streamed a pass{coded}{disk}"
        )


@dataclasses.dataclass(frozen=True)
class Compression:
    """How weights are kept in host memory beside a GPU.

    Attributes:
        level: 0 where they are as they are.
        ratio: What they take there, as a share of their bytes; 1 where nothing is coded.
        reason: Why this level.
    """

    level: int
    ratio: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Stats:
    """What the engine did for one model since it was offloaded. Bytes and seconds.

    Attributes:
        backend: How files are read, and why.
        compression: How weights are kept in host memory beside a GPU, and why.
        budget_bytes: The ceiling.
        held_bytes: What the engine holds of it now.
        peak_held_bytes: The most it ever held.
        kept_bytes: What of it keeps weights coded.
        given_way_bytes: Resident weights that gave way to torch's allocations and are streamed now.
        gave_way: How many groups ever did.
        torch_bytes: What torch holds of the budget now: its segments of this model's forwards and backwards.
        beyond_bytes: What torch was ever given beyond the budget, under pressure="lenient".
        refusals: Requests of torch that were refused.
        source_ram_bytes: Weights that host RAM owns: made while loading, or written by the user.
        pinned_bytes: Host RAM that a GPU loads weights from by itself, coded ones as they are there.
        staging_bytes: Host RAM beside that through which a GPU gets what is read from files.
        ram_budget_bytes: The ceiling of both beside a GPU; 0 where none was given.
        ram_held_bytes: What is held of it now.
        peak_ram_held_bytes: The most that ever was, with memory that weights were coded in.
        acquires: Leases of streamed groups.
        hits: Leases that found their group on the device.
        partial_hits: Leases that found its load under way.
        misses: Leases that had to start the load.
        surprises: Uses in another order than the learnt one.
        loads: Groups loaded.
        streamed_bytes: Bytes moved by loads, from RAM and from disk; coded ones as they cross the link.
        streamed_ram_bytes: Of these, from RAM.
        streamed_disk_bytes: Of these, from files.
        read_ahead_bytes: Of these, what was read, or on its way, before its load began, beside a GPU.
        decoded_bytes: What all of these are as weights.
        kept_decoded_bytes: Weights that were decoded from what the device keeps: no load moved them.
        on_demand_bytes: Rows, and tensors read between uses.
        streamed_bytes_per_second: The rate of loads while they ran.
        load_seconds: Time that loads took.
        stalled_seconds: Time that forwards waited for loads.
        stalled_share: That, as a share of the time since the first lease.
        host_seconds: What Python took for a forward beside leases and stalls, by the median of the last
            whole ones; 0 before three were run, and on a CPU.
        predicted_seconds: Time of one pass at batch 1 by the plan that the groups follow, as Plan has
            it, but with host_seconds once that is known.
    """

    backend: str
    compression: Compression
    budget_bytes: int
    held_bytes: int
    peak_held_bytes: int
    kept_bytes: int
    given_way_bytes: int
    gave_way: int
    torch_bytes: int
    beyond_bytes: int
    refusals: int
    source_ram_bytes: int
    pinned_bytes: int
    staging_bytes: int
    ram_budget_bytes: int
    ram_held_bytes: int
    peak_ram_held_bytes: int
    acquires: int
    hits: int
    partial_hits: int
    misses: int
    surprises: int
    loads: int
    streamed_bytes: int
    streamed_ram_bytes: int
    streamed_disk_bytes: int
    read_ahead_bytes: int
    decoded_bytes: int
    kept_decoded_bytes: int
    on_demand_bytes: int
    streamed_bytes_per_second: float
    load_seconds: float
    stalled_seconds: float
    stalled_share: float
    host_seconds: float
    predicted_seconds: float


@dataclasses.dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint is made of, packed or not.

    Attributes:
        files: Safetensors files.
        tensors: Tensors in them, as they are named by who made the checkpoint.
        encoded_tensors: Of these, those that are coded.
        original_bytes: The safetensors files as they were made.
        stored_bytes: The same files as they are now.
    """

    files: int
    tensors: int
    encoded_tensors: int
    original_bytes: int
    stored_bytes: int

    @property
    def ratio(self) -> float:
        """What is stored, as a share of what was made."""
        return self.stored_bytes / self.original_bytes if self.original_bytes else 1.0

    def __str__(self) -> str:
        return (
            f"{self.tensors} tensors in {self.files} files, {self.encoded_tensors} of them coded: "
            f"{size(self.original_bytes)}, stored in {size(self.stored_bytes)} ({self.ratio:.3f})"
        )


PLACEMENTS = {
    _native.Placement.RESIDENT: "resident",
    _native.Placement.RESIDENT_CODED: "resident coded",
    _native.Placement.STREAMED: "streamed",
    _native.Placement.ON_DEMAND: "on demand",
}
FROM_DISK = "streamed from disk"


def size(size_bytes: int) -> str:
    """A size as text for people."""
    return str(_native.format_size(size_bytes))


def group_infos(
    tree: _native.ModelTree,
    grouping: _native.Grouping,
    plan: _native.Plan | None = None,
) -> tuple[GroupInfo, ...]:
    """The groups of a model, with their placements where a plan gave them."""
    shown = [""] * len(grouping.groups)
    if plan is not None:
        shown = [
            FROM_DISK if from_disk else PLACEMENTS[placement]
            for placement, from_disk in zip(plan.placements, plan.from_disk, strict=True)
        ]
    return tuple(
        GroupInfo(
            group.name,
            tree.size_bytes(group.tensors),
            tuple(sorted(set(tree.dtypes(group.tensors)))),
            placement,
        )
        for group, placement in zip(grouping.groups, shown, strict=True)
    )


def make_plan(tree: _native.ModelTree, planned: _native.ModelPlan) -> Plan:
    """A plan as plain values."""
    native = planned.plan
    groups = group_infos(tree, planned.grouping, native)
    numbers = [field.name for field in dataclasses.fields(Plan) if field.name != "groups"]
    return Plan(groups, **{name: getattr(native, name) for name in numbers})


def make_stats(
    statistics: _native.Statistics, torch_part: _native.CeilingStatistics | None, backend: str
) -> Stats:
    """Statistics as plain values."""
    chosen = statistics.compression
    values: dict[str, Any] = {
        "compression": Compression(chosen.level, chosen.ratio, chosen.reason),
        "torch_bytes": 0 if torch_part is None else torch_part.torch_bytes,
        "beyond_bytes": 0 if torch_part is None else torch_part.beyond_bytes,
        "refusals": 0 if torch_part is None else torch_part.refusals,
    }
    for field in dataclasses.fields(Stats):
        if field.name != "backend" and field.name not in values:
            values[field.name] = getattr(statistics, field.name)
    return Stats(backend, **values)


def make_checkpoint_report(summary: _native.CheckpointSummary) -> CheckpointReport:
    """What a checkpoint is made of as plain values."""
    names = [field.name for field in dataclasses.fields(CheckpointReport)]
    return CheckpointReport(**{name: getattr(summary, name) for name in names})
