"""Random sequences of uses: after each a streamed model is, bit for bit, what its plain twin is.

A failure shows the seed and what was done so far. With TENSORSTREAM_RANDOM_USES=20m new seeds are
run for so long, with TENSORSTREAM_RANDOM_USES=500:40 those from 500 to 539, on the CPU and on the
fake GPU each.

Left out are what docs/behaviour.md says is not as in plain torch: backward under autocast of weights
that require gradients, and what is refused, as torch's attention that is a part of two modules.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_gpu import use_fake_gpu
from random_models import Difference, Skip, Twins, make_twins
from random_uses import USES
from tensorstream import registry
from tensorstream.lent import LentGroup
from tensorstream.weight import Weight

STEPS = 9
SEEDS = 6
DEVICES = ("cpu", "home", "no home")


def seeds() -> list[int]:
    """Which sequences are run, each on all devices; [] where a time is given."""
    given = os.environ.get("TENSORSTREAM_RANDOM_USES", f"0:{SEEDS}")
    if given.endswith("m"):
        return []
    first, count = given.split(":")
    return list(range(int(first), int(first) + int(count)))


def run(seed: int, device: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Twins:
    """Makes the model of a seed, and uses it as the seed says.

    Raises:
        Difference: It did what its plain twin does not; says how.
    """
    if device != "cpu":
        use_fake_gpu(monkeypatch, homes=device == "home")
    draw = random.Random(f"uses {seed} {device}")
    twins = make_twins(seed, folder, on_host=device == "cpu")
    uses = ["offload", *draw.choices(list(USES), k=STEPS), "restore"]
    try:
        for name in uses:
            of_use = random.Random(draw.randrange(1 << 30))
            twins.log.append(name)
            try:
                USES[name](twins, of_use)
            except Skip:
                twins.note("left out")
            try:
                twins.check(of_use)
            except Skip:  # of a file that was changed
                break
    except Exception as error:
        done = "\n  ".join(twins.log)
        kinds = [type(block).__name__ for block in getattr(twins.plain, "blocks", ())]
        model = f"seed {seed} on '{device}', {twins.shape or kinds}"
        raise Difference(f"{model}:\n  {done}\n{type(error).__name__}: {error}") from error
    return twins


@pytest.fixture(autouse=True)
def threads_are_one() -> Iterator[None]:
    """Threads that begin later compute with as many as this one."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", seeds())
def test_random_uses_are_those_of_the_plain_model(
    seed: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(registry.orchestrators())
    run(seed, device, tmp_path, monkeypatch)
    for _ in range(2):  # a model whose forward failed goes with the second
        gc.collect()
    assert len(registry.orchestrators()) <= before, "a model that is gone is kept"


@pytest.mark.skipif(bool(seeds()), reason="no time is given: TENSORSTREAM_RANDOM_USES=20m")
def test_random_uses_for_a_time(tmp_path: Path) -> None:
    end = time.monotonic() + 60 * float(os.environ["TENSORSTREAM_RANDOM_USES"].rstrip("m"))
    first = int(time.time()) % 10**8
    for seed in itertools.count(first):
        for device in DEVICES:
            folder = tmp_path / f"{seed}-{device}"
            folder.mkdir()
            with pytest.MonkeyPatch.context() as monkeypatch:
                run(seed, device, folder, monkeypatch)
        if time.monotonic() > end:
            print(f"seeds {first} to {seed}")
            return


_move = LentGroup.move


def to_empty_places(group: LentGroup, number: int, places: Any, stays: bool) -> None:
    """As if the copy of the group's weights to its place were left out."""
    _move(group, number, [torch.zeros_like(place) for place in places], stays)


@pytest.mark.parametrize("broken", ["writes are lost", "reads are stale", "a group is not loaded"])
def test_a_fault_is_found(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "writes are lost":
        monkeypatch.setattr(Weight, "adopt", lambda *_, **__: None)
    elif broken == "reads are stale":
        monkeypatch.setattr(Weight, "settle", lambda self: None)
    else:
        monkeypatch.setattr(LentGroup, "move", to_empty_places)
    for seed in range(30):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            run(seed, "cpu", folder, monkeypatch)
        except Difference as difference:
            assert f"seed {seed} on 'cpu'" in str(difference)
            return
    pytest.fail("no seed shows it")
