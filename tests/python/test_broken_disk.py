"""A disk that cannot read some of its bytes: EIO of the kernel's own, by a file system in user space."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tensorstream as ts
from conftest import assert_same, smallest_budget
from fake_gpu import use_fake_gpu
from test_windows import Layers, mapped

PROGRAM = Path(__file__).with_name("broken_disk.py")
BACKENDS = ["auto", "mmap", "cached", "direct", "io_uring"]
X = torch.linspace(-1, 1, 1100).reshape(1, 1100)


class Disk:
    """A folder, and the mount that shows it."""

    def __init__(self, folder: Path, mount: Path) -> None:
        self.folder, self.mount = folder, mount
        self.bad = folder.with_name("broken")

    def break_at(self, begin: int, end: int) -> None:
        """Bytes of files that cannot be read from here on, also where the page cache had them."""
        written = self.bad.with_name("written")
        written.write_text(f"{begin} {end}")
        written.replace(self.bad)  # at once: reads ahead are under way
        self.forget()

    def mend(self) -> None:
        """All can be read again."""
        self.bad.unlink()
        self.forget()

    def forget(self) -> None:
        """Drops the mount's files from the page cache."""
        for path in self.mount.glob("*.safetensors"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder, mount = tmp_path / "disk", tmp_path / "mount"
    folder.mkdir()
    mount.mkdir()
    torch.manual_seed(0)
    save_file(dict(Layers().named_parameters()), folder / "model.safetensors")
    made = Disk(folder, mount)
    command = [sys.executable, str(PROGRAM), str(folder), str(mount), str(made.bad)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not os.path.ismount(mount):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.skip(f"no file system in user space: {process.communicate()[1][-300:]}")
            time.sleep(0.01)
        try:
            yield made
        finally:
            subprocess.run(["umount", "--lazy", str(mount)], check=True)
            process.kill()  # what still has files of it open keeps it else


def place_of(disk: Disk, name: str) -> tuple[int, int]:
    """Where a tensor's bytes are in the file."""
    with (disk.folder / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))[name]["data_offsets"]
    return 8 + size + begin, 8 + size + end


def check_fault(disk: Disk, model: torch.nn.Module, passes_read_ahead: int = 0) -> None:
    """One weight cannot be read: the forward says so, and the model works once it can be."""
    plain = mapped(disk.folder / "model.safetensors")
    begin, end = place_of(disk, "layers.2.weight")
    with torch.no_grad():
        expected = plain(X)
        assert_same(model(X), expected)
        middle = (begin + end) // 2 // 4096 * 4096
        disk.break_at(middle, middle + 4096)
        for _ in range(passes_read_ahead):
            with contextlib.suppress(ts.IoError):
                model(X)
        for _ in range(2):
            with pytest.raises(ts.IoError, match=r"model\.safetensors") as raised:
                model(X)
            # Of a page that is mapped the kernel says no more than that it is not there.
            assert raised.value.errno in (errno.EIO, errno.EFAULT)
            assert raised.value.filename == str(disk.mount / "model.safetensors")
            assert begin <= raised.value.offset_bytes < end
            assert "group 'layers.2'" in str(raised.value)
        disk.mend()
        for _ in range(2):
            assert_same(model(X), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefetch", ["adaptive", "aggressive"])
def test_bytes_that_cannot_be_read_on_the_cpu(disk: Disk, backend: str, prefetch: str) -> None:
    path = disk.mount / "model.safetensors"
    model = Layers().requires_grad_(False).to("meta")
    ts.offload(
        model,
        checkpoint=path,
        ram_budget=smallest_budget(model),
        backend=backend,
        prefetch=prefetch,
        compression="none",
    )
    check_fault(disk, model)


@pytest.mark.parametrize("backend", ["auto", "cuda", "cached"])
def test_bytes_that_cannot_be_read_beside_a_gpu(
    disk: Disk, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=False)
    model = Layers().requires_grad_(False).to("meta")
    ts.offload(
        model,
        checkpoint=disk.mount / "model.safetensors",
        ram_budget=6 << 20,  # one layer
        backend=backend,
        compression="none",
    )
    check_fault(disk, model, passes_read_ahead=1)  # all of it fits the staging ring
