"""Takes each guard out of a copy of the tree, one at a time, and demands that its test fails.

A guard is a statement without which the engine would be silently wrong. It is marked in its source:

    stream.wait(copied);  // guard: wait-for-copy        the line is left out
    if (!leased(group)) {  // guard: lease-check         the condition is false
    // guard: order-check                                the lines down to the end are left out
    ...
    // end guard

In Python the marks are the same after '#'. Marks of one name in one file are one guard, taken out
together; a name in two files is two guards. scripts/guards.json lists every guard with its file
and the test that proves it: a pattern for ctest that begins with the layer and a dot, or a pytest
node. A test that depends on timing may run several times until it fails, and how often is said.

The copy is built once: in it each guard asks a variable of the environment whether it is the one that is
out. So what is left out may be no declaration, which would end where its guard does.

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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from check_layers import listed_files

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"(?://|#) guard: ([a-z][a-z-]*)\s*$")
END_MARK = re.compile(r"^\s*(?://|#) end guard\s*$")
CONDITION = {
    ".cpp": re.compile(r"^(\s*(?:\} else )?(?:if|while) \()(.*)(\) \{\s*)$"),
    ".py": re.compile(r"^(\s*(?:if|elif|while) )(.*)(:\s*)$"),
}
DECLARATION = re.compile(
    r"^\s*(?!(?:return|throw|delete|else|goto|case|co_\w+)\b)(?:[\w:]+(?:<.*>)?[&*]* )+[&*]*\w+\s*[({=;]"
)
AND = {".cpp": "&&", ".py": "and"}
OUT = "TENSORSTREAM_GUARD_OUT"
ASKED = {
    ".cpp": '::guard_is_in("{}")',
    ".py": f'__import__("os").environ.get("{OUT}") != "{{}}"',
}
# Before the first line of a source in C++, whose lines keep their numbers.
ASKING = f"""#include <cstdlib>
#include <cstring>
namespace {{
bool guard_is_in(const char* guard) {{
  static const char* const out = std::getenv("{OUT}");
  return out == nullptr || std::strcmp(guard, out) != 0;
}}
}}  // namespace
#line 1
"""
SEARCHED = ("csrc", "bindings", "python")
SECONDS_FOR_A_TEST = 120
# Streams are delayed at random: what is not seen at once is seen soon.
MOST_RUNS = 5
AT_ONCE = 2
# pytest's own code for "tests ran and some failed"; a negative code is death by a signal.
PYTEST_FAILED = 1
# An editable install answers imports before PYTHONPATH does: this puts the copy first.
SITE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
"""


Done = subprocess.CompletedProcess[str]


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


def switched(text: str, file: str) -> str:
    """The source in which each guard is out where the environment says so; lines keep their numbers."""
    suffix = suffix_of(Path(file))
    kept: list[str] = []
    block: tuple[str, str] | None = None  # a name, and what its lines begin with
    for line in text.splitlines():
        mark = MARK.search(line)
        if block is not None and END_MARK.match(line):
            kept.append("" if suffix == ".py" else "}")
            block = None
        elif block is not None:
            if line.startswith(block[1]) and not line[len(block[1]) :].startswith((" ", "}", ")")):
                refuse_declaration(block[0], line, suffix)
            kept.append(f"    {line}" if suffix == ".py" else line)
        elif mark is None:
            kept.append(line)
        elif code := line[: mark.start()].rstrip():
            kept.append(switched_line(code, mark.group(1), file, suffix))
        else:
            indent = line[: mark.start()]
            block = (mark.group(1), indent)
            asked = ASKED[suffix].format(key_of(mark.group(1), file))
            kept.append(f"{indent}if {asked}:" if suffix == ".py" else f"{indent}if ({asked}) {{")
    if block is not None:
        raise GuardError(f"guard '{block[0]}' has no 'end guard'")
    asking = ASKING if suffix == ".cpp" and kept != text.splitlines() else ""
    return asking + "\n".join(kept) + "\n"


def switched_line(code: str, name: str, file: str, suffix: str) -> str:
    """A guard of one line: its condition asks first, or its statement runs where the guard is in."""
    asked = ASKED[suffix].format(key_of(name, file))
    if condition := CONDITION[suffix].match(code):
        return (
            f"{condition.group(1)}{asked} {AND[suffix]} ({condition.group(2)}){condition.group(3)}"
        )
    refuse_declaration(name, code, suffix)
    indent, statement = code[: len(code) - len(code.lstrip())], code.lstrip()
    if suffix == ".py":
        return f"{indent}if {asked}: {statement}"
    return f"{indent}{{ if ({asked}) {{ {statement} }} }}"


def refuse_declaration(name: str, code: str, suffix: str) -> None:
    if suffix == ".cpp" and DECLARATION.match(code):
        raise GuardError(f"guard '{name}': '{code.strip()}' is a declaration: mark what uses it")


def key_of(name: str, file: str) -> str:
    """What a guard is called in the environment."""
    return f"{file}:{name}"


