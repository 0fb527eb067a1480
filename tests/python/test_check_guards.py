"""scripts/check_guards.py takes out what is marked, and refuses a table that lies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import check_guards
from check_guards import Guard, GuardError, switched

SOURCES = {
    ".cpp": """#include <cstdio>
void say(const char* word) {{ std::puts(word); }}
bool yes() {{ return true; }}
int main() {{
{0}
  say("end");
}}
""",
    ".py": """say = print
def yes():
    return True
def main():
{0}
    say("end")
main()
""",
}


def said(tmp_path: Path, suffix: str, lines: str, out: str) -> list[str]:
    """What a program says whose guards are switched, without the guard `out`."""
    text = switched(SOURCES[suffix].format(lines.rstrip("\n")), f"a{suffix}")
    source = tmp_path / f"a{suffix}"
    source.write_text(text)
    program = [sys.executable, source]
    if suffix == ".cpp":
        program = [tmp_path / "a"]
        command = ["g++", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", source]
        subprocess.run([*command, "-o", *program], check=True)
    environment = os.environ | {check_guards.OUT: out}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("suffix", "lines"),
    [
        (".cpp", '  say("x");  // guard: x\n'),
        (".cpp", '  if (yes())\n    say("x");  // guard: x\n'),
        (".cpp", '  if (yes()) say("x");  // guard: x\n'),
        (".cpp", '  if (yes()) {  // guard: x\n    say("x");\n  }\n'),
        (".cpp", '  if (!yes() || yes()) {  // guard: x\n    say("x");\n  }\n'),
        (".cpp", '  if (!yes()) {\n  } else if (yes()) {  // guard: x\n    say("x");\n  }\n'),
        (".cpp", '  while (yes()) {  // guard: x\n    say("x");\n    break;\n  }\n'),
        (".cpp", '  // guard: x\n  if (yes()) {\n    say("x");\n  }\n  // end guard\n'),
        (".py", '    say("x")  # guard: x\n'),
        (".py", '    if yes():\n        say("x")  # guard: x\n'),
        (".py", '    if yes():  # guard: x\n        say("x")\n'),
        (".py", '    if not yes() or yes():  # guard: x\n        say("x")\n'),
        (".py", '    if not yes():\n        pass\n    elif yes():  # guard: x\n        say("x")\n'),
        (".py", '    # guard: x\n    if yes():\n        say("x")\n    # end guard\n'),
    ],
)
def test_a_guard_is_out_where_the_environment_says_so(tmp_path, suffix, lines):
    assert said(tmp_path, suffix, lines, out=f"a{suffix}:x") == ["end"]
    for other in (f"a{suffix}:y", f"b{suffix}:x"):
        assert said(tmp_path, suffix, lines, out=other) == ["x", "end"]


@pytest.mark.parametrize("suffix", SOURCES)
def test_lines_keep_their_numbers(suffix):
    mark = {".cpp": "//", ".py": "#"}[suffix]
    text = f"a\n  {mark} guard: x\n  b\n  {mark} end guard\n  c {mark} guard: y\nd\n"
    lines = switched(text, f"a{suffix}").split("#line 1\n")[-1].splitlines()
    assert len(lines) == len(text.splitlines())
    assert lines[2].strip() == "b"
    assert lines[5] == "d"


def test_a_source_without_guards_stays_as_it_is():
    assert switched("a();\nb();\n", "a.cpp") == "a();\nb();\n"


def test_a_block_without_an_end_is_refused():
    with pytest.raises(GuardError, match="no 'end guard'"):
        switched("// guard: x\na();\n", "a.cpp")


@pytest.mark.parametrize(
    "code",
    [
        "const MutexLock lock(mutex_);",
        "std::lock_guard<std::mutex> lock{mutex};",
        "auto& it = at(1);",
        "Slot* slot;",
    ],
)
def test_a_declaration_is_refused_which_would_end_where_its_guard_does(code):
    for text in (f"  {code}  // guard: x\n", f"  // guard: x\n  {code}\n  // end guard\n"):
        with pytest.raises(GuardError, match=r"guard 'x': .* is a declaration"):
            switched(text, "a.cpp")


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "csrc/io").mkdir(parents=True)
    (tmp_path / "csrc/io/a.cpp").write_text("f();  // guard: one\n")
    return tmp_path


def test_a_table_that_agrees_with_the_sources_is_taken(tree):
    check_guards.check_table([Guard("one", "csrc/io/a.cpp")], tree)


@pytest.mark.parametrize(
    ("guards", "problem"),
    [
        ([Guard("one", "csrc/io/a.cpp"), Guard("two", "csrc/io/a.cpp")], "'two' is listed, but"),
        ([Guard("one", "csrc/io/b.cpp")], "'one' is marked in csrc/io/a.cpp, but not listed"),
        ([Guard("one", "csrc/io/a.cpp")] * 2, "listed twice"),
        ([], "no guard is listed"),
    ],
)
def test_a_table_that_differs_from_the_sources_is_refused(tree, guards, problem):
    with pytest.raises(GuardError, match=problem):
        check_guards.check_table(guards, tree)


def test_a_pattern_without_a_layer_is_refused():
    with pytest.raises(GuardError, match="must begin with its layer"):
        _ = Guard("one", "csrc/io/a.cpp", ctest=".*").program


class ScriptedCopy(check_guards.Copy):
    """A copy whose tests are the guarded file, which is run."""

    def ctest(self, pattern, environment, *more):
        return check_guards.tried([sys.executable, self.tree / "csrc/io/a.py"], environment)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\nx = 0  # guard: one\nraise SystemExit(x)\n", "1 passed, 0 failed"),
        ("x = 0\nx = 0  # guard: one\nraise SystemExit(x)\n", "0 passed, 1 failed"),
    ],
)
def test_only_a_test_that_fails_without_the_guard_counts(
    tree, tmp_path_factory, capsys, text, line
):
    (tree / "csrc/io/a.py").write_text(text)
    copy = ScriptedCopy(tree, tmp_path_factory.mktemp("copy"))
    guard = Guard("one", "csrc/io/a.py", ctest=r"io\.")
    copy.check_untouched([guard])
    failed = check_guards.report(copy, [guard])
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert failed == (line != "1 passed, 0 failed")
    assert (tree / guard.file).read_text() == text


def test_a_test_that_fails_with_the_guard_in_place_is_refused(tree, tmp_path_factory):
    (tree / "csrc/io/a.py").write_text("print('why')\nraise SystemExit(1)\nf()  # guard: one\n")
    copy = ScriptedCopy(tree, tmp_path_factory.mktemp("copy"))
    with pytest.raises(GuardError, match="tests fail with all guards in place:\nwhy"):
        copy.check_untouched([Guard("one", "csrc/io/a.py", ctest=r"io\.")])


@pytest.mark.parametrize("failing", [1, 3, check_guards.MOST_RUNS, check_guards.MOST_RUNS + 1])
def test_a_test_that_fails_now_and_then_runs_until_it_fails(
    tree, tmp_path_factory, capsys, monkeypatch, failing
):
    outcomes = iter([True] * (failing - 1) + [False])
    monkeypatch.setattr(ScriptedCopy, "ctest_passes", lambda *_: next(outcomes))
    copy = ScriptedCopy(tree, tmp_path_factory.mktemp("copy"))
    failed = check_guards.report(copy, [Guard("one", "csrc/io/a.cpp", ctest=r"io\.")])
    said = capsys.readouterr().out.splitlines()[0]
    assert failed == (failing > check_guards.MOST_RUNS)
    assert said.endswith(
        "passes without it, 5 times"
        if failed
        else f"fails without it{f', in run {failing}' if failing > 1 else ''}"
    )


def test_a_test_that_cannot_run_is_a_failure(tree, tmp_path_factory, capsys):
    copy = check_guards.Copy(tree, tmp_path_factory.mktemp("copy"))
    copy.build.mkdir(parents=True)
    assert check_guards.report(copy, [Guard("one", "csrc/io/a.cpp", ctest=r"io\.")]) == 1
    assert "names no test" in capsys.readouterr().out
