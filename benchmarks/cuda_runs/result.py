"""Assembles a result: ways, link, targets, verdict; and shows it as text. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cuda_runs.comparison import Ways, compare_with_native, failures_of, rows_of
from cuda_runs.targets import Target

LOWEST_LINK_BYTES_PER_SECOND = 52e9


def assemble(
    measured: Ways,
    make_targets: Callable[[Ways, float], Sequence[Target]],
    lowest_link: float,
    sheet: dict[str, Any],
) -> dict[str, Any]:
    """The result of one run.

    Args:
        measured: What each process printed; link-before and link-after are the probes of the link.
        make_targets: Of the other ways and the rate of the link.
        lowest_link: Bytes a second; below it the run is void.
        sheet: What is written at the head: the question, the machine, the settings.
    """
    probes = {name: measured[name] for name in measured if name.startswith("link-")}
    ways = {name: way for name, way in measured.items() if name not in probes}
    rates = [probe.get("link_bytes_per_second") for probe in probes.values()]
    link = max((rate for rate in rates if rate is not None), default=None)
    compare_with_native(ways)
    failures = failures_of(measured)
    targets = [] if link is None else [one.as_json() for one in make_targets(ways, link)]
    void = None
    if link is None:
        void = "the link was not probed"
    elif link < lowest_link:
        void = f"the link gave {link / 1e9:.1f} GB/s, less than {lowest_link / 1e9:.1f}"
    return {
        **sheet,
        "link_bytes_per_second": link,
        "void": void,
        "failures": failures,
        "targets": targets,
        "probes": probes,
        "ways": ways,
    }


def faults(result: dict[str, Any], every_target: bool) -> list[str]:
    """Why a run does not pass; with `every_target`, targets that are missed or were not measured."""
    found = [f"failed: {last_line(failure)}" for failure in result["failures"]]
    if result["void"]:
        found.append(f"void: {result['void']}")
    for target in result["targets"] if every_target else ():
        if not target["met"]:
            said = "not measured" if target["met"] is None else "missed"
            found.append(f"{said}: {target['name']}")
    return found


def last_line(failure: str) -> str:
    """A failure in one line: what failed, and the last that it said."""
    lines = failure.strip().splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0].split(': ')[0]}: {lines[-1]}"


def number(value: float | None, unit: str = "") -> str:
    """A number for people: four digits."""
    if value is None:
        return "-"
    return f"{value:.4g}{' ' + unit if unit else ''}"


def gigabytes(value: int | None) -> str:
    """Bytes in GB, or a dash."""
    return "-" if value is None else f"{value / 1e9:.2f}"


def row_lines(ways: Ways) -> list[str]:
    """One line a row."""
    head = f"{'way':<26}{'pass':<12}{'median s':>10}{'min':>10}{'max':>10}{'x native':>10}"
    lines = [f"{head}{'peak GB':>9}  identical"]
    for name, way in ways.items():
        for row in rows_of(way):
            same = row.get("identical_to_native", row.get("identical_to_paired"))
            said = {None: "-", True: "yes", False: "NO"}[same]
            times = (row.get(f"seconds_{what}") for what in ("median", "min", "max"))
            cells = "".join(f"{number(value):>10}" for value in times)
            share = row.get("ratio_of_medians", row.get("times_native"))
            peak = gigabytes(row.get("peak_device_bytes"))
            lines.append(f"{name:<26}{row['pass']:<12}{cells}{number(share):>10}{peak:>9}  {said}")
    return lines


def target_lines(targets: Sequence[dict[str, Any]]) -> list[str]:
    """One line a target: what was asked, what was reached, whether it is met."""
    lines = [f"{'target':<66}{'asked':>22}{'reached':>20}  met"]
    for target in targets:
        asked = f"{target['comparison']} {number(target['target'], target['unit'])}"
        reached = number(target["reached"], target["unit"])
        met = {None: "not measured", True: "yes", False: "NO"}[target["met"]]
        name = target["name"] + (f" (of {target['of']})" if target["of"] else "")
        lines.append(f"{name:<66}{asked:>22}{reached:>20}  {met}")
    return lines


def table(result: dict[str, Any], every_target: bool) -> str:
    """The whole result as text."""
    link = result["link_bytes_per_second"]
    lines = [
        *row_lines(result["ways"]),
        "",
        *target_lines(result["targets"]),
        "",
        f"link: {number(None if link is None else link / 1e9)} GB/s from pinned host memory",
        *faults(result, every_target),
    ]
    return "\n".join(lines)
