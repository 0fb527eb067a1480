"""Compares what the ways gave with what the native model gave. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Ways = dict[str, dict[str, Any]]


def rows_of(way: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a way that were measured."""
    yield from (row for row in way.get("rows", ()) if "error" not in row)


def row_named(ways: Ways, way: str, name: str) -> dict[str, Any] | None:
    """The measured row of a pass, or None."""
    return next((row for row in rows_of(ways.get(way, {})) if row["pass"] == name), None)


def same_outputs(row: dict[str, Any], other: dict[str, Any]) -> int | None:
    """How many steps of two rows are equal, tokens and logits; None where one differs.

    Compared are the steps that both have; of none, nothing is known to be equal.
    """
    steps = 0
    for what in ("logits_sha256", "tokens"):
        steps = min(len(row[what]), len(other[what]))
        if steps == 0 or row[what][:steps] != other[what][:steps]:
            return None
    return steps


def compare_with_native(ways: Ways) -> None:
    """Adds to each row whether it equals the native one, and its time as a multiple of it."""
    for name, way in ways.items():
        for row in rows_of(way):
            native = row_named(ways, "native", row["pass"])
            if native is None or name == "native":
                continue
            steps = same_outputs(row, native)
            row["identical_to_native"] = steps is not None
            row["steps_compared"] = steps or 0
            if "seconds_median" in row:
                row["times_native"] = row["seconds_median"] / native["seconds_median"]


def failures_of(ways: Ways) -> list[str]:
    """What did not run, as text."""
    failures = [f"{name}: {way['error']}" for name, way in ways.items() if "error" in way]
    return failures + [
        f"{name} {row['pass']}: {row['error']}"
        for name, way in ways.items()
        for row in way.get("rows", ())
        if "error" in row
    ]
