"""What must be shown, and what was: the table of targets. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from cuda_runs.comparison import Ways, row_named, rows_of

OURS = ("tensorstream-", "coded-")
# Each of these has to be there; others count where they are.
LOADING_PEERS = ("native", "fastsafetensors", "runai-model-streamer")
AT_MOST, AT_LEAST, BELOW = "at most", "at least", "below"
_MET: dict[str, Callable[[float, float], bool]] = {
    AT_MOST: lambda reached, target: reached <= target,
    AT_LEAST: lambda reached, target: reached >= target,
    BELOW: lambda reached, target: reached < target,
}


@dataclasses.dataclass(frozen=True)
class Target:
    """One line of the table. `target` and `reached` are None where they were not measured.

    Its name is the same in every run, so that runs of different ways can be laid together; `of` says
    of how many runs or rows it is the worst, or of how many rounds that of the quietest minute.
    """

    name: str
    comparison: str
    target: float | None
    reached: float | None
    unit: str
    of: int | None = None

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where that is not known."""
        if self.target is None or self.reached is None:
            return None
        return _MET[self.comparison](self.reached, self.target)

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "met": self.met}


def seconds_of(ways: Ways, way: str, name: str) -> float | None:
    """The median of a row, or None."""
    row = row_named(ways, way, name)
    return None if row is None else row["seconds_median"]


def ratio(one: float | None, other: float | None) -> float | None:
    """One divided by the other, where both are known."""
    return None if one is None or not other else one / other


def times(factor: float, value: float | None) -> float | None:
    """A multiple of what may not be known."""
    return None if value is None else factor * value


def needed_bytes(way: dict[str, Any], streamed_a_pass: int | None) -> int | None:
    """Bytes that a pass has to move: neither resident ones, coded or not, nor tables read by rows.

    What was moved in truth counts where it is less; where it is more, the rest was useless.
    """
    plan = way.get("plan")
    if plan is None:
        return None
    on_device = plan["resident_bytes"] + plan.get("kept_weights_bytes", 0)
    planned = way["weights_bytes"] - on_device - plan["on_demand_bytes"]
    return min(planned, streamed_a_pass) if streamed_a_pass else planned


def moved_bytes(way: dict[str, Any], streamed_a_pass: int | None) -> int | None:
    """Bytes that a pass with activations moved: residents that gave way to them included.

    No more than all weights less the tables read by rows, however often some were moved.
    """
    plan = way.get("plan")
    if plan is None or streamed_a_pass is None:
        return None
    return min(way["weights_bytes"] - plan["on_demand_bytes"], streamed_a_pass)


def decode_target(ways: Ways, link: float, way: str, share: float) -> Target:
    """A decode step against the time that the link needs for its bytes."""
    row = row_named(ways, way, "decode/1") or {}
    needed = needed_bytes(ways.get(way, {}), row.get("streamed_bytes_a_pass"))
    bound = ratio(needed, link)
    name = f"{way}: decode, batch 1, against bytes / link / {share}"
    return Target(name, AT_MOST, times(1 / share, bound), row.get("seconds_median"), "s")


def prefill_targets(ways: Ways, link: float, way: str) -> list[Target]:
    """Prefills: the largest against native, others against the larger of native and the link."""
    made = []
    for batch in (1, 4):
        name = f"prefill/{batch}"
        row = row_named(ways, way, name) or {}
        native = seconds_of(ways, "native", name)
        moved = moved_bytes(ways.get(way, {}), row.get("streamed_bytes_a_pass"))
        bound = None if native is None or moved is None else max(native, moved / link)
        said = f"{way}: {name}, against max(native, bytes / link)"
        made.append(Target(said, AT_MOST, times(1.05, bound), row.get("seconds_median"), "s"))
    largest = seconds_of(ways, way, "prefill/8")
    native = seconds_of(ways, "native", "prefill/8")
    made.append(Target(f"{way}: prefill/8", AT_MOST, 1.02, ratio(largest, native), "x native"))
    return made


def coded_decode_target(ways: Ways, link: float, budget: str, gain: float) -> Target:
    """A decode step of coded weights against the time that the link needs for raw ones."""
    raw = ways.get(f"tensorstream-{budget}", {})
    streamed = (row_named(ways, f"tensorstream-{budget}", "decode/1") or {}).get(
        "streamed_bytes_a_pass"
    )
    bound = ratio(needed_bytes(raw, streamed), link)
    seconds = seconds_of(ways, f"coded-{budget}", "decode/1")
    name = f"coded-{budget}: decode, batch 1, faster than raw bytes / link"
    return Target(name, AT_LEAST, gain, ratio(bound, seconds), "x")


