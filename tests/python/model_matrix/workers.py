"""Runs trials in forked processes, so that a crash or a hang is a row and not the end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from model_matrix.sources import Source
from model_matrix.trial import Row, try_type

_fork = multiprocessing.get_context("fork")


class _Worker:
    """One type under way."""

    def __init__(self, source: Source, model_type: str, seconds: float, device: str) -> None:
        self.model_type = model_type
        self.deadline = time.monotonic() + seconds
        self.result, sender = _fork.Pipe(duplex=False)
        work = (source, model_type, device, sender)
        self._process = _fork.Process(target=_work, args=work, daemon=True)
        self._process.start()
        sender.close()

    def row(self) -> Row:
        """The trial's row, once `result` is ready or the time is over."""
        try:
            if self.result.poll(0):
                row: Row = self.result.recv()
                return row
        except EOFError:
            self._process.join()
            return Row(self.model_type, "crashed", reason=f"exit status {self._process.exitcode}")
        return Row(self.model_type, "late", reason="it took too long")

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self.result.close()


def _work(source: Source, model_type: str, device: str, sender: Any) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sender.send(try_type(source, model_type, device))
    sender.close()


def rows(
    source: Source, model_types: Sequence[str], jobs: int, seconds: float, device: str = "cpu"
) -> Iterator[Row]:
    """The rows of these types of a source, as they come; each has `seconds` of wall time."""
    waiting = list(reversed(model_types))
    running: list[_Worker] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(_Worker(source, waiting.pop(), seconds, device))
        patience = max(0.0, min(worker.deadline for worker in running) - time.monotonic())
        multiprocessing.connection.wait([worker.result for worker in running], patience)
        now = time.monotonic()
        for worker in list(running):
            if worker.result.poll(0) or worker.deadline <= now:
                row = worker.row()
                worker.end()
                running.remove(worker)
                yield row
