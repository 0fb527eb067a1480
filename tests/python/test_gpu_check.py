"""scripts/gpu_check.py: what fails a run, how reports are read, how results are laid together."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import gpu_check
import gpu_steps
from junit_reports import read_report

PASSED = '<testcase classname="A" name="runs" status="run"/>'
CTEST_SKIPPED = (
    '<testcase name="d.B" classname="d.B" status="notrun"><skipped message="X"/></testcase>'
)
GTEST_SKIPPED = (
    '<testcase classname="R" name="S" status="run" result="skipped">'
    '<skipped message="no driver"/></testcase>'
)
DISABLED = '<testcase classname="A" name="off" status="disabled"/>'
FAILED = '<testcase classname="A" name="breaks" status="fail"><failure message="1"/></testcase>'
ERROR = '<testcase classname="A" name="setup"><error message="1"/></testcase>'


def report_of(folder: Path, *cases: str) -> Any:
    path = folder / "report.xml"
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return read_report(path)


def test_a_report_of_passes_has_no_problems(tmp_path: Path) -> None:
    report = report_of(tmp_path, PASSED)
    assert report.problems() == []
    assert report.counts() == {"tests": 1, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        (CTEST_SKIPPED, "1 were skipped, and none may be: d.B (X)"),
        (GTEST_SKIPPED, "1 were skipped, and none may be: R.S (no driver)"),
        (DISABLED, "1 were skipped, and none may be: A.off"),
        (FAILED, "1 failed: A.breaks"),
        (ERROR, "1 failed: A.setup"),
    ],
)
def test_what_is_not_a_pass_is_a_problem(tmp_path: Path, case: str, problem: str) -> None:
    assert report_of(tmp_path, PASSED, case).problems() == [problem]


def test_a_report_without_tests_is_a_problem(tmp_path: Path) -> None:
    assert report_of(tmp_path).problems() == ["no test ran"]
    assert read_report(tmp_path / "absent.xml").problems() == ["no test ran"]


def test_a_status_that_no_test_explains_is_a_problem(tmp_path: Path) -> None:
    step = gpu_steps.Step("cpp")
    gpu_steps.judge(step, report_of(tmp_path, PASSED), 8)
    assert step.problems == ["all tests passed, and the program ended with status 8"]
    assert step.as_json()["passed"] is False


def test_steps_are_chosen_by_name_and_by_set() -> None:
    assert gpu_check.step_names("benchmark,build") == ["compile", "install", "llama", "diffusion"]
    assert gpu_check.step_names("python") == ["python"]
    with pytest.raises(SystemExit, match="no step 'tests'"):
        gpu_check.step_names("tests")


def test_of_several_gpus_the_last_is_tested_too(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def run(step: gpu_steps.Step, _: Any, command: list[Any]) -> int:
        told.append(command[1])
        name = str(command[-3]).removeprefix("--junitxml=")
        Path(name).write_text(f"<testsuite>{PASSED}</testsuite>")
        return 0

    monkeypatch.setattr(gpu_steps, "run", run)
    for count, devices in [(1, ["cuda:0"]), (4, ["cuda:0", "cuda:3"])]:
        monkeypatch.setattr(gpu_steps, "gpus", lambda: [{}] * count)  # noqa: B023 - called in the loop
        step = gpu_steps.Step("python")
        told.clear()
        gpu_steps.run_python_tests(step, gpu_steps.Settings())
        assert told == [f"TENSORSTREAM_TEST_DEVICE={device}" for device in devices]
        assert step.problems == []
        assert step.facts["tests_of"] == dict.fromkeys(devices, 1)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_steps, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu_steps, "missing", lambda: ["program compute-sanitizer"])
    return tmp_path


def fails(step: gpu_steps.Step, settings: gpu_steps.Settings) -> None:
    gpu_steps.expect_success(step, settings, [sys.executable, "-c", "raise SystemExit(3)"])


def breaks(step: gpu_steps.Step, settings: gpu_steps.Settings) -> None:
    raise json.JSONDecodeError("not whole", "{", 1)


def passes(step: gpu_steps.Step, settings: gpu_steps.Settings) -> None:
    gpu_steps.expect_success(step, settings, [sys.executable, "-c", "print('fine')"])


def test_later_steps_run_after_one_that_failed(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_steps, "STEPS", {"one": fails, "two": breaks, "three": passes})
    output = work / "deep/result.json"
    assert (
        gpu_check.main(["--output", str(output), "--steps", "one,two,three", "--commit", "c"]) == 1
    )
    result = json.loads(output.read_text())
    steps = result["runs"][0]["steps"]
    assert [(step["name"], step["passed"]) for step in steps] == [
        ("one", False),
        ("two", False),
        ("three", True),
    ]
    assert "ended with status 3" in steps[0]["problems"][0]
    assert result["commit"] == "c"
    assert result["runs"][0]["missing"] == ["program compute-sanitizer"]
    assert capsys.readouterr().out.endswith("GPU check: failed\n")


def test_nothing_is_started_beyond_the_deadline(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_steps, "STEPS", {"one": passes})
    output = work / "result.json"
    assert gpu_check.main(["--output", str(output), "--steps", "one", "--deadline-s", "0"]) == 1
    step = json.loads(output.read_text())["runs"][0]["steps"][0]
    assert step["problems"] == ["not run: the time was used up"]


def test_a_command_is_stopped_at_the_deadline(work: Path) -> None:
    step = gpu_steps.Step("slow")
    settings = gpu_steps.Settings(deadline=gpu_steps.time.monotonic() + 0.5)
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu_steps.run(step, settings, slow) == 124
    assert step.problems == [f"{sys.executable} was stopped: the time was used up"]


def test_a_program_that_is_missing_is_a_problem(work: Path) -> None:
    step = gpu_steps.Step("absent")
    assert gpu_steps.run(step, gpu_steps.Settings(), ["no-such-program"]) == 127
    assert step.problems == ["no-such-program cannot be run: No such file or directory"]


def target(name: str, met: bool | None) -> dict[str, Any]:
    return {
        "name": name,
        "comparison": "at most",
        "target": 1.0,
        "reached": None if met is None else 0.5,
        "unit": "s",
        "of": None,
        "met": met,
    }


def run_with(commit: str, *steps: dict[str, Any]) -> dict[str, Any]:
    machine = {"commit": commit, "gpus": [], "packages": {"torch": "2"}, "date": "today"}
    return {"machine": machine, "missing": [], "steps": list(steps)}


def step_with(
    name: str, *targets: dict[str, Any], problems: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "name": name,
        "passed": not problems,
        "seconds": 1.0,
        "problems": list(problems),
        "result": {"targets": list(targets), "ways": {}},
    }


def test_runs_of_one_commit_are_laid_together(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_steps, "STEPS", {"llama": passes, "cpp": passes})
    runs = [
        run_with("c", step_with("llama", target("a", True), target("b", None), target("d", None))),
        run_with("c", step_with("llama", target("a", None), target("b", False), target("d", None))),
    ]
    paths = []
    for index, run in enumerate(runs):
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_text(json.dumps({"runs": [run]}))
    output = tmp_path / "all.json"
    merge = [str(path) for path in paths]
    assert gpu_check.main(["--output", str(output), "--merge", *merge]) == 1
    result = json.loads(output.read_text())
    assert [one["met"] for one in result["targets"]] == [True, False, None]
    assert result["faults"] == ["llama: b: missed", "llama: d: not measured", "cpp: not run"]


def test_a_part_of_the_steps_is_not_blamed_for_the_rest() -> None:
    run = run_with("c", step_with("llama", target("a", None)))
    assert gpu_check.assemble([run], everything=False)["passed"]
    assert not gpu_check.assemble([run], everything=True)["passed"]


def test_runs_of_different_commits_are_refused() -> None:
    with pytest.raises(SystemExit, match="different commits: c, d"):
        gpu_check.assemble([run_with("c"), run_with("d")], everything=True)


def test_a_benchmark_that_was_skipped_fails_its_step(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(step: Any, settings: Any, command: Any) -> int:
        (gpu_steps.WORK / "cuda_diffusion.json").write_text('{"skipped": "diffusers is absent"}')
        return 0

    monkeypatch.setattr(gpu_steps, "run", skip)
    step = gpu_steps.Step("diffusion")
    gpu_steps.benchmark_diffusion(step, gpu_steps.Settings())
    assert step.problems == ["diffusers is absent"]
