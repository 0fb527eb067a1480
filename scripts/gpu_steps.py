"""The steps of the GPU check: what each runs, and why it passed or not."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from cuda_runs.machine_sheet import gpus

from junit_reports import Outcomes, read_report

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/gpu-check"
PRESET = "gpu"
SANITIZED = ("device_tests", "memory_tests", "codec_tests", "engine_tests")
REAL_DEVICE = "*RealCuda*"
_SHOWN_LINES = 40  # of the log of a command that failed
_SANITIZER_STATUS = 99
_SECONDS_FOR_A_TEST = 100


@dataclasses.dataclass
class Step:
    """What became of a step: it passed where there are no problems."""

    name: str
    problems: list[str] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The step as the result holds it."""
        return {
            "name": self.name,
            "passed": not self.problems,
            "seconds": round(self.seconds, 2),
            "problems": self.problems,
            **self.facts,
        }


@dataclasses.dataclass
class Settings:
    """What the steps are told.

    Attributes:
        deadline: The monotonic time at which everything ends, or None.
        sanitizer_options: More of them for compute-sanitizer.
        llama_options: For benchmarks/cuda_llama.py.
        diffusion_options: For benchmarks/cuda_diffusion.py.
    """

    deadline: float | None = None
    sanitizer_options: str = ""
    llama_options: str = ""
    diffusion_options: str = ""

    def left_s(self) -> float | None:
        """Seconds until the deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def run(step: Step, settings: Settings, command: Sequence[str | Path], folder: Path = ROOT) -> int:
    """Runs a command with a GPU required, its output in a log; the log's end is shown if it fails.

    Returns:
        The exit status. A program that is missing or ran out of time is a problem besides.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    log = WORK / f"{step.name}.log"
    said = [str(part) for part in command]
    with log.open("a") as output:
        output.write(f"$ {shlex.join(said)}\n")
        output.flush()
        try:
            status = _status_of(said, folder, output, settings.left_s())
        except subprocess.TimeoutExpired:
            step.problems.append(f"{said[0]} was stopped: the time was used up")
            status = 124
        except OSError as error:
            step.problems.append(f"{said[0]} cannot be run: {error.strerror}")
            status = 127
    if status != 0:
        lines = log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        print(f"--- the end of {log}:", *lines, sep="\n", flush=True)
    return status


def compiler_folder() -> dict[str, str]:
    """The variable that tells the C++ tests where torch's packages have NVRTC, if they do."""
    package = importlib.util.find_spec("nvidia")
    roots = [] if package is None else package.submodule_search_locations or []
    for folder in ("cu13/lib", "cuda_nvrtc/lib"):
        for root in roots:
            if any(Path(root, folder).glob("libnvrtc.so.*")):
                return {"TENSORSTREAM_NVRTC_FOLDER": str(Path(root, folder))}
    return {}


