"""Takes each guard out of a copy of the tree, one at a time, and demands that its test fails.

A guard is a statement without which the engine would be silently wrong. It is marked in its source:

    stream.wait(copied);  // guard: wait-for-copy        the line is deleted
    if (!leased(group)) {  // guard: lease-check         the condition becomes false
    // guard: order-check                                the lines down to the end are deleted
    ...
    // end guard

In Python the marks are the same after '#'. Marks of one name in one file are one guard, taken out
together; a name in two files is two guards. scripts/guards.json lists every guard with its file
and the test that proves it: a pattern for ctest that begins with the layer and a dot, or a pytest
node. A test that depends on timing may run several times until it fails, and how often is said.

Usage: check_guards.py [NAME...]
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from check_layers import listed_files

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"(?://|#) guard: ([a-z][a-z-]*)\s*$")
END_MARK = re.compile(r"^\s*(?://|#) end guard\s*$")
CONDITION = {
    ".cpp": re.compile(r"^(\s*(?:\} else )?(?:if|while) \().*(\) \{\s*)$"),
    ".py": re.compile(r"^(\s*(?:if|elif|while) ).*(:\s*)$"),
}
FALSE = {".cpp": "false", ".py": "False"}
SEARCHED = ("csrc", "bindings", "python")
SECONDS_FOR_A_TEST = 120
# Streams are delayed at random: what is not seen at once is seen soon.
MOST_RUNS = 5
# pytest's own code for "tests ran and some failed"; a negative code is death by a signal.
PYTEST_FAILED = 1
# An editable install answers imports before PYTHONPATH does: this puts the copy first.
SITE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
"""


class GuardError(Exception):
    """The table, the marks or the untouched tree are wrong, so nothing can be shown."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """One row of scripts/guards.json."""

    name: str
    file: str
    ctest: str | None = None
    pytest: str | None = None

    @property
    def program(self) -> str:
        """The test program that its ctest pattern begins with."""
        layer = re.match(r"\^?([a-z]+)\\\.", self.ctest or "")
        if layer is None:
            raise GuardError(f"guard '{self.name}': '{self.ctest}' must begin with its layer")
        return f"{layer.group(1)}_tests"


def without_guard(text: str, name: str, suffix: str) -> str:
    """The source with the guard's marks acted upon; lines keep their numbers."""
    kept: list[str] = []
    deleting = False
    for line in text.splitlines():
        mark = MARK.search(line)
        if deleting:
            deleting = not END_MARK.match(line)
            kept.append("")
        elif mark is None or mark.group(1) != name:
            kept.append(line)
        else:
            code = line[: mark.start()].rstrip()
            condition = CONDITION[suffix].match(code)
            deleting = not code
            if condition:
                kept.append(f"{condition.group(1)}{FALSE[suffix]}{condition.group(2)}")
            else:
                kept.append(" " * (len(line) - len(line.lstrip())) + replacement(suffix))
    if deleting:
        raise GuardError(f"guard '{name}' has no 'end guard'")
    return "\n".join(kept) + "\n"


def replacement(suffix: str) -> str:
    """A statement that does nothing, so that what is left parses."""
    return "pass" if suffix == ".py" else ";"


def marks(root: Path) -> Iterator[tuple[str, str]]:
    """Name and file of every mark in the sources."""
    for path in listed_files(root):
        if path.startswith(SEARCHED) and path.endswith((".cpp", ".h", ".py")):
            for line in (root / path).read_text(encoding="utf-8").splitlines():
                if found := MARK.search(line):
                    yield found.group(1), path


def check_table(guards: list[Guard], root: Path) -> None:
    """The table and the sources name the same guards, each in one file."""
    listed = {(guard.name, guard.file) for guard in guards}
    marked = set(marks(root))
    problems = [f"'{n}' is listed, but not marked in {f}" for n, f in sorted(listed - marked)]
    problems += [f"'{n}' is marked in {f}, but not listed" for n, f in sorted(marked - listed)]
    if len(listed) < len(guards):
        problems.append("a guard is listed twice")
    if not guards:
        problems.append("no guard is listed")
    if problems:
        raise GuardError("scripts/guards.json and the sources differ:\n  " + "\n  ".join(problems))