def marks(root: Path, files: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """Name and file of every mark in the sources; `files` where git cannot list them."""
    for path in listed_files(root) if files is None else files:
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
    """A copy of the tree whose guards can be taken out, built once and tested."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        self.build = self.tree / "build/dev"
        self.site = folder / "site"
        for path in listed_files(root):
            target = self.tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, target)
        for path in {path for _, path in marks(self.tree, listed_files(root))}:
            text = (self.tree / path).read_text(encoding="utf-8")
            (self.tree / path).write_text(switched(text, path), encoding="utf-8")

    def build_cxx(self, programs: set[str]) -> None:
        """As `make test-cpp` does: what a compiler cache has of it is not compiled again."""
        run(["cmake", "--preset", "dev", "-S", self.tree, "--log-level=WARNING"], folder=self.tree)
        run(["cmake", "--build", self.build, "--target", *sorted(programs)])

    def prepare_python(self) -> None:
        """Makes the copy the package that Python finds, with the extension as it is installed."""
        extension = importlib.util.find_spec("tensorstream._native")
        if extension is None or extension.origin is None:
            raise GuardError("tensorstream is not installed here: run make build")
        shutil.copy2(extension.origin, self.tree / "python/tensorstream")
        self.site.mkdir()
        (self.site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        command = [sys.executable, "-c", "import tensorstream as t; print(t.__file__)"]
        found = run(command, self.environment(None)).strip().splitlines()[-1]
        if not Path(found).is_relative_to(self.tree):
            raise GuardError(f"the tests would import {found}, not the copy")

    def environment(self, out: Guard | None) -> dict[str, str]:
        """Of a test; `out` is taken out."""
        path = os.pathsep.join([str(self.site), str(self.tree / "python")])
        said = {} if out is None else {OUT: key_of(out.name, out.file)}
        return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | said

    def test_passes(self, guard: Guard, out: Guard | None) -> bool:
        """Whether the test of a guard passes, without the guard `out`."""
        passes = self.pytest_passes if guard.ctest is None else self.ctest_passes
        return passes(guard, self.environment(out))

    def ctest_passes(self, guard: Guard, environment: dict[str, str]) -> bool:
        done = self.ctest(f"^{guard.ctest}", environment, "--stop-on-failure")
        if "No tests were found" in done.stdout:
            raise GuardError(f"guard '{guard.name}': '{guard.ctest}' names no test")
        return done.returncode == 0

    def pytest_passes(self, guard: Guard, environment: dict[str, str]) -> bool:
        done = self.pytest([guard.pytest or ""], environment, "-x")
        if done.returncode > PYTEST_FAILED:
            output = done.stdout[-2000:]
            raise GuardError(f"guard '{guard.name}': pytest could not run:\n{output}")
        return done.returncode == 0

    def ctest(self, pattern: str, environment: dict[str, str], *more: str) -> Done:
        command = ["ctest", "--test-dir", self.build, "-R", pattern, "--no-tests=error", *more]
        return tried([*command, "--timeout", str(SECONDS_FOR_A_TEST)], environment, self.tree)

    def pytest(self, nodes: list[str], environment: dict[str, str], *more: str) -> Done:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more]
        command += [f"--timeout={SECONDS_FOR_A_TEST}", *nodes]
        return tried(command, environment, self.tree)

    def check_untouched(self, guards: list[Guard]) -> None:
        """All tests pass with all guards in place, each once."""
        environment = self.environment(None)
        runs = []
        if patterns := sorted({f"^{guard.ctest}" for guard in guards if guard.ctest is not None}):
            runs.append(self.ctest("|".join(patterns), environment, f"-j{AT_ONCE}"))
        if nodes := sorted({guard.pytest for guard in guards if guard.pytest is not None}):
            runs.append(self.pytest(nodes, environment, f"-n{AT_ONCE}"))
        for done in (done for done in runs if done.returncode):
            raise GuardError(f"tests fail with all guards in place:\n{done.stdout[-3000:]}")

    def runs_until_failure(self, guard: Guard) -> int | None:
        """How often the test ran without the guard until it failed; None where it did not."""
        runs = range(1, MOST_RUNS + 1)
        return next((run for run in runs if not self.test_passes(guard, out=guard)), None)


def suffix_of(path: Path) -> str:
    return ".py" if path.suffix == ".py" else ".cpp"


def tried(
    command: list[str | Path], environment: dict[str, str] | None = None, folder: Path | None = None
) -> Done:
    """What a command says, its errors among it, and its status."""
    return subprocess.run(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def run(
    command: list[str | Path], environment: dict[str, str] | None = None, folder: Path | None = None
) -> str:
    done = tried(command, environment, folder)
    if done.returncode:
        words = " ".join(str(word) for word in command)
        raise GuardError(f"{words} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def verdict(copy: Copy, guard: Guard) -> tuple[bool, float, str]:
    """Whether the guard's test fails without it, after how many seconds, and what is to be said."""
    started = time.monotonic()
    try:
        runs = copy.runs_until_failure(guard)
        said = f"FAILED: its test passes without it, {MOST_RUNS} times"
        if runs is not None:
            said = "a test fails without it" + (f", in run {runs}" if runs > 1 else "")
    except GuardError as error:
        runs, said = None, f"FAILED: {error}"
    return runs is not None, time.monotonic() - started, said


def check(root: Path, names: list[str]) -> int:
    rows = json.loads((root / "scripts/guards.json").read_text(encoding="utf-8"))
    guards = [Guard(**row) for row in rows]
    check_table(guards, root)
    guards = [guard for guard in guards if not names or guard.name in names]
    with tempfile.TemporaryDirectory(prefix="guards-") as folder:
        copy = Copy(root, Path(folder))
        if programs := {guard.program for guard in guards if guard.ctest is not None}:
            print("==> building the tree whose guards can be taken out", flush=True)
            copy.build_cxx(programs)
        if any(guard.pytest is not None for guard in guards):
            copy.prepare_python()
        print("==> running the tests with all guards in place", flush=True)
        copy.check_untouched(guards)
        return report(copy, guards)


def report(copy: Copy, guards: list[Guard]) -> int:
    failed = 0
    with ThreadPoolExecutor(AT_ONCE) as threads:
        verdicts = threads.map(lambda guard: verdict(copy, guard), guards)
        for guard, (good, seconds, said) in zip(guards, verdicts, strict=True):
            failed += not good
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
