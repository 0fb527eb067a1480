"""Rounds of measurements in a host's quiet minutes, and steps beside what a plan says for their host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tensorstream import compute_device, host_rate

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from cuda_runs import llama_runs, planned_steps, quiet_rounds, targets
from cuda_runs.accelerator import HostAccelerator
from cuda_runs.llama_model import TINY, make_llama
from cuda_runs.llama_passes import Pass, Timed, decode, prompt_tokens


def test_of_rounds_the_one_in_the_hosts_quietest_minute_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes = iter([3.0, 2.0, 1.0, 1.5])  # before the first round, and after each
    monkeypatch.setattr(quiet_rounds, "host_probe_seconds", lambda: next(probes))
    timed = iter([Timed([seconds], ["same"]) for seconds in (0.1, 0.3, 0.2)])
    rounds = quiet_rounds.run_rounds(lambda: next(timed), most=3)
    assert [(one.timed.seconds, one.host_seconds) for one in rounds] == [
        ([0.2], 1.5),
        ([0.3], 2.0),
        ([0.1], 3.0),
    ]


def test_rounds_of_about_the_same_host_count_together() -> None:
    rounds = [
        quiet_rounds.Round(Timed([0.3, 0.4], ["same"], thread_seconds=[0.1, 0.1], switches=2), 1.1),
        quiet_rounds.Round(Timed([0.9], ["same"], thread_seconds=[0.9], switches=5), 2.0),
        quiet_rounds.Round(Timed([0.2], ["same"], thread_seconds=[0.2], switches=1), 1.0),
    ]
    timed = quiet_rounds.pooled(rounds)
    assert (timed.seconds, timed.thread_seconds) == ([0.3, 0.4, 0.2], [0.1, 0.1, 0.2])
    assert (timed.switches, timed.logits_sha256) == (3, ["same"])


def test_rounds_go_on_while_a_host_that_bounds_them_is_loud(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes = iter([1.0, 3.0, 3.0, 2.0, 1.1, 1.1])
    monkeypatch.setattr(quiet_rounds, "host_probe_seconds", lambda: next(probes))
    monkeypatch.setattr(quiet_rounds, "HOST", quiet_rounds.QuietHost())
    monkeypatch.setattr(quiet_rounds, "_SECONDS", 0.0)
    quiet_rounds.HOST.probe()
    by_host = Timed([0.1], ["same"], thread_seconds=[0.08])
    assert [one.host_seconds for one in quiet_rounds.run_rounds(lambda: by_host)] == [
        1.1,
        2.0,
        3.0,
        3.0,
    ]
    probes = iter([3.0, 3.0])
    by_link = Timed([0.1], ["same"], thread_seconds=[0.02])
    assert len(quiet_rounds.run_rounds(lambda: by_link)) == 1, "a loud host is none of its matter"


def test_steps_are_laid_beside_what_the_plan_says_for_the_host_of_each() -> None:
    predictions = [(1.0, 10.0), (2.0, 12.0), (4.0, 20.0)]
    seconds = [11.0, 11.0, 17.6, 40.0, 40.0, 9.0]
    # Another host within the second step and those after the third, of which the last is unknown.
    calls = [1.0, 1.0, 1.5, 1.5, 4.0, 5.0, 5.0]
    assert planned_steps.ratios_of(seconds, calls, predictions) == pytest.approx([1.1, 1.6])


def test_what_a_plan_says_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(host_rate, "seconds_of_a_call", lambda _: 2.0)
    before = compute_device.seconds_of_a_call
    made = planned_steps.predictions_of(lambda: 5 * compute_device.seconds_of_a_call(cpu), cpu)
    assert made[0] == (1.0, 5.0)
    assert made[-1] == (10.0, 50.0)
    assert compute_device.seconds_of_a_call is before


def test_times_of_a_prediction_are_of_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_steps, "_SECONDS", 0.0)
    monkeypatch.setattr(host_rate, "seconds_of_one", lambda _: 1.0)
    cpu = torch.device("cpu")

    def run(between: Callable[[], None], steps: int) -> Timed:
        for _ in range(steps + 1):
            between()
        return Timed([0.3] * steps)

    predictions = [(0.5, 0.1), (1.5, 0.3)]
    found = planned_steps.times_predicted(lambda between: run(between, 24), predictions, cpu)
    assert (found["median"], found["steps"], found["of"]) == (pytest.approx(1.5), 24, 24)
    found = planned_steps.times_predicted(lambda between: run(between, 23), predictions, cpu)
    assert found == {"steps": 23, "of": 23}, "too few to be a result"


def test_a_step_that_the_host_bounds_is_held_against_the_plan_for_its_host() -> None:
    row = {"pass": "decode/1", "seconds_median": 3.0, "times_predicted": {"median": 1.06}}
    ways = {"coded-75-percent": {"plan": {"predicted_seconds": 2.0}, "rows": [row]}}
    reached = targets.prediction_target(ways, "coded-75-percent").reached
    assert reached == pytest.approx(0.06)
    row["times_predicted"] = {"steps": 3, "of": 90}
    assert targets.prediction_target(ways, "coded-75-percent").reached is None
    del row["times_predicted"]
    assert targets.prediction_target(ways, "coded-75-percent").reached == pytest.approx(0.5)


def test_steps_tell_what_comes_between_them() -> None:
    accelerator = HostAccelerator()
    model = make_llama(TINY, accelerator)
    calls: list[int] = []
    tokens = prompt_tokens(1, 4, TINY.vocabulary, 1, accelerator.device)
    timed = decode(model, tokens, 3, between=lambda: calls.append(len(calls)))
    assert len(timed.seconds) == 3
    assert calls == [0, 1, 2, 3]


def test_a_plan_waits_for_a_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    host = quiet_rounds.QuietHost()
    monkeypatch.setattr(quiet_rounds, "_LOOK_SECONDS", 0.0)
    probes = [1.0, 3.0, 2.0, 1.1, 1.0]
    monkeypatch.setattr(quiet_rounds, "host_probe_seconds", lambda: probes.pop(0))
    host.probe()
    host.wait()
    assert probes == [1.0]
    monkeypatch.setattr(quiet_rounds, "_WAIT_SECONDS", 0.0)
    probes.append(3.0)
    probes.pop(0)
    host.wait()
    assert not probes, "of a host that is loud all the time no more is asked"


def test_rounds_whose_outputs_differ_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet_rounds, "host_probe_seconds", lambda: 1.0)
    timed = iter([Timed([0.1], ["one"]), Timed([0.1], ["other"])])
    with pytest.raises(RuntimeError, match="different outputs"):
        quiet_rounds.run_rounds(lambda: next(timed), most=2)


def test_steps_of_a_model_are_laid_beside_their_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_steps, "_SECONDS", 0.0)
    monkeypatch.setattr(planned_steps, "_SAME", 10.0)  # whatever else this machine does
    accelerator = HostAccelerator()
    model = make_llama(TINY, accelerator)
    options = argparse.Namespace(prompt=4, new_tokens=25, context=8, repeats=1)
    predictions = [(0.0, 1e-3), (1.0, 1e-3)]
    one = Pass("decode", 1)
    found = llama_runs.against_plan(one, options, model, accelerator, predictions)
    assert found["steps"] == found["of"] == 25
    assert 0 < found["min"] <= found["quartile_1"] <= found["median"] <= found["max"]