class Copy:
    """A copy of the tree in which guards are taken out, built and tested."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        self.build = folder / "build"
        self.site = folder / "site"
        for path in listed_files(root):
            target = self.tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, target)

    def prepare_cxx(self, programs: set[str]) -> None:
        definitions = ("CMAKE_BUILD_TYPE=Debug", "TENSORSTREAM_BUILD_TESTS=ON")
        command = ["cmake", "-G", "Ninja", "-S", self.tree, "-B", self.build, "--log-level=WARNING"]
        run([*command, *(f"-D{definition}" for definition in definitions)])
        self.compile(programs)

    def compile(self, programs: set[str]) -> None:
        run(["cmake", "--build", self.build, "--target", *sorted(programs)])

    def prepare_python(self) -> None:
        """Makes the copy the package that Python finds, with the extension as it is installed."""
        extension = importlib.util.find_spec("tensorstream._native")
        if extension is None or extension.origin is None:
            raise GuardError("tensorstream is not installed here: run make build")
        shutil.copy2(extension.origin, self.tree / "python/tensorstream")
        self.site.mkdir()
        (self.site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        found = run([sys.executable, "-c", "import tensorstream as t; print(t.__file__)"], self)
        if not Path(found.strip()).is_relative_to(self.tree):
            raise GuardError(f"the tests would import {found.strip()}, not the copy")

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.site), str(self.tree / "python")])
        return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def test_passes(self, guard: Guard) -> bool:
        return self.pytest_passes(guard) if guard.ctest is None else self.ctest_passes(guard)

    def ctest_passes(self, guard: Guard) -> bool:
        command = ["ctest", "--test-dir", self.build, "-R", f"^{guard.ctest}", "-j", "2"]
        command += ["--no-tests=error", "--timeout", str(SECONDS_FOR_A_TEST), "--stop-on-failure"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "No tests were found" in done.stdout + done.stderr:
            raise GuardError(f"guard '{guard.name}': '{guard.ctest}' names no test")
        return done.returncode == 0

    def pytest_passes(self, guard: Guard) -> bool:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [f"--timeout={SECONDS_FOR_A_TEST}", guard.pytest or ""]
        done = subprocess.run(
            command, cwd=self.tree, env=self.environment(), capture_output=True, check=False
        )
        if done.returncode > PYTEST_FAILED:
            output = done.stdout.decode()[-2000:]
            raise GuardError(f"guard '{guard.name}': pytest could not run:\n{output}")
        return done.returncode == 0

    def runs_until_failure(self, guard: Guard) -> int | None:
        """How often the test ran without the guard until it failed; None where it did not."""
        path = self.tree / guard.file
        original = path.read_text(encoding="utf-8")
        path.write_text(without_guard(original, guard.name, suffix_of(path)), encoding="utf-8")
        try:
            if guard.ctest is not None:
                self.compile({guard.program})
            runs = range(1, MOST_RUNS + 1)
            return next((run for run in runs if not self.test_passes(guard)), None)
        finally:
            path.write_text(original, encoding="utf-8")


def suffix_of(path: Path) -> str:
    return ".py" if path.suffix == ".py" else ".cpp"


def run(command: list[str | Path], copy: Copy | None = None) -> str:
    environment = copy.environment() if copy else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(str(word) for word in command)
        raise GuardError(f"{words} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def verdict(copy: Copy, guard: Guard) -> tuple[bool, str]:
    """Whether the guard's test fails without it, and what is to be said."""
    try:
        runs = copy.runs_until_failure(guard)
    except GuardError as error:
        return False, f"FAILED: {error}"
    if runs is None:
        return False, f"FAILED: its test passes without it, {MOST_RUNS} times"
    return True, "a test fails without it" + (f", in run {runs}" if runs > 1 else "")


def check(root: Path, names: list[str]) -> int:
    rows = json.loads((root / "scripts/guards.json").read_text(encoding="utf-8"))
    guards = [Guard(**row) for row in rows]
    check_table(guards, root)
    guards = [guard for guard in guards if not names or guard.name in names]
    with tempfile.TemporaryDirectory(prefix="guards-") as folder:
        copy = Copy(root, Path(folder))
        if programs := {guard.program for guard in guards if guard.ctest is not None}:
            print("==> building the untouched tree", flush=True)
            copy.prepare_cxx(programs)
        if any(guard.pytest is not None for guard in guards):
            copy.prepare_python()
        print("==> running the tests of the untouched tree", flush=True)
        # Guards may share a test: it runs once.
        for guard in {(guard.ctest, guard.pytest): guard for guard in guards}.values():
            if not copy.test_passes(guard):
                raise GuardError(f"guard '{guard.name}': its test fails with the guard in place")
        return report(copy, guards)


def report(copy: Copy, guards: list[Guard]) -> int:
    failed = 0
    for guard in guards:
        started = time.monotonic()
        good, said = verdict(copy, guard)
        failed += not good
        seconds = time.monotonic() - started
        print(f"{guard.name:24} {guard.file:36} {seconds:5.1f} s  {said}", flush=True)
    print(f"{len(guards) - failed} passed, {failed} failed")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    try:
        return check(ROOT, arguments)
    except GuardError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