def coded_targets(ways: Ways, link: float) -> list[Target]:
    """The rows of coded weights."""
    one, sixteen = (
        (row_named(ways, "coded-small", f"decode/{batch}") or {}).get("tokens_per_second")
        for batch in (1, 16)
    )
    batches = Target(
        "coded-small: decode, batch 16", AT_LEAST, 14.0, ratio(sixteen, one), "x batch 1"
    )
    made = [coded_decode_target(ways, link, "small", 1.44), batches]
    made.append(coded_decode_target(ways, link, "smallest", 1.38))
    for share in (25, 50, 75):
        raw = seconds_of(ways, f"tensorstream-{share}-percent", "decode/1")
        coded = seconds_of(ways, f"coded-{share}-percent", "decode/1")
        faster = f"coded-{share}-percent: decode, against the same budget raw"
        made += prediction_targets(ways, f"coded-{share}-percent", 0.07)
        made.append(Target(faster, BELOW, 1.0, ratio(coded, raw), "x raw"))
    for batch, most in ((4, 1.05), (8, 1.03)):
        name = f"prefill/{batch}"
        reached = (row_named(ways, "coded-paired", name) or {}).get("ratio_of_medians")
        title = f"coded-paired: {name}, paired with native"
        made.append(Target(title, AT_MOST, most, reached, "x native"))
    small = ways.get("coded-small", {})
    held = small.get("stats", {}).get("pinned_bytes")
    share = ratio(held, small.get("weights_bytes"))
    made.append(Target("coded-small: host RAM that weights take", BELOW, 0.69, share, "x weights"))
    ready = small.get("setup_seconds")
    made.append(Target("coded-small: set-up of a model that is in RAM", BELOW, 8.0, ready, "s"))
    return made


def prediction_targets(ways: Ways, way: str, most: float = 0.05) -> list[Target]:
    """How far a decode step is from the plan.

    Of a step that a host may bound it is what plans say for the host as native steps in turn show it to
    be that has a bound; what was said before the run stands beside it.
    """
    row = row_named(ways, way, "decode/1") or {}
    predicted = ways.get(way, {}).get("plan", {}).get("predicted_seconds")
    before = ratio(seconds_of(ways, way, "decode/1"), predicted)
    beside = row.get("times_predicted")
    name = f"{way}: decode, off the plan's prediction"
    if beside is None:
        return [Target(name, AT_MOST, most, _off(before), "of it")]
    return [
        Target(f"{name} for its host", AT_MOST, most, _off(beside.get("median")), "of it"),
        Target(f"{name} before the run", AT_MOST, None, _off(before), "of it"),
    ]


def _off(times: float | None) -> float | None:
    """How far something is from once."""
    return None if times is None else abs(times - 1)


def everything_targets(ways: Ways, way: str) -> list[Target]:
    """A budget that holds everything costs nothing."""
    found = ways.get(way, {})
    hooks = Target(f"{way}: hooks left on the model", AT_MOST, 0, found.get("hooks"), "hooks")
    paired = [
        Target(
            f"{way}: {name}, paired with native",
            AT_MOST,
            1.01,
            (row_named(ways, way, name) or {}).get("ratio_of_medians"),
            "x native",
        )
        for name in ("prefill/1", "prefill/4", "prefill/8")
    ]
    return [hooks, *paired]


def peak_target(ours: Ways) -> Target:
    """The highest peak of all ways of ours, each as a share of its budget."""
    shares = [
        ratio(way["peak_device_bytes"], way["budget_bytes"])
        for way in ours.values()
        if way.get("peak_device_bytes") is not None
    ]
    reached = max((share for share in shares if share is not None), default=None)
    return Target("peak by the driver's count", AT_MOST, 1.0, reached, "x budget", len(shares))


def identical_target(ours: Ways) -> Target:
    """Rows of ours whose outputs are not the native ones."""
    compared = [
        row.get("identical_to_native", row.get("identical_to_paired"))
        for way in ours.values()
        for row in rows_of(way)
        if "logits_sha256" in row
    ]
    known = [same for same in compared if same is not None]
    wrong = len(known) - sum(known) if known and len(known) == len(compared) else None
    return Target("rows that differ from native", AT_MOST, 0, wrong, "rows", len(compared))


def host_target(ours: Ways) -> Target:
    """Host RAM at its peak as a multiple of the weights."""
    shares = []
    for way in ours.values():
        if "host_bytes_beyond_the_model" in way:
            shares.append(1 + way["host_bytes_beyond_the_model"] / way["weights_bytes"])
        elif "host_bytes" in way:
            shares.append(way["host_bytes"] / way["weights_bytes"])
    reached = max(shares, default=None)
    return Target("host RAM for weights, at its peak", AT_MOST, 1.05, reached, "x weights")


