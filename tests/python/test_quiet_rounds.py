"""Rounds of measurements in a host's quiet minutes, and steps beside what a plan says for their host."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorstream import compute_device, host_rate

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from cuda_runs import llama_runs, planned_steps, quiet_rounds, targets
from cuda_runs.accelerator import HostAccelerator
from cuda_runs.llama_model import TINY, make_llama
from cuda_runs.llama_passes import Decoding, Pass, Step, Timed, decode, prompt_tokens


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


def _native(seconds: float, waited: float = 0.0) -> list[Step]:
    return [Step(seconds, 0.0, waited * seconds, torch.zeros(1))]


def test_steps_are_laid_beside_what_the_plan_says_for_the_host_of_each() -> None:
    predictions = [(1.0, 10.0), (2.0, 12.0), (4.0, 20.0), (8.0, 20.0)]

    def predicted(before: float, after: float, waited: float = 0.0) -> float | None:
        turn = planned_steps.turn_of(_native(before), 30.0, _native(after, waited), predictions)
        assert (turn.before, turn.seconds, turn.after) == (before, 30.0, after)
        return turn.predicted

    assert predicted(1.0, 1.0) == pytest.approx(10.0)
    assert predicted(1.25, 1.75) == pytest.approx(11.0)
    assert predicted(1.2, 1.9) is None, "another host after it"
    assert predicted(4.0, 8.0) == pytest.approx(20.0)
    assert predicted(7.9, 8.2) is None, "no plan is for that"
    assert predicted(1.0, 1.0, waited=0.5) is None, "the device bounds native steps"


def test_what_a_plan_says_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(host_rate, "seconds_of_a_call", lambda _: 2.0)
    monkeypatch.setattr(compute_device, "seconds_of_a_call", lambda _: 2.0)
    before = compute_device.seconds_of_a_call

    def predict() -> float:
        return max(9.0, 3 * compute_device.seconds_of_a_call(cpu))

    made = planned_steps.predictions_of(
        predict, lambda: 2 * compute_device.seconds_of_a_call(cpu), cpu
    )
    assert made[0] == (2.0, 9.0)
    assert made[-1] == (20.0, 30.0)
    assert compute_device.seconds_of_a_call is before
    assert not planned_steps.predictions_of(lambda: 9.0, lambda: 1.0, cpu), "of any host the same"


class _Steps:
    """Steps of which the first after others' take three times as long."""

    last: _Steps | None = None

    def __init__(self, seconds: float, room: int) -> None:
        self._seconds, self.room = seconds, room

    def step(self) -> Step:
        self.room -= 1
        cold = _Steps.last is not self
        _Steps.last = self
        return Step(self._seconds * (3 if cold else 1), 0.0, 0.0, torch.zeros(1))


def test_times_of_a_prediction_are_of_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_steps, "_SECONDS", 0.0)
    predictions = [(0.5, 0.1), (1.5, 0.3)]

    def found(room: int) -> dict[str, Any]:
        return planned_steps.times_predicted(
            lambda: _Steps(1.0, 1000), lambda: _Steps(0.3, room), predictions
        )

    enough = found(60)
    assert (enough["median"], enough["turns"]) == (pytest.approx(1.5), 12)
    assert enough["of"] == [pytest.approx((1.0, 0.3, 1.0, 0.2))] * 12
    assert "median" not in found(59), "too few to be a result"


def test_a_step_that_the_host_bounds_is_held_against_the_plan_for_its_host() -> None:
    row: dict[str, Any] = {"pass": "decode/1", "seconds_median": 3.0}
    ways = {"coded-75-percent": {"plan": {"predicted_seconds": 2.0}, "rows": [row]}}

    def found() -> list[tuple[str, float | None, float | None]]:
        made = targets.prediction_targets(ways, "coded-75-percent", 0.07)
        return [(one.name.partition(", ")[2], one.target, one.reached) for one in made]

    assert found() == [("off the plan's prediction", 0.07, pytest.approx(0.5))]
    row["times_predicted"] = {"median": 1.06}
    assert found() == [
        ("off the plan's prediction for its host", 0.07, pytest.approx(0.06)),
        ("off the plan's prediction before the run", None, pytest.approx(0.5)),
    ]
    row["times_predicted"] = {"turns": 3, "of": []}
    assert found()[0][2] is None


def test_a_model_decodes_step_by_step_as_in_one_go() -> None:
    accelerator = HostAccelerator()
    model = make_llama(TINY, accelerator)
    tokens = prompt_tokens(1, 4, TINY.vocabulary, 1, accelerator.device)
    timed = decode(model, tokens, 3)
    decoding = Decoding(model, tokens, 3)
    by_steps = Timed()
    by_steps.keep(decoding.logits)
    while decoding.room:
        by_steps.keep(decoding.step().logits)
    assert len(timed.seconds) == len(timed.thread_seconds) == 3
    assert by_steps.logits_sha256 == timed.logits_sha256


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
    monkeypatch.setattr(planned_steps, "_WAITED", 1.0)
    accelerator = HostAccelerator()
    model, native = make_llama(TINY, accelerator), make_llama(TINY, accelerator)
    options = argparse.Namespace(prompt=4, new_tokens=65, context=8, repeats=1)
    predictions = [(0.0, 1e-3), (1.0, 1e-3)]
    one = Pass("decode", 1)
    turns = {"native": native, "predictions": predictions}
    found = llama_runs.against_plan(one, options, model, accelerator, **turns)
    assert found["turns"] == len(found["of"]) == 12
    assert 0 < found["min"] <= found["quartile_1"] <= found["median"] <= found["max"]


def test_a_native_model_is_made_where_predictions_are_for_one_and_both_find_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator = HostAccelerator()
    options = argparse.Namespace(shape=TINY)
    predictions = [(1.0, 2.0)]
    assert llama_runs.native_beside(options, accelerator, predictions, 0) is None, "no driver"
    monkeypatch.setattr(accelerator, "free_bytes", lambda: (4 << 30) + 100)
    assert llama_runs.native_beside(options, accelerator, predictions, 100) is None
    assert llama_runs.native_beside(options, accelerator, [], 0) is None
    assert llama_runs.native_beside(options, accelerator, predictions, 99) is not None
