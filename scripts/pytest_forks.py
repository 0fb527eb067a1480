"""Runs pytest in forks of a process that has imported what takes seconds to import.

The package that is tested is not among it: what it asks of the environment is asked in each fork.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTED = ("pytest", "torch", "transformers.models.llama.modeling_llama")


class PytestForks:
    """A process that runs one pytest at a time, in `folder` and with that environment."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> PytestForks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, arguments: list[str], more: dict[str, str]) -> tuple[int, str]:
        """pytest's code, or that of its death, and what it said; `more` is added to its environment."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, more]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError("the process that runs pytest has ended")
        code, output = json.loads(answer)
        return int(code), str(output)


def run_in_fork(arguments: list[str], more: dict[str, str]) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = os.fork()
        if child == 0:
            code = 70  # where pytest does not even end
            try:
                for descriptor in (1, 2):
                    os.dup2(output.fileno(), descriptor)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.update(more)
                import pytest

                code = int(pytest.main(arguments))
                sys.stdout.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run_in_fork(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()
