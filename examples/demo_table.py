"""The table that the example programs print, and the checks behind their exit status."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from measured_run import RunReport

MB = 1_000_000

_Cell = Callable[[RunReport], str]


def megabytes(size_bytes: float) -> str:
    """A size for people."""
    return f"{size_bytes / MB:,.1f} MB"


def _of_engine(show: Callable[[dict], str]) -> _Cell:
    return lambda report: show(report.stats) if report.stats else "-"


def _rate(stats: dict) -> str:
    return f"{megabytes(stats['streamed_bytes_per_second'])}/s"


_ROWS: tuple[tuple[str, _Cell], ...] = (
    ("weights", lambda report: megabytes(report.weights_bytes)),
    ("budget", _of_engine(lambda stats: megabytes(stats["budget_bytes"]))),
    ("peak held by the engine", _of_engine(lambda stats: megabytes(stats["peak_held_bytes"]))),
    ("RSS, warm, before loading", lambda report: megabytes(report.baseline_rss_bytes)),
    ("peak RSS, file pages included", lambda report: megabytes(report.peak_rss_bytes)),
    ("  of it above the warm RSS", lambda report: megabytes(report.rss_above_baseline_bytes)),
    ("streamed", _of_engine(lambda stats: megabytes(stats["streamed_bytes"]))),
    ("  rate while loading", _of_engine(_rate)),
    ("rows and single tensors read", _of_engine(lambda stats: megabytes(stats["on_demand_bytes"]))),
    ("stalled on loads", _of_engine(lambda stats: f"{stats['stalled_share']:.1%}")),
    ("time to load", lambda report: f"{report.load_seconds:.2f} s"),
    ("time to run", lambda report: f"{report.run_seconds:.2f} s"),
)


def print_table(runs: dict[str, RunReport], more: Sequence[tuple[str, _Cell]] = ()) -> None:
    """Prints one column a run, the plain one first, and what was compared.

    Args:
        runs: The reports by the heading of their column.
        more: Rows besides those that every program has.
    """
    reports = list(runs.values())
    rows = [("", list(runs))]
    rows += [(name, [cell(report) for report in reports]) for name, cell in (*_ROWS, *more)]
    rows.append(("sha256 of the outputs", [r.outputs_sha256[:16] for r in reports]))
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(reports))]
    label_width = max(len(name) for name, _ in rows)
    for name, cells in rows:
        shown = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"  {name.ljust(label_width)}  {shown}".rstrip())


def faults(report: RunReport, outputs: bytes, plain_outputs: bytes) -> list[str]:
    """What is wrong with a streamed run; nothing where it kept every promise."""
    found = []
    if outputs != plain_outputs:
        found.append("the outputs differ from those of the plain model")
    held, budget = report.stats["peak_held_bytes"], report.stats["budget_bytes"]
    if held > budget:
        found.append(f"the engine held {held:,} bytes, more than its budget of {budget:,}")
    return found


def conclude(wrong: Sequence[str], size_bytes: int) -> int:
    """Says how it ended; the exit status."""
    for fault in wrong:
        print(f"  FAILED: {fault}")
    if not wrong:
        print(f"  bit-identical: yes, {size_bytes:,} bytes of outputs compared across processes")
    return 1 if wrong else 0
