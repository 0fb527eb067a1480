"""Writes the table of model types: see the package."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from model_matrix import sources, table, workers
from model_matrix.trial import Row


class Rows:
    """Rows by type, kept in a file as they come: a run that is ended goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        self._rows = {row["model_type"]: Row(**row) for row in found}

    def __contains__(self, model_type: str) -> bool:
        return model_type in self._rows

    def add(self, row: Row) -> None:
        """Keeps a row, and prints it."""
        self._rows[row.model_type] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [dataclasses.asdict(row) for row in self.sorted()]
        self._path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        print(f"{row.model_type}: {row.state} {row.reason}".rstrip(), flush=True)

    def sorted(self) -> list[Row]:
        """All of them, by type."""
        return [self._rows[name] for name in sorted(self._rows)]


def main() -> int:
    """Runs the types that have no row yet; 1 where one differs or fails offloaded, or its process crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=sources.NAMES, help="the library of models")
    parser.add_argument(
        "types", nargs="*", help="model types to run again; without, those without a row"
    )
    parser.add_argument("--rows", type=Path, required=True, help="a JSON file that keeps the rows")
    parser.add_argument("--docs", type=Path, help="the folder that the table goes to")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=300, help="of wall time, for one type")
    parser.add_argument(
        "--device", default="cpu", help="cpu, or cuda:0: with half of the bytes streamed"
    )
    options = parser.parse_args()
    source = sources.source_named(options.source)
    torch.set_num_threads(1)
    rows = Rows(options.rows)
    wanted = options.types or [name for name in source.types() if name not in rows]
    for row in workers.rows(source, wanted, options.jobs, options.seconds, options.device):
        rows.add(row)
    if options.docs is not None:
        text = table.markdown(source, rows.sorted(), options.device)
        name = table.document(source, options.device)
        (options.docs / name).write_text(text, encoding="utf-8")
    return int(any(row.state in ("differs", "failed", "crashed") for row in rows.sorted()))


if __name__ == "__main__":
    sys.exit(main())
