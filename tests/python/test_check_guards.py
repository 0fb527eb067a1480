"""scripts/check_guards.py takes out what is marked, and refuses a table that lies."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import check_guards
from check_guards import Guard, GuardError, without_guard


@pytest.mark.parametrize(
    ("suffix", "before", "after"),
    [
        (".cpp", "a();\n  wait();  // guard: x\nb();\n", "a();\n  ;\nb();\n"),
        (".cpp", "if (late)\n  wait();  // guard: x\nb();\n", "if (late)\n  ;\nb();\n"),
        (".cpp", "if (a(b)) {  // guard: x\n  c();\n}\n", "if (false) {\n  c();\n}\n"),
        (".cpp", "} else if (a) {  // guard: x\n}\n", "} else if (false) {\n}\n"),
        (".cpp", "while (!done) {  // guard: x\n}\n", "while (false) {\n}\n"),
        (".cpp", "// guard: x\na();\nb();\n  // end guard\nc();\n", ";\n\n\n\nc();\n"),
        (".cpp", "a();  // guard: y\n", "a();  // guard: y\n"),
        (".py", "def f():\n    wait()  # guard: x\n", "def f():\n    pass\n"),
        (".py", "if a:  # guard: x\n    b()\n", "if False:\n    b()\n"),
        (".py", "    # guard: x\n    a()\n    # end guard\n", "    pass\n\n\n"),
    ],
)
def test_a_guard_is_taken_out_and_lines_stay(suffix, before, after):
    assert without_guard(before, "x", suffix) == after


def test_a_block_without_an_end_is_refused():
    with pytest.raises(GuardError, match="no 'end guard'"):
        without_guard("// guard: x\na();\n", "x", ".cpp")


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
    """A copy whose tests are one shell command over the guarded file."""

    def compile(self, programs):
        pass

    def ctest_passes(self, guard):
        path = self.tree / guard.file
        return subprocess.run(["grep", "-q", "f()", path], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("f();  // guard: one\n", "1 passed, 0 failed"),
        ("f();\ng();  // guard: one\n", "0 passed, 1 failed"),
    ],
)
def test_only_a_test_that_fails_without_the_guard_counts(
    tree, tmp_path_factory, capsys, text, line
):
    (tree / "csrc/io/a.cpp").write_text(text)
    copy = ScriptedCopy(tree, tmp_path_factory.mktemp("copy"))
    guard = Guard("one", "csrc/io/a.cpp", ctest=r"io\.")
    failed = check_guards.report(copy, [guard])
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert failed == (line != "1 passed, 0 failed")
    assert (copy.tree / guard.file).read_text() == text


@pytest.mark.parametrize("failing", [1, 3, check_guards.MOST_RUNS, check_guards.MOST_RUNS + 1])
def test_a_test_that_fails_now_and_then_runs_until_it_fails(
    tree, tmp_path_factory, capsys, monkeypatch, failing
):
    (tree / "csrc/io/a.cpp").write_text("f();  // guard: one\n")
    outcomes = iter([True] * (failing - 1) + [False])
    monkeypatch.setattr(ScriptedCopy, "ctest_passes", lambda copy, guard: next(outcomes))
    copy = ScriptedCopy(tree, tmp_path_factory.mktemp("copy"))
    failed = check_guards.report(copy, [Guard("one", "csrc/io/a.cpp", ctest=r"io\.")])
    said = capsys.readouterr().out.splitlines()[0]
    assert failed == (failing > check_guards.MOST_RUNS)
    assert said.endswith(
        "passes without it, 5 times"
        if failed
        else f"fails without it{f', in run {failing}' if failing > 1 else ''}"
    )


def test_a_guard_whose_removal_does_not_build_is_a_failure(tree, tmp_path_factory, capsys):
    copy = check_guards.Copy(tree, tmp_path_factory.mktemp("copy"))
    guard = Guard("one", "csrc/io/a.cpp", ctest=r"io\.")
    assert check_guards.report(copy, [guard]) == 1
    assert "cmake --build" in capsys.readouterr().out
