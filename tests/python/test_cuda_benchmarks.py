"""The CUDA benchmarks without a GPU: comparison, targets, assembly, and processes of a tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import cuda_llama
import cuda_loading
from cuda_runs import (
    budgets,
    comparison,
    machine_sheet,
    processes,
    result,
    targets,
)
from cuda_runs.driver import chosen
from cuda_runs.llama_model import TINY
from cuda_runs.loaders import LOADERS
from cuda_runs.loading_runs import lay_together
from cuda_runs.memory_watch import MemoryWatch

LINK = 50e9


def row(name: str, seconds: float, **more: Any) -> dict[str, Any]:
    outputs = {"tokens": [[1], [2]], "logits_sha256": ["a", "b"]}
    kind, batch = name.split("/")
    rate = {"tokens_per_second": int(batch) / seconds} if kind == "decode" else {}
    times = {f"seconds_{what}": seconds for what in ("median", "min", "max")}
    return {"pass": name, **times, **rate, **outputs, "peak_device_bytes": 1, **more}


def ours(budget: int, *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "weights_bytes": 13_000_000_000,
        "budget_bytes": budget,
        "peak_device_bytes": budget - 1,
        "host_bytes_beyond_the_model": 130_000_000,
        "plan": {
            "resident_bytes": 500_000_000,
            "on_demand_bytes": 250_000_000,
            "predicted_seconds": 0.25,
        },
        "rows": list(rows),
        **more,
    }


def met(made: list[targets.Target], beginning: str) -> bool | None:
    (found,) = [one for one in made if one.name.startswith(beginning)]
    return found.met


def test_a_decode_is_held_against_the_bytes_that_it_needs() -> None:
    needed = 12_250_000_000  # 13 GB less resident and on-demand
    bound = needed / LINK / 0.97
    for seconds, expected in ((bound * 0.999, True), (bound * 1.001, False)):
        ways = {"tensorstream-small": ours(10, row("decode/1", seconds))}
        made = targets.decode_target(ways, LINK, "tensorstream-small", 0.97)
        assert made.met is expected
        assert made.target == pytest.approx(bound)


def test_bytes_that_are_moved_for_nothing_do_not_lower_the_bar() -> None:
    way = ours(10)
    assert targets.needed_bytes(way, 20_000_000_000) == 12_250_000_000
    assert targets.needed_bytes(way, 12_000_000_000) == 12_000_000_000
    assert targets.moved_bytes(way, 20_000_000_000) == 12_750_000_000
    assert targets.moved_bytes(way, None) is None


@pytest.mark.parametrize(
    ("native", "seconds", "expected"),
    [(0.06, 0.262, True), (0.06, 0.263, False), (0.4, 0.419, True), (0.4, 0.421, False)],
)
def test_a_prefill_is_held_against_the_larger_of_native_and_the_link(
    native: float, seconds: float, expected: bool
) -> None:
    streamed = row("prefill/1", seconds, streamed_bytes_a_pass=12_500_000_000)  # 0.25 s of link
    ways = {"native": {"rows": [row("prefill/1", native)]}, "p": ours(10, streamed)}
    made = targets.prefill_targets(ways, LINK, "p")
    assert met(made, "p: prefill/1") is expected
    assert met(made, "p: prefill/8") is None


def test_every_row_of_the_table_is_unknown_where_nothing_was_measured() -> None:
    for made in (targets.llama_targets({}, LINK), targets.diffusion_targets({}, LINK)):
        assert {one.met for one in made} == {None}
        assert len({one.name for one in made}) == len(made)


def test_names_of_targets_do_not_depend_on_what_was_measured() -> None:
    ways = {"tensorstream-small": ours(10, row("decode/1", 0.2), row("decode/16", 0.2))}
    names = [one.name for one in targets.llama_targets(ways, LINK)]
    assert names == [one.name for one in targets.llama_targets({}, LINK)]


def test_the_table_is_met_by_a_run_that_meets_it_and_no_other() -> None:
    ways = {
        "native": {"rows": [row("decode/1", 0.1), row("decode/16", 0.1)]},
        "tensorstream-small": ours(
            10, row("decode/1", 0.25), row("decode/16", 0.26), setup_seconds=2.9
        ),
        "tensorstream-25-percent": ours(10, row("decode/1", 0.262)),
        "tensorstream-50-percent": ours(10, row("decode/1", 0.263)),
        "tensorstream-hooks-first": hooks(1.0, resident=15.0, streamed=49.9),
        "tensorstream-hooks-last": hooks(0.9, resident=14.9, streamed=50.0),
        "tensorstream-everything": {"hooks": 0, "rows": [], "budget_bytes": 1},
    }
    comparison.compare_with_native(ways)
    made = targets.llama_targets(ways, LINK)
    expected = {
        "tensorstream-small: decode, batch 16": True,
        "tensorstream-25-percent": True,
        "tensorstream-50-percent": False,
        "tensorstream-75-percent": None,
        "tensorstream-everything: hooks": True,
        "acquire + release, resident": True,
        "acquire + release, streamed": False,
        "set-up of a model": True,
        "peak by the driver": True,
        "host RAM": True,
        "rows that differ": True,
    }
    assert {name: met(made, name) for name in expected} == expected


def hooks(plain_call: float, **costs: float) -> dict[str, Any]:
    return {"acquire_release_us": costs, "plain_call_us": {"median": plain_call}}


def test_hooks_are_judged_by_the_quietest_round_and_not_by_the_best() -> None:
    quiet, loud = hooks(3.0, resident=16.0, streamed=49.0), hooks(6.0, resident=14.0, streamed=51.0)
    ways = {"tensorstream-hooks-a": loud, "tensorstream-hooks-b": quiet, "tensorstream-c": ours(1)}
    made = targets.hook_targets(ways)
    assert [(one.reached, one.met, one.of) for one in made] == [(16.0, False, 2), (49.0, True, 2)]


def test_the_worst_peak_is_judged() -> None:
    ways = {"tensorstream-a": ours(100), "tensorstream-b": ours(100, peak_device_bytes=101)}
    made = targets.peak_target(ways)
    assert (made.met, made.reached, made.of) == (False, 1.01, 2)


def test_rows_of_which_one_cannot_be_compared_are_not_said_to_be_identical() -> None:
    same, unknown = {"identical_to_native": True}, {}
    ways = {"a": ours(10, row("decode/1", 1.0, **same), row("decode/16", 1.0, **unknown))}
    assert targets.identical_target(ways).met is None
    ways = {"a": ours(10, row("decode/1", 1.0, identical_to_native=False))}
    assert targets.identical_target(ways).met is False


def test_outputs_are_compared_as_far_as_both_go() -> None:
    native = {"tokens": [[1], [2], [3]], "logits_sha256": ["a", "b", "c"]}
    assert comparison.same_outputs({"tokens": [[1], [2]], "logits_sha256": ["a", "b"]}, native) == 2
    other_logits = {"tokens": [[1], [2]], "logits_sha256": ["a", "x"]}
    assert comparison.same_outputs(other_logits, native) is None
    other_tokens = {"tokens": [[1], [9]], "logits_sha256": ["a", "b"]}
    assert comparison.same_outputs(other_tokens, native) is None
    assert comparison.same_outputs({"tokens": [], "logits_sha256": []}, native) is None


def assembled(link_before: float, link_after: float, **ways: Any) -> dict[str, Any]:
    measured = {
        "link-before": {"link_bytes_per_second": link_before},
        **ways,
        "link-after": {"link_bytes_per_second": link_after},
    }
    return result.assemble(measured, targets.llama_targets, 52e9, {"question": "q"})


def test_the_better_probe_counts_and_a_slow_link_voids_the_run() -> None:
    good = assembled(51e9, 55e9)
    assert (good["link_bytes_per_second"], good["void"]) == (55e9, None)
    slow = assembled(51e9, 50e9)
    assert slow["void"] == "the link gave 51.0 GB/s, less than 52.0"
    assert "void: the link gave 51.0 GB/s, less than 52.0" in result.faults(slow, False)


def test_failures_of_processes_and_of_passes_are_faults() -> None:
    bad_row = {"pass": "prefill/8", "error": "BudgetError: too small"}
    found = assembled(
        55e9, 55e9, native={"error": "ended:\nlast"}, tensorstream={"rows": [bad_row]}
    )
    assert result.faults(found, every_target=False) == [
        "failed: native: last",
        "failed: tensorstream prefill/8: BudgetError: too small",
    ]
    assert "not measured: acquire + release, resident block" in result.faults(found, True)
    assert "tensorstream prefill/8: BudgetError" in result.table(found, False)


def test_a_process_that_fails_is_reported_and_one_that_prints_json_is_read(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys; print('noise'); print(sys.argv[1]); sys.exit(int(sys.argv[2]))")
    deadline = processes.Deadline(None)
    assert processes.run_json(program, ['{"a": 1}', "0"], deadline)["a"] == 1
    assert "status 3" in processes.run_json(program, ['{"a": 1}', "3"], deadline)["error"]
    assert "status 0" in processes.run_json(program, ["no json", "0"], deadline)["error"]
    late = processes.run_json(program, ["{}", "0"], processes.Deadline(0))
    assert late["error"].startswith("not run")


def test_budgets_are_bytes_or_shares() -> None:
    assert budgets.budget_bytes("1.25GiB", 7) == 1_342_177_280
    assert budgets.budget_bytes("x0.25", 1000) == 250
    assert budgets.budget_bytes("500", 7) == 500
    with pytest.raises(SystemExit, match=r"budget '1\.25 GiB'"):
        budgets.budget_bytes("1.25 GiB", 7)
    assert budgets.budget_options("cuda:0", 5) == {
        "device": "cuda:0",
        "vram_budget": 5,
        "compression": "none",
    }
    assert budgets.budget_options("cpu", 5) == {
        "device": "cpu",
        "ram_budget": 5,
        "compression": "none",
    }


def test_the_commit_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine_sheet.COMMIT_VARIABLE, "abc")
    assert machine_sheet.commit() == "abc"


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "NVIDIA H100 80GB HBM3, 580.159.04, 81559, 5, 16\n"
    monkeypatch.setattr(machine_sheet, "output_of", lambda *_, **__: text)
    (gpu,) = machine_sheet.gpus()
    assert (gpu["name"], gpu["memory.total"]) == ("NVIDIA H100 80GB HBM3", 81559)
    monkeypatch.setattr(machine_sheet, "output_of", lambda *_, **__: None)
    assert machine_sheet.gpus() == []


def test_ways_are_chosen_by_their_beginnings() -> None:
    plan = cuda_llama.make_plan(cuda_llama.parse(["--dry-run", "--device", "cpu"]))
    found = chosen(plan, "native,tensorstream-small")
    expected = "link-before native tensorstream-small tensorstream-smallest link-after".split()
    assert list(found) == expected
    with pytest.raises(SystemExit, match="nothing begins with 'nativ3'"):
        chosen(plan, "nativ3")


def printed(capsys: pytest.CaptureFixture[str], command: str, *more: str) -> dict[str, Any]:
    lengths = "--prompt 4 --context 6 --new-tokens 2 --repeats 1 --pairs 1".split()
    arguments = [command, "--device", "cpu", *TINY.arguments(), *lengths, *more]
    assert cuda_llama.main(arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return found


def test_processes_of_a_tiny_shape_agree_with_native(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    passes = ["--passes", "decode/1,prefill/2"]
    ways = {
        "native": printed(capsys, "native", *passes),
        "tensorstream-small": printed(capsys, "tensorstream", *passes, "--budget", "x0.6"),
        "tensorstream-everything": printed(
            capsys, "paired", "--passes", "prefill/2", "--budget", "x2.4"
        ),
        "coded-paired": printed(
            capsys, "paired-coded", "--passes", "prefill/2", "--budget", "x0.6"
        ),
        "tensorstream-checkpoint": printed(
            capsys, "checkpoint", "--budget", "x0.6", "--folder", str(tmp_path)
        ),
    }
    comparison.compare_with_native(ways)
    compared = targets.identical_target({k: v for k, v in ways.items() if k != "native"})
    assert (compared.met, compared.of) == (True, 5)
    assert ways["tensorstream-small"]["plan"]["predicted_seconds"] > 0
    decoding, prefilling = ways["tensorstream-small"]["rows"]
    assert decoding["streamed_bytes_a_pass"] > 0
    assert 0 < decoding["thread_seconds_median"] <= 1.5 * decoding["seconds_max"]
    assert decoding["switches_a_step"] >= 0
    assert "thread_seconds_median" not in prefilling
    assert ways["tensorstream-everything"]["hooks"] == 0
    assert ways["coded-paired"]["hooks"] > 0
    assert "peak_device_bytes" not in ways["coded-paired"]
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_step_of_lora_agrees_with_native(tmp_path: Path) -> None:
    result = tmp_path / "lora.json"
    program = Path(cuda_llama.__file__).with_name("cuda_lora.py")
    options = ["measure", "--device", "cpu", "--dry-run", "--output", str(result)]
    done = subprocess.run([sys.executable, program, *options], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(result.read_text())
    (row,) = found["ways"]["tensorstream-lora"]["rows"]
    assert row["identical_to_native"]
    assert row["steps_compared"] == 4
    assert row["streamed_bytes_a_pass"] > 0
    losses = found["ways"]["native"]["rows"][0]["tokens"]
    assert len(set(losses)) == len(losses), "nothing was trained"


def loaded(capsys: pytest.CaptureFixture[str], command: str, folder: Path) -> dict[str, Any]:
    lengths = ["--prompt", "4", "--new-tokens", "2", "--folder", str(folder)]
    assert cuda_loading.main([command, "--device", "cpu", *TINY.arguments(), *lengths]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return found | {"seconds": 1.0}


def test_tiny_loads_agree_with_native_and_a_loader_that_is_not_there_is_said_to_be_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = loaded(capsys, "make", tmp_path)
    assert len(made["files_bytes"]) > 1
    assert sum(made["files_bytes"]) > made["weights_bytes"]
    monkeypatch.setattr(LOADERS["fastsafetensors"], "package", "not-a-package")
    ran = (
        "native",
        "safetensors-on-device",
        "transformers",
        "fastsafetensors",
        "tensorstream-load",
    )
    ways = lay_together({f"{name}/0": loaded(capsys, name, tmp_path) for name in ran}, rounds=3)
    comparison.compare_with_native(ways)
    assert (
        ways["fastsafetensors"]["missing"] == "not-a-package is not installed: it was not measured"
    )
    assert not comparison.failures_of(ways)
    for name in ("safetensors-on-device", "transformers", "tensorstream-load"):
        ready, first = comparison.rows_of(ways[name])
        assert 0 < ready["seconds_median"] < first["seconds_median"]
        assert (first["identical_to_native"], first["steps_compared"]) == (True, 4)
        assert ways[name]["cache_read_bytes_per_second"][0] > 0


def load(seconds: float, **more: Any) -> dict[str, Any]:
    outputs = {"tokens": [[1]], "logits_sha256": ["a"], "peak_device_bytes": None}
    times = {"ready_seconds": seconds / 2, "first_token_seconds": seconds, "seconds": 9.0}
    return {
        "how": "",
        **outputs,
        **times,
        "peak_host_bytes": 1,
        "cache_read_bytes_per_second": 1,
    } | more


def test_a_load_is_held_against_the_fastest_loader_and_all_have_to_be_there() -> None:
    runs = {f"{name}/{n}": load(4.0) for name in LOADERS for n in range(3)}
    runs |= {f"tensorstream-load/{n}": load(2.9 + n) for n in range(3)}
    for seconds, expected in ((2.9, True), (2.7, False)):
        runs |= {f"fastsafetensors/{n}": load(seconds + n) for n in range(3)}
        ways = lay_together(runs, rounds=3)
        comparison.compare_with_native(ways)
        assert (
            met(targets.loading_targets(ways, LINK), "tensorstream-load: first token") is expected
        )
    runs |= {f"runai-model-streamer/{n}": {"missing": "it", "seconds": 1.0} for n in range(3)}
    made = targets.loading_targets(lay_together(runs, rounds=3), LINK)
    assert met(made, "tensorstream-load: first token") is None
    runs |= {f"runai-model-streamer/{n}": load(4.0) for n in range(3)}
    for name in ("transformers", "safetensors-on-device"):
        missing = {f"{name}/{n}": {"missing": "it", "seconds": 1.0} for n in range(3)}
        made = targets.loading_targets(lay_together(runs | missing, rounds=3), LINK)
        assert met(made, "tensorstream-load: first token") is not None, (
            "others count where they are"
        )


def test_rounds_that_fail_or_differ_are_faults_beside_what_the_others_gave() -> None:
    stopped = {"error": "stopped", "seconds": 1.0}
    ways = lay_together(
        {"native/0": load(2.0), "native/1": stopped, "native/2": load(3.0)}, rounds=3
    )
    assert comparison.failures_of(ways) == ["native: stopped"]
    assert [row["seconds_median"] for row in comparison.rows_of(ways["native"])] == [1.25, 2.5]
    ways = lay_together(
        {"native/0": load(2.0), "native/1": load(2.0, logits_sha256=["b"])}, rounds=3
    )
    assert comparison.failures_of(ways) == ["native: its rounds gave different outputs"]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no CUDA device here"):
        cuda_llama.main(["link"])


def test_a_watch_samples_nothing_while_something_is_timed() -> None:
    class Counted:
        asked = 0
        asked_here = 0

        def release_cached(self) -> None:
            pass

        def reserved_bytes(self) -> int:
            return 0

        def free_bytes(self) -> int:
            self.asked += 1
            self.asked_here += threading.current_thread() is threading.main_thread()
            return 1000 - self.asked

    accelerator: Any = Counted()
    with MemoryWatch(accelerator, 0.001) as watch:
        here = accelerator.asked_here
        while accelerator.asked < 3:
            time.sleep(0.001)
        with watch.resting():
            asked = accelerator.asked
            time.sleep(0.05)
            assert accelerator.asked == asked
        assert accelerator.asked_here == here + 1, "what is held at its end counts"
        assert watch.lap().device_bytes >= asked
