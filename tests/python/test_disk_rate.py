"""What is remembered of disks, and where: caches that are damaged, or that a user has no place for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tensorstream import _native, disk_rate

RATE = 7e9


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "measure_disk", lambda path: RATE)


@pytest.fixture
def rate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorstream" / "disk_rates.json"


def _rate(tmp_path: Path) -> float | None:
    return disk_rate.disk_bytes_per_second(str(tmp_path))


def test_lists_in_lists_without_end_are_measured_anew(rate_cache: Path, tmp_path: Path) -> None:
    rate_cache.parent.mkdir(parents=True)
    rate_cache.write_text("[" * 200_000)
    assert _rate(tmp_path) == RATE


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), -1.0, 0.0])
def test_a_rate_that_is_none_is_measured_anew(
    rate: float, rate_cache: Path, tmp_path: Path
) -> None:
    assert _rate(tmp_path) == RATE
    (key,) = json.loads(rate_cache.read_text())
    for entry in (
        {"bytes_per_second": rate, "measured_at": time.time()},
        {"bytes_per_second": 1e9, "measured_at": rate},
    ):
        rate_cache.write_text(json.dumps({key: entry}))
        assert _rate(tmp_path) == RATE


def test_a_folder_in_its_place_leaves_nothing_else(rate_cache: Path, tmp_path: Path) -> None:
    rate_cache.mkdir(parents=True)
    assert _rate(tmp_path) == RATE
    assert list(rate_cache.parent.iterdir()) == [rate_cache]


def test_a_user_without_a_home_has_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123_456_789)  # as containers run: no entry in passwd
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert _rate(tmp_path) == RATE
    assert list((tmp_path / "here").iterdir()) == []


def test_a_relative_cache_folder_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert _rate(tmp_path) == RATE
    assert list((tmp_path / "here").iterdir()) == []
    assert (tmp_path / "home/.cache/tensorstream/disk_rates.json").is_file()
