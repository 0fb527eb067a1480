"""The example programs: both end to end on small settings, and the checks that make them fail."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = (
    "--hidden 256 --inner 512 --layers 5 --heads 4 --key-heads 2 --vocabulary 1000 "
    "--shard-bytes 2000000 --new-tokens 3"
).split()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of examples/ by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_encoder_search_ranks_and_compares() -> None:
    done = run_example("encoder_search.py")
    assert done.returncode == 0, done.stdout + done.stderr
    best = re.search(r"^ +(-?\d\.\d+)  (.+)$", done.stdout, re.MULTILINE)
    assert best is not None
    assert best[2].startswith("Virtual memory")
    assert "bit-identical: yes, 19,968 bytes" in done.stdout  # 13 embeddings of 384 float32


def test_llama_generate_streams_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    done = run_example("llama_generate.py", *SMALL, "--folder", str(tmp_path), "--budget", "3MB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical: yes" in done.stdout
    streamed = re.search(r"^  streamed +- +([\d,.]+) MB$", done.stdout, re.MULTILINE)
    assert streamed is not None
    assert float(streamed[1].replace(",", "")) > 0
    assert [path.name.startswith("llama-256x5-") for path in tmp_path.iterdir()] == [True]


def test_llama_generate_fails_where_the_streamed_run_fails(tmp_path: Path) -> None:
    done = run_example("llama_generate.py", *SMALL, "--folder", str(tmp_path), "--budget", "1KB")
    assert done.returncode != 0
    assert "the smallest budget that works is" in done.stderr
    assert "bit-identical" not in done.stdout


def report(example: Any, **stats: int) -> Any:
    return example("measured_run").RunReport(
        weights_bytes=10,
        baseline_rss_bytes=100,
        peak_rss_bytes=130,
        load_seconds=0.0,
        run_seconds=0.0,
        stats={"peak_held_bytes": 5, "budget_bytes": 5, **stats},
        notes={},
    )


def test_faults_names_outputs_that_differ(example: Any) -> None:
    faults = example("demo_table").faults
    assert faults(report(example), b"ab", b"ab") == []
    assert faults(report(example), b"ab", b"ac") == [
        "the outputs differ from those of the plain model"
    ]


def test_faults_names_a_budget_that_was_exceeded(example: Any) -> None:
    found = example("demo_table").faults(report(example, peak_held_bytes=6), b"", b"")
    assert found == ["the engine held 6 bytes, more than its budget of 5"]


def test_conclude_exits_by_what_is_wrong(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    conclude = example("demo_table").conclude
    assert conclude([], 3) == 0
    assert conclude(["something"], 3) == 1
    assert "FAILED: something" in capsys.readouterr().out


def test_rss_above_the_limit_fails_the_llama_program(
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = example("llama_generate")
    peak_bytes = 100 + 5 + program.ALLOWANCE_BYTES
    numbers = dict.fromkeys(("streamed_bytes", "streamed_bytes_per_second", "on_demand_bytes"), 0)
    notes = {"tokens": [1], "first_token": 0.0, "each_token": 0.0, "group_peak": 0}

    def start_run(*_: Any) -> tuple[Any, bytes]:
        made = report(example, stalled_share=0, **numbers)
        made.notes, made.peak_rss_bytes = notes, peak_bytes
        return made, b"same"

    def compare() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["llama_generate.py", "--folder", str(tmp_path)])
            patch.setattr(program, "make_in_own_process", lambda *_: None)
            patch.setattr(program, "start_run", start_run)
            status: int = program.main()
            return status

    assert compare() == 0
    peak_bytes += 1
    assert compare() == 1
    assert f"took {peak_bytes:,} bytes, {peak_bytes - 1:,} are allowed" in capsys.readouterr().out


def test_rss_watch_counts_pages_of_mapped_files(example: Any, tmp_path: Path) -> None:
    import mmap

    size_bytes = 64 << 20
    path = tmp_path / "pages"
    path.write_bytes(bytes(size_bytes))
    watch = example("measured_run").RssWatch()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        sum(pages[offset] for offset in range(0, size_bytes, 4096))
    risen = watch.peak_bytes() - watch.baseline_bytes
    assert size_bytes * 0.95 < risen < size_bytes * 1.5


def test_start_run_refuses_outputs_that_are_not_the_reported_ones(
    example: Any, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "from pathlib import Path; from measured_run import RunReport\n"
        "folder = Path(sys.argv[-1])\n"
        "RunReport(1, 1, 1, 0.0, 0.0, {}, {}).write(folder, b'one')\n"
        "if 'swap' in sys.argv: (folder / 'outputs.bin').write_bytes(b'two')\n"
    )
    start_run = example("measured_run").start_run
    assert start_run(str(program), [], tmp_path / "kept")[1] == b"one"
    with pytest.raises(SystemExit, match="not those that the run reported"):
        start_run(str(program), ["swap"], tmp_path / "swapped")


def test_checkpoints_of_one_shape_are_equal_and_made_once(example: Any, tmp_path: Path) -> None:
    made = example("llama_checkpoint")
    shape = made.Shape(64, 128, 2, 2, 1, 128, shard_bytes=100_000)
    one = made.make_checkpoint(shape, tmp_path / "one")
    other = made.make_checkpoint(shape, tmp_path / "other")
    files = sorted(path.name for path in one.iterdir())
    assert sum(name.endswith(".safetensors") for name in files) > 1
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)
    (one / "marker").touch()
    assert made.make_checkpoint(shape, tmp_path / "one") == one
    assert (one / "marker").exists()
    assert made.Shape(seed=1).folder_name() != made.Shape().folder_name()


def write_group(folder: Path, subtree_control: str, limit: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.subtree_control").write_text(subtree_control)
    (folder / "memory.max").write_text(limit)
    return folder


@pytest.mark.parametrize(("limit", "found"), [("max\n", True), ("1000\n", False)])
def test_memory_groups_are_not_made_outside_of_a_limit(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, found: bool
) -> None:
    groups = example("memory_group")
    monkeypatch.setattr(groups, "_MOUNT", tmp_path)
    outer = write_group(tmp_path / "slice", "cpu memory\n", "1000\n")
    inner = write_group(outer / "scope", "", limit)
    assert groups._unified_parent(inner) == (outer if found else None)


def test_memory_group_is_limited_by_the_file_of_its_version(example: Any, tmp_path: Path) -> None:
    groups = example("memory_group")
    for version, limit, peak, swap, most in (
        ("two", "memory.max", "memory.peak", "memory.swap.max", "0"),
        (
            "one",
            "memory.limit_in_bytes",
            "memory.max_usage_in_bytes",
            "memory.memsw.limit_in_bytes",
            "123",
        ),
    ):
        folder = tmp_path / version
        folder.mkdir()
        (folder / limit).write_text("max")
        (folder / swap).write_text("max")
        (folder / peak).write_text("77\n")
        group = groups.MemoryGroup(folder)
        group.limit(123)
        group.enter()
        assert (folder / limit).read_text() == "123"
        assert (folder / swap).read_text() == most
        assert (folder / "cgroup.procs").read_text() == str(os.getpid())
        assert group.peak_bytes() == 77
