"""Checks the project on a machine with a GPU: builds, tests, memcheck, benchmarks, one JSON.

Every step runs, whatever became of those before it; the JSON is written after each. A test that is
skipped is a failure here. Runs on one commit can be laid together, where one call may not last long
enough for all steps: `gpu_check.py --merge one.json two.json --output all.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from cuda_runs.machine_sheet import COMMIT_VARIABLE, machine_sheet  # noqa: E402
from cuda_runs.result import row_lines, target_lines  # noqa: E402

import gpu_steps  # noqa: E402


def step_names(text: str) -> list[str]:
    """The steps that a list names, in the order in which they run; sets stand for their steps."""
    wanted: set[str] = set()
    for name in text.split(","):
        if name not in gpu_steps.STEPS and name not in gpu_steps.SETS:
            known = ", ".join([*gpu_steps.SETS, *gpu_steps.STEPS])
            raise SystemExit(f"--steps: there is no step '{name}'; there are {known}")
        wanted.update(gpu_steps.SETS.get(name, (name,)))
    return [name for name in gpu_steps.STEPS if name in wanted]


def all_targets(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets of all runs: of one that several runs measured, the one that missed it."""
    rank = {True: 1, None: 0, False: 2}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        for step in run["steps"]:
            for target in step.get("result", {}).get("targets", ()):
                key = (step["name"], target["name"])
                if key not in found or rank[target["met"]] > rank[found[key]["met"]]:
                    found[key] = {**target, "step": step["name"]}
    return list(found.values())


def assemble(runs: Sequence[dict[str, Any]], everything: bool) -> dict[str, Any]:
    """The result of runs on one commit.

    Args:
        runs: Each with its machine and its steps.
        everything: Whether steps that did not run, and targets that were not measured, are faults.

    Raises:
        SystemExit: The runs are of different commits.
    """
    commits = sorted({run["machine"]["commit"] for run in runs})
    if len(commits) != 1:
        raise SystemExit(f"the runs are of different commits: {', '.join(commits)}")
    faults = [
        f"{step['name']}: {problem}"
        for run in runs
        for step in run["steps"]
        for problem in step["problems"]
    ]
    targets = all_targets(runs)
    for target in targets:
        said = f"{target['step']}: {target['name']}"
        if target["met"] is False:
            faults.append(f"{said}: missed")
        elif target["met"] is None and everything:
            faults.append(f"{said}: not measured")
    ran = {step["name"] for run in runs for step in run["steps"]}
    faults += [f"{name}: not run" for name in gpu_steps.STEPS if everything and name not in ran]
    return {
        "commit": commits[0],
        "passed": not faults,
        "faults": faults,
        "targets": targets,
        "runs": list(runs),
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    head = f"{'step':<12}{'passed':<8}{'tests':>7}{'failed':>8}{'skipped':>9}{'seconds':>9}"
    lines = []
    for run in result["runs"]:
        machine = run["machine"]
        cards = [f"{gpu['name']}, driver {gpu['driver_version']}" for gpu in machine["gpus"]]
        lines += ["", f"{', '.join(cards) or 'no GPU'}; torch {machine['packages']['torch']}"]
        lines += [f"commit {machine['commit']}, {machine['date']}", head]
        for step in run["steps"]:
            counts = (str(step.get(kind, "-")) for kind in ("tests", "failed", "skipped"))
            tests, failed, skipped = counts
            numbers = f"{tests:>7}{failed:>8}{skipped:>9}{step['seconds']:>9.1f}"
            lines.append(f"{step['name']:<12}{'yes' if step['passed'] else 'NO':<8}{numbers}")
            ways = step.get("result", {}).get("ways")
            lines += row_lines(ways) if ways else []
    if result["targets"]:
        lines += ["", *target_lines(result["targets"])]
    lines += ["", *(f"FAILED {fault}" for fault in result["faults"])]
    lines.append("GPU check: " + ("passed" if result["passed"] else "failed"))
    return "\n".join(lines)


def write(result: dict[str, Any], path: Path) -> None:
    """Writes the JSON under another name first: what is at `path` is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(path)


def run_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the chosen steps; the JSON is written after each."""
    names = step_names(options.steps)
    settings = gpu_steps.Settings(
        None if options.deadline_s is None else time.monotonic() + options.deadline_s,
        options.sanitizer_options,
        options.llama_options,
        options.diffusion_options,
    )
    missing = gpu_steps.missing()
    for text in missing:
        print(f"missing: {text}", flush=True)
    run: dict[str, Any] = {"machine": machine_sheet(), "missing": missing, "steps": []}
    everything = len(names) == len(gpu_steps.STEPS) and "--ways" not in options.llama_options
    for name in names:
        print(f"==> {name}: {gpu_steps.STEPS[name].__doc__}", flush=True)
        step = gpu_steps.Step(name)
        (gpu_steps.WORK / f"{name}.log").unlink(missing_ok=True)
        start = time.monotonic()
        if settings.left_s() == 0:
            step.problems.append("not run: the time was used up")
        else:
            try:
                gpu_steps.STEPS[name](step, settings)
            except (OSError, ValueError, SyntaxError) as error:  # a report that is not whole
                step.problems.append(f"{type(error).__name__}: {error}")
        step.seconds = time.monotonic() - start
        run["steps"].append(step.as_json())
        write(assemble([run], everything=False), options.output)
    result = assemble([run], everything)
    write(result, options.output)
    return result


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """The result of all runs that some files hold."""
    runs = [run for path in paths for run in json.loads(path.read_text())["runs"]]
    return assemble(runs, everything=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join([*gpu_steps.SETS, *gpu_steps.STEPS])
    parser.add_argument("--output", type=Path, required=True, help="the JSON")
    parser.add_argument(
        "--steps", default=",".join(gpu_steps.STEPS), help=f"separated by commas, of {known}"
    )
    parser.add_argument("--deadline-s", type=float, help="end within this time, the JSON written")
    parser.add_argument("--commit", help=f"where git cannot say it; or {COMMIT_VARIABLE}")
    parser.add_argument("--llama-options", default="", help="for benchmarks/cuda_llama.py")
    parser.add_argument("--diffusion-options", default="", help="for benchmarks/cuda_diffusion.py")
    parser.add_argument("--sanitizer-options", default="", help="for compute-sanitizer")
    parser.add_argument(
        "--merge", type=Path, nargs="+", help="results to lay together; runs nothing"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Runs the check, or lays results together. The status says whether all passed."""
    options = parse(arguments)
    if options.merge:
        result = merged(options.merge)
        write(result, options.output)
    else:
        if options.commit:
            os.environ[COMMIT_VARIABLE] = options.commit
        result = run_steps(options)
    print(table(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