def hook_targets(ways: Ways) -> list[Target]:
    """What acquire and release cost from Python, of the round whose plain calls took least.

    As with the probes of the link, whatever else a host does makes it slower; a plain call has nothing
    of ours.
    """
    rounds = [
        way
        for name, way in ways.items()
        if name.startswith("tensorstream-hooks") and "plain_call_us" in way
    ]
    quietest = min(rounds, key=lambda way: way["plain_call_us"]["median"], default={})
    costs = quietest.get("acquire_release_us", {})
    of = len(rounds) or None
    return [
        Target(f"acquire + release, {kind} block", BELOW, most, costs.get(kind), "us", of)
        for kind, most in (("resident", 15.0), ("streamed", 50.0))
    ]


def llama_targets(ways: Ways, link: float) -> list[Target]:
    """The Llama rows of the table, in its order."""
    ours = {name: way for name, way in ways.items() if name.startswith(OURS)}
    raw = {name: way for name, way in ours.items() if name.startswith("tensorstream-")}
    one, sixteen = (
        (row_named(ways, "tensorstream-small", f"decode/{batch}") or {}).get("tokens_per_second")
        for batch in (1, 16)
    )
    return [
        decode_target(ways, link, "tensorstream-small", 0.97),
        Target(
            "tensorstream-small: decode, batch 16", AT_LEAST, 15.0, ratio(sixteen, one), "x batch 1"
        ),
        decode_target(ways, link, "tensorstream-smallest", 0.93),
        *prefill_targets(ways, link, "tensorstream-prefill"),
        *(
            target
            for share in (25, 50, 75)
            for target in prediction_targets(ways, f"tensorstream-{share}-percent")
        ),
        *everything_targets(ways, "tensorstream-everything"),
        peak_target(ours),
        *hook_targets(ways),
        Target(
            "set-up of a model that is in RAM",
            BELOW,
            3.0,
            ways.get("tensorstream-small", {}).get("setup_seconds"),
            "s",
        ),
        Target(
            "from safetensors in the page cache to the first token",
            BELOW,
            4.0,
            ways.get("tensorstream-checkpoint", {}).get("first_token_seconds"),
            "s",
        ),
        host_target(raw),
        *coded_targets(ways, link),
        identical_target(ours),
    ]


def diffusion_targets(ways: Ways, link: float) -> list[Target]:
    """The diffusion rows of the table."""
    made = []
    for batch in (1, 4):
        way, name = f"tensorstream-batch-{batch}", f"step/{batch}"
        native = seconds_of(ways, "native", name)
        moved = ratio(ways.get(way, {}).get("needed_bytes"), link)
        bound = None if native is None or moved is None else max(native, moved)
        reached = seconds_of(ways, way, name)
        said = f"{way}: a step, against max(native, bytes / link)"
        made.append(Target(said, AT_MOST, times(1.05, bound), reached, "s"))
    four = ratio(
        seconds_of(ways, "tensorstream-batch-4", "step/4"), seconds_of(ways, "native", "step/4")
    )
    made.append(Target("tensorstream-batch-4: a step", AT_MOST, 1.05, four, "x native"))
    ours = {name: way for name, way in ways.items() if name.startswith("tensorstream-")}
    return [*made, peak_target(ours), identical_target(ours)]


def lora_targets(ways: Ways, link: float) -> list[Target]:
    """A step of LoRA with a tenth of the weights on the device, by time and by memory."""
    native = ways.get("native", {})
    ours = {name: way for name, way in ways.items() if name.startswith(OURS)}
    made = []
    for name, way in ours.items():
        for row in rows_of(way):
            theirs = row_named(ways, "native", row["pass"]) or {}
            reached = ratio(row["seconds_median"], theirs.get("seconds_median"))
            made.append(Target(f"{name}: a step", AT_MOST, 1.10, reached, "x native"))
            peak, most = row.get("peak_device_bytes"), theirs.get("peak_device_bytes")
            less = None if peak is None or most is None else most - peak
            said = f"{name}: device memory less than native's"
            made.append(
                Target(said, AT_LEAST, 0.9, ratio(less, native.get("weights_bytes")), "x weights")
            )
    return [*made, identical_target(ours)]


def loading_targets(ways: Ways, link: float) -> list[Target]:
    """A load to the first token against the fastest of the others."""
    name = "first-token"
    ours = {way: ways[way] for way in ways if way.startswith(OURS)}
    times = {way: seconds_of(ways, way, name) for way in ways if way not in ours}
    peers = {way: seconds for way, seconds in times.items() if seconds is not None}
    fastest = min(peers.values()) if all(peer in peers for peer in LOADING_PEERS) else None
    reached = ratio(seconds_of(ways, "tensorstream-load", name), fastest)
    said = "tensorstream-load: first token, against the fastest of the others"
    return [Target(said, AT_MOST, 1.0, reached, "x"), identical_target(ours)]
