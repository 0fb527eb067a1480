"""Backends by name and by probe, and files that are read straight to the memory of a GPU (the fake one)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, save
from fake_gpu import FakeDriver, use_fake_gpu
from model_shapes import SHAPES, make_stack, row_ids
from tensorstream import _native, api, orchestrator, tiers

COMPATIBILITY = 2  # CU_FILE_ALLOW_COMPAT_MODE, as a bit


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The fake GPU, with no room for homes in host memory."""
    use_fake_gpu(monkeypatch, homes=False)
    made = FakeDriver()
    yield made
    made.set("cufile_nvidia_fs_version", 0)
    made.set("cufile_control_flags", COMPATIBILITY)
    made.set("cufile_longest_read", 1 << 40)
    made.set("cufile_largest_cache_kib", 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    values = {name: value.detach() for name, value in make_stack(5).named_parameters()}
    save_file(values, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def stream(checkpoint: Path, **options: Any) -> nn.Module:
    model = make_stack(5)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    return ts.offload(model, ram_budget=smallest, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("longest_read", [1 << 40, 5000])
def test_models_are_bit_identical(
    name: str, longest_read: int, driver: FakeDriver, tmp_path: Path
) -> None:
    driver.set("cufile_longest_read", longest_read)
    shape = SHAPES[name]
    plain: Any = shape.make(4)
    path = save(plain, tmp_path / name)
    estimate = ts.estimate_memory(plain)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    with torch.no_grad():
        expected = plain(**shape.inputs())
    for prefetch in ("adaptive", "none"):
        model = type(plain).from_pretrained(path)
        ts.offload(model, ram_budget=smallest, backend="gpudirect", prefetch=prefetch)
        before = driver.calls("cuFileRead")
        with torch.no_grad():
            for round_ in range(3):
                assert_same(model(**shape.inputs()), expected, f"{prefetch}, forward {round_}")
            ts.set_budget(model, ram_budget=(smallest + fits) // 2)
            assert_same(model(**shape.inputs()), expected, f"{prefetch}, more on the device")
        assert driver.calls("cuFileRead") > before
        assert ts.stats(model).streamed_disk_bytes > 0
        ts.restore(model)
        with torch.no_grad():
            assert_same(model(**shape.inputs()), expected, "restored")


def test_the_statistics_say_that_it_is_compatibility_mode(
    driver: FakeDriver, checkpoint: Path
) -> None:
    said = ts.stats(stream(checkpoint, backend="gpudirect")).backend
    assert said.startswith(
        "gpudirect (asked for): cuFile into device memory, 8 requests of 4.00 MiB"
    )
    assert "compatibility mode, as nvidia-fs is not loaded" in said
    assert "into host memory O_DIRECT" in said


def test_what_cufile_takes_of_the_gpu_is_in_the_budget(
    driver: FakeDriver, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "open_device", orchestrator.open_device)
    model, plain = make_stack(5), make_stack(5)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    needed = smallest + (64 << 10)
    driver.set("cufile_largest_cache_kib", 64)
    options: dict[str, Any] = {"checkpoint": checkpoint, "backend": "gpudirect"}
    with pytest.raises(ts.BudgetError) as raised:
        ts.offload(model, ram_budget=needed - 1, **options)
    assert raised.value.needed_bytes == needed
    with pytest.raises(ts.BudgetError):
        ts.plan(model, ram_budget=needed - 1, backend="gpudirect")
    assert ts.plan(model, ram_budget=needed, backend="gpudirect").resident_bytes >= 64 << 10
    ts.offload(model, ram_budget=needed, **options)
    assert "; of the budget 64.0 KiB are cuFile's" in ts.stats(model).backend
    assert_same(model(row_ids()), plain(row_ids()))
    with pytest.raises(ts.BudgetError):
        ts.set_budget(model, ram_budget=needed - 1)
    assert_same(model(row_ids()), plain(row_ids()))


def test_the_cuda_backend_reads_into_pinned_memory(driver: FakeDriver, checkpoint: Path) -> None:
    model, plain = stream(checkpoint, backend="cuda"), make_stack(5)
    before = driver.calls("cuFileRead")
    for _ in range(2):
        assert_same(model(row_ids()), plain(row_ids()))
    assert driver.calls("cuFileRead") == before
    said = ts.stats(model).backend
    assert said.startswith("cuda (asked for): O_DIRECT by ")
    assert "into pinned memory" in said


@pytest.mark.parametrize("backend", ["cuda", "gpudirect"])
def test_on_the_cpu_they_are_refused(backend: str) -> None:
    with pytest.raises(ts.UnsupportedError, match=f'backend="{backend}".*the device is cpu'):
        ts.offload(make_stack(5), ram_budget="1GiB", backend=backend)


@pytest.mark.parametrize(
    ("function", "result", "said"),
    [
        ("cuFileDriverOpen", 5001, "5001 .nvidia-fs is not loaded.; load it, or allow"),
        ("cuFileHandleRegister", 5030, "5030 .internal error."),
    ],
)
def test_what_cufile_refuses_is_refused_with_its_reason(
    function: str, result: int, said: str, driver: FakeDriver, checkpoint: Path
) -> None:
    model, plain = make_stack(5), make_stack(5)
    smallest = ts.estimate_memory(model).smallest_budget_bytes
    driver.fail(function, 1, result)
    with pytest.raises(ts.UnsupportedError, match=said):
        ts.offload(model, ram_budget=smallest, checkpoint=checkpoint, backend="gpudirect")
    assert_same(model(row_ids()), plain(row_ids()))
    ts.offload(model, ram_budget=smallest, checkpoint=checkpoint, backend="gpudirect")
    assert_same(model(row_ids()), plain(row_ids()))


@pytest.mark.parametrize("result", [errno.EIO, 5044])
def test_a_read_that_fails_is_an_error_and_the_next_forward_is_right(
    result: int, driver: FakeDriver, checkpoint: Path
) -> None:
    model, plain = stream(checkpoint, backend="gpudirect", prefetch="none"), make_stack(5)
    driver.fail("cuFileRead", 2, result)
    expected = ts.IoError if result == errno.EIO else ts.CufileError
    with pytest.raises(expected, match=r"model\.safetensors") as raised:
        for _ in range(2):
            model(row_ids())
    assert raised.value.filename == str(checkpoint)
    assert raised.value.offset_bytes > 0
    if isinstance(raised.value, ts.CufileError):
        assert raised.value.result == result
        assert raised.value.size_bytes > 0
    assert_same(model(row_ids()), plain(row_ids()))


def test_packed_checkpoints_are_refused(driver: FakeDriver, tmp_path: Path) -> None:
    plain: Any = SHAPES["llama"].make(3)
    packed = tmp_path / "packed"
    ts.pack(save(plain, tmp_path / "plain"), packed)
    with pytest.raises(ts.UnsupportedError, match=r"is packed, and .* use backend=.direct."):
        ts.from_pretrained(packed, ram_budget="1GiB", backend="gpudirect")


@pytest.fixture
def small_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that "auto" reads past it; what it has of files is this process's own."""
    monkeypatch.setattr(tiers._native, "ram_room", lambda: _native.RamRoom(1 << 20, 1 << 40))


@pytest.mark.usefixtures("small_page_cache")
def test_auto_takes_it_where_it_is_proven_alone(
    driver: FakeDriver, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ts.stats(stream(checkpoint)).backend
    assert said.startswith("direct (auto: each pass reads ")
    assert "and not gpudirect: nvidia-fs is not loaded" in said

    use_fake_gpu(monkeypatch, homes=False, nvidia_fs=tmp_path)
    driver.set("cufile_nvidia_fs_version", 2)
    said = ts.stats(stream(checkpoint)).backend
    assert said.startswith("direct (auto: ")
    assert "compatibility mode is allowed beside nvidia-fs 2.24" in said

    driver.set("cufile_control_flags", 0)
    model, plain = stream(checkpoint), make_stack(5)
    for _ in range(2):
        assert_same(model(row_ids()), plain(row_ids()))
    said = ts.stats(model).backend
    assert said.startswith("gpudirect (auto: each pass reads ")
    assert "from peer to peer by nvidia-fs 2.24" in said

    driver.set("cufile_largest_cache_kib", 1)
    model = stream(checkpoint)  # in the least budget
    assert_same(model(row_ids()), plain(row_ids()))
    assert "and not gpudirect: budget of " in ts.stats(model).backend
    driver.set("cufile_largest_cache_kib", 0)

    driver.fail("cuFileHandleRegister", 1, 5008)
    model = stream(checkpoint)
    assert_same(model(row_ids()), plain(row_ids()))
    said = ts.stats(model).backend
    assert said.startswith("direct (auto: ")
    assert "and not gpudirect: '" in said
    assert "5008 (this file is not supported)" in said


def test_every_backend_answers_a_probe(driver: FakeDriver) -> None:
    probes = ts.probe_backends()
    assert list(probes) == ["mmap", "direct", "io_uring", "cached", "cuda", "gpudirect"]
    assert all(probe.reason for probe in probes.values())
    assert probes["mmap"].usable and probes["direct"].usable and probes["gpudirect"].usable
    assert not any(probe.peer_to_peer for probe in probes.values())
    assert "compatibility mode" in probes["gpudirect"].reason
    driver.set("cufile_nvidia_fs_version", 2)
    driver.set("cufile_control_flags", 0)
    assert ts.probe_backends()["gpudirect"].peer_to_peer


def test_on_the_cpu_the_probe_says_that_there_is_no_gpu() -> None:
    probes = ts.probe_backends("cpu")
    for name in ("cuda", "gpudirect"):
        assert not probes[name].usable
        assert "the device is cpu" in probes[name].reason
    assert probes["mmap"].usable
