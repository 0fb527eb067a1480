"""Three tiers beside a GPU: device memory, homes in host memory, files; and how files are read."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, save
from fake_gpu import RING_BYTES, use_fake_gpu
from model_shapes import SHAPES, make_stack, row_ids
from tensorstream import _native, api, disk_rate, orchestrator
from tensorstream.orchestrator import orchestrator_of

WIDTH = 512  # 1 MiB of float32, 0.5 of bfloat16, a layer
LAYERS = 12


class Tower(nn.Module):
    """Layers that are one group each."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype) for _ in range(LAYERS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def make_tower(dtype: torch.dtype = torch.float32) -> Tower:
    torch.manual_seed(3)
    return Tower(dtype).requires_grad_(False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(make_tower().state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def half_checkpoint(tmp_path: Path) -> Path:
    save_file(make_tower(torch.bfloat16).state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def stream_tower(checkpoint: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Tower:
    """With room on the device for three layers."""
    model = make_tower(dtype)
    layer_bytes = model.layers[0].weight.nbytes
    budget = ts.estimate_memory(model).smallest_budget_bytes + 2 * layer_bytes + (1 << 20)
    return ts.offload(model, ram_budget=budget, checkpoint=checkpoint, **options)


def plan_of(model: nn.Module) -> _native.Plan:
    return orchestrator_of(model).engine.plan


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("backend", ["auto", "direct", "mmap"])
def test_models_are_bit_identical(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name]
    plain: Any = shape.make(4)
    path = save(plain, tmp_path / name)
    estimate = ts.estimate_memory(plain)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    with torch.no_grad():
        expected = plain(**shape.inputs())
    for share in (0.0, 0.3, 0.7):
        use_fake_gpu(monkeypatch, homes=int((fits - smallest) * share))
        model = type(plain).from_pretrained(path)
        ts.offload(model, ram_budget=smallest, backend=backend)
        with torch.no_grad():
            for round_ in range(3):
                assert_same(model(**shape.inputs()), expected, f"share {share}, forward {round_}")
            ts.set_budget(model, ram_budget=(smallest + fits) // 2)
            assert_same(model(**shape.inputs()), expected, f"share {share}, more on the device")
            ts.set_budget(model, ram_budget=smallest)
            assert_same(model(**shape.inputs()), expected, f"share {share}, less again")
        stats = ts.stats(model)
        assert stats.streamed_disk_bytes > 0
        assert stats.peak_ram_held_bytes <= stats.ram_budget_bytes
        ts.restore(model)
        with torch.no_grad():
            assert_same(model(**shape.inputs()), expected, f"restored, share {share}")


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("backend", ["auto", "mmap"])
@pytest.mark.parametrize("homes", [0, True])
def test_models_in_ram_are_bit_identical_and_copied_from_where_they_lie(
    name: str, backend: str, homes: bool | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=homes, copies_from_files=True)
    shape = SHAPES[name]
    plain: Any = shape.make(4)
    with torch.no_grad():
        expected = plain(**shape.inputs())
    estimate = ts.estimate_memory(plain)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        model = type(plain).from_pretrained(save(plain, Path(folder) / name))
        ts.offload(model, ram_budget=smallest, backend=backend, compression="none")
        with torch.no_grad():
            for budget in (smallest, (smallest + fits) // 2, smallest):
                ts.set_budget(model, ram_budget=budget)
                for round_ in range(2):
                    assert_same(model(**shape.inputs()), expected, f"{budget}, forward {round_}")
        stats = ts.stats(model)
        assert stats.streamed_ram_bytes > 0
        assert "are copied from where they lie" in stats.backend
        ts.restore(model)
        with torch.no_grad():
            assert_same(model(**shape.inputs()), expected, "restored")


@pytest.mark.parametrize("homes", [0, 2, 5, 7])
def test_the_plan_and_the_statistics_say_what_is_where(
    homes: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_bytes = WIDTH * WIDTH * 4
    use_fake_gpu(monkeypatch, homes=homes * 2 * layer_bytes + 1000)  # places are of whole 2 MiB
    model, plain = stream_tower(checkpoint, compression="none"), make_tower()
    plan = plan_of(model)
    streamed = [str(p) == "Placement.STREAMED" for p in plan.placements]
    assert plan.homeless_groups == sum(plan.from_disk) == max(0, sum(streamed) - homes)
    x = torch.randn(2, WIDTH)
    for _ in range(3):
        assert_same(model(x), plain(x))
    stats = ts.stats(model)
    assert stats.ram_budget_bytes == RING_BYTES + homes * 2 * layer_bytes + 1000
    assert stats.staging_bytes == RING_BYTES
    assert stats.pinned_bytes == plan.home_bytes
    assert stats.ram_held_bytes == stats.pinned_bytes + stats.staging_bytes
    assert stats.peak_ram_held_bytes == stats.ram_held_bytes
    assert stats.streamed_disk_bytes >= 2 * sum(plan.from_disk) * layer_bytes
    if homes == 0:
        assert stats.read_ahead_bytes > 0


@pytest.mark.parametrize("level", ["1", "auto"])
def test_coded_homes_leave_room_for_more(
    level: str, half_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=(2 << 20) + LAYERS * WIDTH * WIDTH)
    model = stream_tower(half_checkpoint, torch.bfloat16, compression=level)
    plain = make_tower(torch.bfloat16)
    x = torch.randn(2, WIDTH).to(torch.bfloat16)
    for _ in range(3):
        assert_same(model(x), plain(x))
    stats = ts.stats(model)
    assert stats.peak_ram_held_bytes <= stats.ram_budget_bytes
    assert stats.streamed_disk_bytes >= 0


@pytest.mark.parametrize("backend", ["auto", "direct"])
def test_packed_weights_without_a_home_cross_the_link_as_they_lie_on_the_disk(
    backend: str, half_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ts.pack(half_checkpoint, tmp_path / "packed")
    use_fake_gpu(monkeypatch, homes=0)
    model = stream_tower(tmp_path / "packed", torch.bfloat16, backend=backend)
    plain = make_tower(torch.bfloat16)
    x = torch.randn(2, WIDTH).to(torch.bfloat16)
    for _ in range(3):
        assert_same(model(x), plain(x))
    stats, plan = ts.stats(model), plan_of(model)
    assert stats.pinned_bytes == 0
    assert plan.disk_bytes == plan.link_bytes
    assert 0.6 < plan.disk_bytes / plan.streamed_bytes < 0.72
    assert 0.6 < stats.streamed_disk_bytes / stats.decoded_bytes < 0.72


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_the_plan_of_a_packed_folder_counts_frames_as_the_engine_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ts.pack(save(SHAPES[name].make(4).bfloat16(), tmp_path / name), tmp_path / "packed")
    use_fake_gpu(monkeypatch, homes=0)
    monkeypatch.setattr(api, "open_device", orchestrator.open_device)
    budget = ts.estimate_memory(tmp_path / name).smallest_budget_bytes
    options = {"ram_budget": budget, "compression": "none", "backend": "mmap"}
    model = ts.from_pretrained(tmp_path / "packed", **options)
    planned = ts.plan(tmp_path / "packed", **options)
    assert planned.disk_bytes == plan_of(model).disk_bytes
    assert planned.disk_bytes < 0.75 * ts.plan(tmp_path / name, **options).disk_bytes


def test_a_plan_shows_what_comes_from_disk(checkpoint: Path) -> None:
    from tensorstream.config import Config
    from tensorstream.report import make_plan
    from tensorstream.walk import walk

    with torch.device("meta"):
        found = walk(Tower(torch.float32))
    level, place = 0, _native.ComputePlace.ACCELERATOR
    known = _native.KnownRates(50e9, 1e9)
    budget = 8 << 20
    planned = found.tree.plan(
        budget, _native.Prefetch.AHEAD, place, known, level, RING_BYTES + (6 << 20)
    )
    plan = make_plan(found.tree, planned)
    kinds = [group.placement for group in plan.groups]
    assert kinds.count("streamed") == 3
    assert kinds.count("streamed from disk") >= 4
    assert plan.home_bytes == 6 << 20
    assert plan.bound == "disk"
    assert plan.predicted_seconds == pytest.approx(plan.disk_bytes / 1e9, rel=0.05)
    assert f"{kinds.count('streamed from disk')} streamed from disk" in str(plan)
    assert "of it from disk" in str(plan)
    assert Config(device="cpu").plan(found.tree, budget).plan.disk_bytes == 0


# By name: what is free, what of that the page cache has, and what of a model's 12 MiB it has.
MEMORY = {
    "pread": (1 << 34, 0, 0),
    "direct": (1 << 20, 12 << 20, 12 << 20),
    "cached": (1 << 20, 0, 12 << 20),
}


def pretend_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    available, own, cached = MEMORY[name]
    room = _native.RamRoom(available, own)
    monkeypatch.setattr(_native, "ram_room", lambda: room)
    files = _native.CachedFiles(12 << 20, cached)
    monkeypatch.setattr(_native, "cached_files", lambda paths: files)


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_auto_reads_files_by_where_they_are(
    name: str, device: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_memory(name, monkeypatch)
    if device == "gpu":
        use_fake_gpu(monkeypatch, homes=False)
        model = stream_tower(checkpoint)
    else:
        model = stream_tower(checkpoint, device="cpu")
    said = ts.stats(model).backend
    assert said.startswith(f"{name} (auto: each pass reads "), said
    assert "the page cache has room for" in said
    assert ("charged to others" in said) == (name == "cached")
    x = torch.randn(2, WIDTH)
    for _ in range(2):
        assert_same(model(x), make_tower()(x))
    assert ts.stats(model).peak_held_bytes <= ts.stats(model).budget_bytes


def test_a_file_that_is_replaced_while_it_is_opened(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_memory("direct", monkeypatch)
    files = _native.cached_files([])

    def replace_file(paths: list[str]) -> _native.CachedFiles:
        other = checkpoint.with_name("other")
        other.write_bytes(checkpoint.read_bytes())
        other.rename(checkpoint)
        return files

    monkeypatch.setattr(_native, "cached_files", replace_file)
    with pytest.raises(ts.IoError, match="changed while it was opened") as raised:
        stream_tower(checkpoint, device="cpu")
    assert raised.value.filename == str(checkpoint)


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_what_the_page_cache_loses_is_read_past_it(
    device: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "gpu":
        use_fake_gpu(monkeypatch, homes=False)
        model = stream_tower(checkpoint, backend="cached")
    else:
        model = stream_tower(checkpoint, device="cpu", backend="cached")
    assert ts.stats(model).backend.startswith("cached (asked for): the page cache, and O_DIRECT")
    x, plain = torch.randn(2, WIDTH), make_tower()
    assert_same(model(x), plain(x))
    drop_from_page_cache(checkpoint)
    left = cached_bytes(checkpoint)
    for _ in range(2):
        assert_same(model(x), plain(x))
    assert cached_bytes(checkpoint) == left
    checkpoint.read_bytes()
    assert_same(model(x), plain(x))


def cached_bytes(path: Path) -> int:
    return _native.cached_files([str(path)]).cached_bytes


def drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_auto_stays_with_the_page_cache_where_the_file_system_knows_nothing_else(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def __init__(self, backend: object, device: object) -> None:
            self._opener = real(_native.FileBackend.PREAD)
            self.about = self._opener.about
            self.device_memory_bytes = 0
            self._refuses = backend == _native.FileBackend.DIRECT

        def open(self, path: str) -> _native.Reader:
            if self._refuses:
                raise ts.UnsupportedError(f"'{path}' refuses O_DIRECT")
            return self._opener.open(path)

    real = _native.FileOpener
    monkeypatch.setattr(_native, "FileOpener", Refusing)
    pretend_memory("direct", monkeypatch)
    x = torch.randn(2, WIDTH)
    model = stream_tower(checkpoint, device="cpu")
    said = ts.stats(model).backend
    assert said.startswith("pread (auto: ")
    assert "refuses O_DIRECT" in said
    assert_same(model(x), make_tower()(x))
    with pytest.raises(ts.UnsupportedError, match="refuses O_DIRECT"):
        stream_tower(checkpoint, device="cpu", backend="direct")


def test_what_is_in_ram_is_not_read_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_gpu(monkeypatch, homes=False)
    model, plain = make_stack(4), make_stack(4)
    ts.offload(model, ram_budget=ts.estimate_memory(model).smallest_budget_bytes)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
    assert plan_of(model).disk_bytes == 0
    assert plan_of(model).homeless_groups > 0
    assert ts.stats(model).streamed_disk_bytes == 0
    assert ts.stats(model).backend.startswith("pread (auto: no pass reads files)")


@pytest.fixture
def rate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorstream" / "disk_rates.json"


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(1 << 20) * 80)
    return path


def test_the_disk_is_measured_once(
    rate_cache: Path, large_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    rate = disk_rate.disk_bytes_per_second(str(large_file))
    assert time.monotonic() - start < 5
    assert rate is not None
    assert 1e6 < rate < 1e12
    monkeypatch.setattr(_native, "measure_disk", lambda path: pytest.fail("measured again"))
    assert disk_rate.disk_bytes_per_second(str(large_file)) == rate
    (entry,) = json.loads(rate_cache.read_text()).values()
    assert entry["bytes_per_second"] == rate
    assert [path.name for path in rate_cache.parent.iterdir()] == [rate_cache.name]


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{", '{"a": 1}', '{"%": {"bytes_per_second": -1.0, "measured_at": 1.0}}', "old"],
)
def test_a_damaged_or_old_memory_of_rates_is_measured_anew(
    rate_cache: Path, large_file: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(_native, "measure_disk", lambda path: 7e9)
    assert disk_rate.disk_bytes_per_second(str(large_file)) == 7e9
    (key,) = json.loads(rate_cache.read_text())
    if content == "old":
        content = json.dumps({key: {"bytes_per_second": 1e9, "measured_at": 1.0}})
    rate_cache.write_text(content.replace("%", key))
    assert disk_rate.disk_bytes_per_second(str(large_file)) == 7e9
    assert json.loads(rate_cache.read_text())[key]["bytes_per_second"] == 7e9


def test_a_small_file_tells_nothing_of_the_disk(rate_cache: Path, checkpoint: Path) -> None:
    assert disk_rate.disk_bytes_per_second(str(checkpoint)) is None
    assert not rate_cache.exists()


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    rate_cache: Path, large_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_cache.parent.parent.write_text("a file in its place")
    monkeypatch.setattr(_native, "measure_disk", lambda path: 7e9)
    assert disk_rate.disk_bytes_per_second(str(large_file)) == 7e9


@pytest.mark.parametrize("backend", ["auto", "direct"])
@pytest.mark.parametrize("homes", [0, 4 << 20])
def test_a_checkpoint_truncated_under_a_running_model(
    checkpoint: Path, backend: str, homes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    model, plain = stream_tower(checkpoint, backend=backend), make_tower()
    x = torch.randn(2, WIDTH)
    assert_same(model(x), plain(x))
    content = checkpoint.read_bytes()
    os.truncate(checkpoint, len(content) // 3)
    for _ in range(3):  # what had been read ahead is right
        with pytest.raises(ts.IoError, match=r"model\.safetensors") as raised:
            for _ in range(3):
                assert_same(model(x), plain(x))
        assert raised.value.filename == str(checkpoint)
    checkpoint.write_bytes(content)
    with pytest.raises(ts.IoError, match="changed since it was opened"):
        model(x)
    again = stream_tower(checkpoint, backend=backend)
    assert_same(again(x), plain(x))


@pytest.mark.parametrize("backend", ["auto", "direct"])
def test_a_checkpoint_rewritten_in_place_under_a_running_model(
    checkpoint: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=0)
    model, plain = stream_tower(checkpoint, backend=backend), make_tower()
    x = torch.randn(2, WIDTH)
    assert_same(model(x), plain(x))
    content = bytearray(checkpoint.read_bytes())
    content[-5] ^= 1
    with checkpoint.open("r+b") as file:
        file.write(content)
    with pytest.raises(ts.IoError, match="changed since it was opened"):
        for _ in range(3):
            assert_same(model(x), plain(x))


@pytest.mark.parametrize("backend", ["auto", "direct"])
def test_a_checkpoint_replaced_and_deleted_under_a_running_model(
    checkpoint: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=0)
    model, plain = stream_tower(checkpoint, backend=backend), make_tower()
    x = torch.randn(2, WIDTH)
    (tmp_path / "other.safetensors").write_bytes(os.urandom(checkpoint.stat().st_size))
    (tmp_path / "other.safetensors").replace(checkpoint)
    assert_same(model(x), plain(x))
    checkpoint.unlink()
    assert_same(model(x), plain(x))


def test_a_file_that_went_has_no_rate(tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(ts.IoError, match="cannot be looked at: No such file") as raised:
        disk_rate.disk_bytes_per_second(str(gone))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, str(gone))
