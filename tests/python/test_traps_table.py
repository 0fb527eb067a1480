"""docs/traps.md names a test for each trap, and every test that it and docs/scenarios.md name exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
SCENARIOS = (ROOT / "docs/scenarios.md").read_text(encoding="utf-8")
TRAPS = 38
ROW = re.compile(r"^\| (\d+)\. (.*) \| (.*) \|$", re.MULTILINE)


def _rows() -> dict[int, str]:
    return {int(number): tests for number, _, tests in ROW.findall(TABLE)}


def test_every_trap_has_a_row_with_a_test() -> None:
    rows = _rows()
    assert sorted(rows) == list(range(1, TRAPS + 1))
    assert all("`" in tests for tests in rows.values())


def _exists(name: str) -> bool:
    """Whether there is a Python test `file::function`."""
    file, _, function = name.partition("::")
    text = (ROOT / "tests/python" / file).read_text(encoding="utf-8")
    return f"\ndef {function}(" in text


def test_every_scenario_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", SCENARIOS, re.MULTILINE)
    rows = [row for row in rows if row[0] != "scenario"]
    assert len(rows) > 20
    for scenario, _, ours in rows:
        named = [name for name in re.findall(r"`([^`]+)`", ours) if "::" in name]
        assert named, scenario
        assert all(map(_exists, named)), scenario


def test_every_test_that_is_named_exists() -> None:
    named = [name for tests in _rows().values() for name in re.findall(r"`([^`]+)`", tests)]
    assert len(named) > 2 * TRAPS
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests/cpp").rglob("*.cpp")]
    suites = set(re.findall(r"^\w*TEST\w*\((\w+,\s*\w+)\)", "\n".join(sources), re.MULTILINE))
    missing = []
    for name in named:
        found = _exists(name) if "::" in name else re.sub(r"\.", ", ", name) in suites
        missing += [] if found else [name]
    assert not missing