def _status_of(command: list[str], folder: Path, output: IO[str], left_s: float | None) -> int:
    """The status of a command; whatever it started ends where it does not end in time."""
    environment = {
        **os.environ,
        **compiler_folder(),
        "TENSORSTREAM_REQUIRE_GPU": "1",
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        return process.wait(left_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def expect_success(step: Step, settings: Settings, command: Sequence[str | Path]) -> bool:
    """Runs a command; a status other than 0 is a problem."""
    status = run(step, settings, command)
    if status != 0:
        shown = " ".join(str(part) for part in command[:4])
        step.problems.append(f"'{shown}' ended with status {status}")
    return status == 0


def compile_tests(step: Step, settings: Settings) -> None:
    """Builds the C++ tests."""
    configure = ["cmake", "--preset", PRESET, f"-DPython_EXECUTABLE={sys.executable}"]
    if expect_success(step, settings, configure):
        expect_success(step, settings, ["cmake", "--build", "--preset", PRESET])


def install_package(step: Step, settings: Settings) -> None:
    """Installs the package into the Python that runs this."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    options = ["--no-build-isolation", "--no-deps", "--force-reinstall", "."]
    if expect_success(step, settings, [*pip, *options]):
        status = run(step, settings, [sys.executable, "-c", "import tensorstream"], Path("/"))
        if status != 0:
            step.problems.append("the installed package cannot be imported")


def judge(step: Step, report: Outcomes, status: int) -> None:
    """Every test has to run and pass; a status that the report does not explain is a problem."""
    step.facts.update(report.as_json())
    problems = report.problems()
    if status != 0 and not problems:
        problems = [f"all tests passed, and the program ended with status {status}"]
    step.problems += problems


def fresh_report(name: str) -> Path:
    """Where a report goes; that of an earlier run is gone."""
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / name
    path.unlink(missing_ok=True)
    return path


def run_cpp_tests(step: Step, settings: Settings) -> None:
    """Runs the C++ tests of the layers that touch the device: the test preset names them."""
    path = fresh_report("cpp.xml")
    status = run(step, settings, ["ctest", "--preset", PRESET, "--output-junit", path])
    judge(step, read_report(path), status)


def run_python_tests(step: Step, settings: Settings) -> None:
    """Runs the Python tests that need a GPU: on the first, and on the last where there are several."""
    whole, failures = Outcomes(), 0
    for device in tested_devices(len(gpus())):
        path = fresh_report(f"python-{device.replace(':', '-')}.xml")
        pytest = [sys.executable, "-m", "pytest", "-m", "needs_gpu", f"--junitxml={path}"]
        # A signal does not end a test that hangs in the driver; this ends pytest, and shows the stacks.
        pytest += [f"--timeout={_SECONDS_FOR_A_TEST}", "--timeout-method=thread"]
        status = run(step, settings, ["env", f"TENSORSTREAM_TEST_DEVICE={device}", *pytest])
        report = read_report(path)
        if not report.counts()["tests"]:
            step.problems.append(
                f"{device}: no Python test is marked needs_gpu, or none was collected"
            )
        step.facts.setdefault("tests_of", {})[device] = report.counts()["tests"]
        whole.add(report)
        failures = failures or status
    judge(step, whole, failures)


def tested_devices(count: int) -> list[str]:
    """With several GPUs the last too, which is not torch's current one."""
    return ["cuda:0"] + ([f"cuda:{count - 1}"] if count > 1 else [])


def sanitizer() -> str:
    """compute-sanitizer, where a toolkit has it."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.path.join(home, "bin") for home in homes if home]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    return shutil.which("compute-sanitizer", path=path) or "compute-sanitizer"


def has_real_device_tests(step: Step, program: Path) -> bool:
    """Whether a program has tests on the real device; memcheck fails on a program that uses none."""
    command = [program, f"--gtest_filter={REAL_DEVICE}", "--gtest_list_tests"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError as error:
        step.problems.append(f"{program.name} cannot be run: {error.strerror}")
        return False
    return any(line.startswith("  ") for line in listed.stdout.splitlines())


def sanitize(step: Step, settings: Settings) -> None:
    """Runs the tests on the real device under compute-sanitizer's memcheck."""
    whole, tests = Outcomes(), {}
    options = shlex.split(settings.sanitizer_options)
    for name in SANITIZED:
        program = ROOT / f"build/{PRESET}/tests/cpp/{name.removesuffix('_tests')}/{name}"
        tests[name] = 0
        if not has_real_device_tests(step, program):
            continue
        path = fresh_report(f"sanitize-{name}.xml")
        chosen = [f"--gtest_filter={REAL_DEVICE}", f"--gtest_output=xml:{path}"]
        memcheck = [sanitizer(), "--tool", "memcheck", "--error-exitcode", str(_SANITIZER_STATUS)]
        status = run(step, settings, [*memcheck, *options, program, *chosen])
        report = read_report(path)
        whole.add(report)
        tests[name] = report.counts()["tests"]
        if status == _SANITIZER_STATUS:
            step.problems.append(f"{name}: memcheck found errors")
        elif status != 0 and not report.problems():
            step.problems.append(f"{name}: ended with status {status}")
    step.facts["tests_of"] = tests
    judge(step, whole, 0)


def benchmark(step: Step, settings: Settings, program: str, options: str) -> None:
    """Runs a benchmark; its targets are judged over all runs, and here only that it ran."""
    path = fresh_report(f"{program}.json")
    command = [sys.executable, ROOT / f"benchmarks/{program}.py", "measure", "--output", path]
    command += ["--report-only", *shlex.split(options)]
    left = settings.left_s()
    if left is not None:  # Its last process ends, and it writes what it has, before it is stopped.
        command += ["--deadline-s", f"{max(0.0, left - 10):.0f}"]
    status = run(step, settings, command)
    result = json.loads(path.read_text()) if path.is_file() else {}
    step.facts["result"] = result
    if "skipped" in result:
        step.problems.append(result["skipped"])
        return
    faults = [f"failed: {text.splitlines()[0]}" for text in result.get("failures", ())]
    if result.get("void"):
        faults.append(f"void: {result['void']}")
    if status != 0 and not faults:
        faults = [f"ended with status {status}"]
    step.problems += faults


def benchmark_llama(step: Step, settings: Settings) -> None:
    """Llama 7B shape: native, accelerate, diffusers, TensorStream."""
    benchmark(step, settings, "cuda_llama", settings.llama_options)


def benchmark_diffusion(step: Step, settings: Settings) -> None:
    """Flux's shape: native, diffusers, TensorStream."""
    benchmark(step, settings, "cuda_diffusion", settings.diffusion_options)


STEPS: dict[str, Callable[[Step, Settings], None]] = {
    "compile": compile_tests,
    "install": install_package,
    "cpp": run_cpp_tests,
    "python": run_python_tests,
    "sanitize": sanitize,
    "llama": benchmark_llama,
    "diffusion": benchmark_diffusion,
}
SETS = {"build": ("compile", "install"), "benchmark": ("llama", "diffusion")}

# What has to be there, the steps that need it, and how it is found.
_MODULES = {
    "pip": "install",
    "nanobind": "install",
    "scikit_build_core": "install",
    "pytest": "python",
    "pytest_timeout": "python",
    "bitsandbytes": "python",
    "torchao": "python",
    "torch": "python, llama, diffusion",
    "transformers": "python, llama",
    "accelerate": "python, llama",
    "safetensors": "llama",
    "diffusers": "llama, diffusion",
}
_PROGRAMS = {
    "cmake": "compile, install",
    "ninja": "compile, install",
    "g++": "compile, install",
    "nvidia-smi": "the machine sheet",
}
_HEADERS = {
    "nlohmann/json.hpp": (
        "nlohmann-json3-dev, or the PyPI package nlohmann-json",
        "compile, install",
    ),
    "xxhash.h": ("libxxhash-dev", "compile, install"),
    "gtest/gtest.h": ("libgtest-dev", "compile"),
    "gmock/gmock.h": ("libgmock-dev", "compile"),
}


def missing() -> list[str]:
    """What is not on this machine, each with the steps that need it."""
    found = [
        f"Python module {name}: needed by {steps}"
        for name, steps in _MODULES.items()
        if importlib.util.find_spec(name) is None
    ]
    found += [
        f"program {name}: needed by {steps}"
        for name, steps in _PROGRAMS.items()
        if shutil.which(name) is None
    ]
    if not os.access(sanitizer(), os.X_OK):
        found.append("program compute-sanitizer: needed by sanitize")
    json_module = importlib.util.find_spec("nlohmann_json")
    for header, (package, steps) in _HEADERS.items():
        there = any((Path(prefix) / header).is_file() for prefix in _include_folders())
        if not there and not (header.startswith("nlohmann") and json_module):
            found.append(f"header {header} ({package}): needed by {steps}")
    return found


def _include_folders() -> list[str]:
    listed = os.environ.get("CPLUS_INCLUDE_PATH", "").split(os.pathsep)
    return ["/usr/include", "/usr/local/include", *(folder for folder in listed if folder)]
