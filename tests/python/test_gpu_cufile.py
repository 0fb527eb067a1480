"""Files that cuFile reads straight to a real GPU's memory: bit for bit, in compatibility mode or not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, save
from fake_gpu import RING_BYTES, ROOT
from model_shapes import SHAPES
from tensorstream import _native
from tensorstream.compute_device import open_device

pytestmark = pytest.mark.needs_gpu

DEVICE = os.environ.get("TENSORSTREAM_TEST_DEVICE", "cuda:0")
UDEV = Path("/run/udev/data")
REGISTERED = (
    "ext4",
    "xfs",
)  # the file systems of disks that cuFile reads without their makers' help
OPEN = """import sys
from tensorstream import _native
from tensorstream.compute_device import open_device
import torch
device = open_device(torch.device(sys.argv[1]), False).native
_native.FileOpener(_native.FileBackend.GPUDIRECT, device).open(sys.argv[2])
"""


def not_here(reason: str) -> NoReturn:
    """Where a GPU is required, what these tests need beside it is too."""
    if os.environ.get("TENSORSTREAM_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def file_system_of(folder: Path) -> str:
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[2] == wanted:
            return line.partition(" - ")[2].split()[0]
    return "unknown"


def record_of(folder: Path) -> Path:
    device = os.stat(folder).st_dev
    return UDEV / f"b{os.major(device)}:{os.minor(device)}"


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has cuFile write its log elsewhere than to the working folder."""
    monkeypatch.setenv("CUFILE_LOGFILE_PATH", str(tmp_path / "cufile.log"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk that cuFile reads."""
    places = [place for place in (tmp_path, ROOT, Path("/var/tmp")) if os.access(place, os.W_OK)]
    found = [place for place in places if file_system_of(place) in REGISTERED]
    if not found:
        kinds = ", ".join(f"{place}: {file_system_of(place)}" for place in places)
        not_here(f"no folder is on a disk of {' or '.join(REGISTERED)} ({kinds})")
    with tempfile.TemporaryDirectory(dir=found[0]) as folder:
        yield Path(folder)


@pytest.fixture
def known_disk(disk: Path) -> Iterator[Path]:
    """The same, of which udev knows: where no udev runs its record is made, and removed."""
    record = record_of(disk)
    made = not record.exists()
    if made:
        if os.geteuid() != 0:
            not_here(f"{record} is not there, and only root can make it")
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"E:ID_FS_USAGE=filesystem\nE:ID_FS_TYPE={file_system_of(disk)}\n")
    probe = ts.probe_backends(DEVICE)["gpudirect"]
    if not probe.usable:
        not_here(probe.reason)
    yield disk
    if made:
        record.unlink()


def taken_by_cufile() -> int:
    """Bytes of the GPU's memory that cuFile may take, which budgets count."""
    native = open_device(torch.device(DEVICE), self_check=False).native
    return _native.FileOpener(_native.FileBackend.GPUDIRECT, native).device_memory_bytes


def check_reads(model: Any, run: Any, expected: Any) -> None:
    for round_ in range(3):
        with torch.no_grad():
            assert_same(run(model), expected, f"forward {round_}")
    stats = ts.stats(model)
    assert stats.streamed_disk_bytes > 0
    assert stats.read_ahead_bytes == 0
    assert stats.backend.startswith("gpudirect (asked for): cuFile into device memory"), (
        stats.backend
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_models_are_bit_identical(name: str, known_disk: Path) -> None:
    shape = SHAPES[name]
    plain: Any = shape.make(4)
    path = save(plain, known_disk / name)
    inputs = {key: value.to(DEVICE) for key, value in shape.inputs().items()}
    resident = getattr(transformers, type(plain).__name__).from_pretrained(path).to(DEVICE)
    with torch.no_grad():
        expected = resident(**inputs)
    smallest = ts.estimate_memory(path).smallest_budget_bytes
    for share in (1, 2):
        model = ts.from_pretrained(
            path,
            device=DEVICE,
            vram_budget=share * smallest + taken_by_cufile(),
            ram_budget=RING_BYTES + 1000,
            pressure="lenient",
            backend="gpudirect",
        )
        check_reads(model, lambda model: model(**inputs), expected)


class Tower(nn.Module):
    """Layers of 16 MiB that begin anywhere in their file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2048, 2048) for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_large_layers_at_odd_offsets_are_bit_identical(known_disk: Path) -> None:
    torch.manual_seed(5)
    plain = Tower().requires_grad_(False)
    path = known_disk / "model.safetensors"
    save_file(plain.state_dict(), path, metadata={"of": "an odd length."})
    x = torch.randn(4, 2048, device=DEVICE)
    model = Tower().requires_grad_(False)
    model.load_state_dict(plain.state_dict())
    expected = plain.to(DEVICE)(x)
    budget = (64 << 20) + taken_by_cufile()
    free_before = torch.cuda.mem_get_info(DEVICE)[0]
    ts.offload(
        model,
        device=DEVICE,
        checkpoint=path,
        vram_budget=budget,
        ram_budget=RING_BYTES + 1000,
        pressure="lenient",
        backend="gpudirect",
    )
    check_reads(model, lambda model: model(x), expected)
    assert free_before - torch.cuda.mem_get_info(DEVICE)[0] <= budget
    assert_same(model.layers[3].weight.detach().cpu(), plain.layers[3].weight.cpu())


def test_a_disk_that_udev_does_not_know_is_refused_and_the_record_named(disk: Path) -> None:
    record = record_of(disk)
    if record.exists():
        pytest.skip(f"udev runs here: {record} is there")
    if not ts.probe_backends(DEVICE)["gpudirect"].usable:
        not_here(ts.probe_backends(DEVICE)["gpudirect"].reason)
    path = disk / "a.bin"
    path.write_bytes(b"\1" * 9000)
    # In a process of its own: cuFile may remember what it knows of a disk.
    done = subprocess.run(
        [sys.executable, "-c", OPEN, DEVICE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "UnsupportedError" in done.stderr, done.stderr
    assert str(record) in done.stderr, done.stderr


def test_auto_takes_it_where_peers_are_proven_alone() -> None:
    native = open_device(torch.device(DEVICE), self_check=False).native
    peers = _native.probe_peer_to_peer(native)
    assert peers.reason
    assert peers.is_peer_to_peer <= peers.is_usable
    if not Path("/proc/driver/nvidia-fs").exists():
        assert not peers.is_usable
        assert peers.reason == "nvidia-fs is not loaded"
