"""Reads the reports of ctest, GoogleTest and pytest, which all are JUnit's XML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


@dataclasses.dataclass
class Outcomes:
    """Names of tests by what became of them. A test that is disabled counts as skipped."""

    passed: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many there are, and how many of them did not pass."""
        failed, skipped = len(self.failed), len(self.skipped)
        return {"tests": len(self.passed) + failed + skipped, "failed": failed, "skipped": skipped}

    def add(self, other: Outcomes) -> None:
        """Takes in the tests of another report."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped.update(other.skipped)

    def problems(self) -> list[str]:
        """Why a run in which every test has to run and pass does not pass."""
        found = []
        if not (self.passed or self.failed or self.skipped):
            found.append("no test ran")
        if self.failed:
            found.append(f"{len(self.failed)} failed: {some(self.failed)}")
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            said = f" ({reason})" if reason else ""
            found.append(f"{len(self.skipped)} were skipped, and none may be: {name}{said}")
        return found

    def as_json(self) -> dict[str, Any]:
        """Counts, and the names of what did not pass."""
        return {**self.counts(), "failed_tests": self.failed, "skipped_tests": self.skipped}


def some(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_report(path: Path) -> Outcomes:
    """The tests of one file; a report that is missing holds none."""
    report = Outcomes()
    if not path.is_file():
        return report
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        group, name = case.get("classname") or "", case.get("name") or ""
        full = name if group in ("", name) else f"{group}.{name}"
        skipped = case.find("skipped")
        if skipped is not None or case.get("status") in ("disabled", "notrun"):
            text = "" if skipped is None else skipped.get("message") or ""
            report.skipped[full] = " ".join(text.split())[:200]
        elif case.find("failure") is not None or case.find("error") is not None:
            report.failed.append(full)
        else:
            report.passed.append(full)
    return report
