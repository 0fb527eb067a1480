"""The driver of a benchmark: runs its ways one after the other, writes the JSON, prints a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cuda_runs.accelerator import Accelerator, link_rate, open_accelerator
from cuda_runs.comparison import Ways
from cuda_runs.machine_sheet import machine_sheet
from cuda_runs.offloaders import silence_libraries
from cuda_runs.processes import Deadline, run_json
from cuda_runs.result import LOWEST_LINK_BYTES_PER_SECOND, assemble, faults, table

# A way's name, and the arguments of its process, which may depend on what was measured before.
Arguments = Sequence[str] | Callable[[Ways], Sequence[str]]
Plan = dict[str, Arguments]


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """What every process of a benchmark takes."""
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu for a dry run")
    parser.add_argument("--sample-s", type=float, default=0.01, help="between samples of memory")


def add_driver_options(parser: argparse.ArgumentParser) -> None:
    """What the driver takes."""
    parser.add_argument("--ways", help="names, or their beginnings, separated by commas; all")
    parser.add_argument("--output", type=Path, help="a file for the JSON")
    parser.add_argument("--deadline-s", type=float, help="start and run nothing beyond this time")
    parser.add_argument(
        "--lowest-link-gb-s",
        type=float,
        default=LOWEST_LINK_BYTES_PER_SECOND / 1e9,
        help="the run is void where the link is slower",
    )
    parser.add_argument(
        "--report-only", action="store_true", help="missed targets are shown and fail nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny shapes: shows that the benchmark runs"
    )


def run_process(
    options: argparse.Namespace,
    measure_way: Callable[[argparse.Namespace, Accelerator], dict[str, Any]],
    why_not: str | None,
) -> bool:
    """Runs a subcommand that is a process; False where it is the driver's, which is left to do.

    Where there is a reason why nothing can be measured, it is said and written instead.
    """
    if options.command == "link":
        print(json.dumps(link_rate(open_accelerator(options.device))))
        return True
    if why_not is not None:
        print(why_not)
        output = getattr(options, "output", None)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps({"skipped": why_not}) + "\n")
        return True
    if options.command == "measure":
        return False
    silence_libraries()
    print(json.dumps(measure_way(options, open_accelerator(options.device)), default=str))
    return True


def chosen(plan: Plan, wanted: str | None) -> Plan:
    """The ways that are asked for; the probes of the link always are."""
    if wanted is None:
        return plan
    beginnings = tuple(part for part in wanted.split(",") if part)
    unknown = [one for one in beginnings if not any(name.startswith(one) for name in plan)]
    if unknown:
        raise SystemExit(f"--ways: nothing begins with '{unknown[0]}'; there are {', '.join(plan)}")
    return {
        name: arguments
        for name, arguments in plan.items()
        if name.startswith(("link-", *beginnings))
    }


def run_plan(program: Path, plan: Plan, deadline: Deadline) -> Ways:
    """Runs each way's process; one that fails does not keep the next from running."""
    measured: Ways = {}
    for name, arguments in plan.items():
        made = arguments(measured) if callable(arguments) else arguments
        print(f"==> {program.name}: {name}", file=sys.stderr, flush=True)
        measured[name] = {**run_json(program, made, deadline), "arguments": list(made)}
        said = measured[name].get("error", "done")
        print(f"    {said} ({measured[name]['seconds']:.1f} s)", file=sys.stderr, flush=True)
    return measured


def head_of(sheet: dict[str, Any]) -> dict[str, Any]:
    """What is written at the head of a result: the question, the machine as it is now, the settings."""
    return {"question": sheet["question"], "machine": machine_sheet(), **sheet}


def drive(
    program: Path,
    options: argparse.Namespace,
    plan: Plan,
    make_targets: Callable[..., Any],
    sheet: dict[str, Any],
) -> int:
    """Measures, writes the JSON and prints the table. The status says whether all passed."""
    head = head_of(sheet)
    measured = run_plan(program, chosen(plan, options.ways), Deadline(options.deadline_s))
    return conclude(options, measured, make_targets, head)


def conclude(
    options: argparse.Namespace,
    measured: Ways,
    make_targets: Callable[..., Any],
    head: dict[str, Any],
) -> int:
    """Judges what was measured, writes the JSON and prints the table; the status as of `drive`."""
    lowest_link = 0.0 if options.dry_run else options.lowest_link_gb_s * 1e9
    result = assemble(measured, make_targets, lowest_link, head)
    every_target = not (options.report_only or options.dry_run)
    result["passed"] = not faults(result, every_target)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result, every_target))
    return 0 if result["passed"] else 1
