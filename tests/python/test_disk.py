"""Models whose files are read past the page cache: the same bits, and one clear error where that fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tensorstream as ts
from conftest import assert_same, offload_tightly, save
from fake_gpu import use_fake_gpu
from model_shapes import SHAPES, make_stack, row_ids
from test_faults import run_python
from test_windows import WIDTH, Layers, mapped

BACKENDS = ("direct", "io_uring")
WITHOUT_IO_URING = """
import ctypes, struct
# A filter as containers have it: io_uring_setup (425) fails with EPERM, everything else goes on.
rules = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 425, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7FFF0000)
class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("rules", ctypes.c_char_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0
assert prctl(22, 2, ctypes.byref(Program(4, rules))) == 0
"""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that reads past the page cache."""
    return str(request.param)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The weights of a stack of layers."""
    path = tmp_path / "model.safetensors"
    save_file(make_stack(4).state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
@pytest.mark.parametrize("prefetch", ["adaptive", "none"])
def test_models_are_bit_identical(name: str, prefetch: str, backend: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    plain: Any = shape.make(4)
    path = save(plain, tmp_path / name)
    estimate = ts.estimate_memory(plain)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    with torch.no_grad():
        expected = plain(**shape.inputs())
    for step in range(3):
        budget = smallest + (fits - smallest) * step // 3
        model = type(plain).from_pretrained(path)
        ts.offload(model, ram_budget=budget, backend=backend, prefetch=prefetch)
        with torch.no_grad():
            for round_ in range(2):
                assert_same(model(**shape.inputs()), expected, f"budget {step}, forward {round_}")
        assert ts.stats(model).streamed_disk_bytes > 0
        ts.restore(model)
        with torch.no_grad():
            assert_same(model(**shape.inputs()), expected, f"restored after budget {step}")


@pytest.mark.parametrize("homes", [True, False])
def test_a_gpu_is_served_from_the_disk(
    homes: bool, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    shape = SHAPES["llama"]
    plain: Any = shape.make(4)
    model = type(plain).from_pretrained(save(plain, tmp_path / "llama"))
    offload_tightly(model, backend=backend)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(**shape.inputs()), plain(**shape.inputs()))
    assert (ts.stats(model).pinned_bytes > 0) == homes


def test_weights_of_many_pieces_are_bit_identical(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    save_file({name: p.detach() for name, p in Layers().named_parameters()}, path)
    plain, model = mapped(path), mapped(path)
    offload_tightly(model, device="cpu", backend=backend)
    for rows in (1, 7):
        x = torch.randn(rows, WIDTH)
        for _ in range(3):
            assert_same(model(x), plain(x))


def test_checkpoints_and_reads_between_uses(backend: str, checkpoint: Path) -> None:
    model, plain = make_stack(4), make_stack(4)
    offload_tightly(model, checkpoint=checkpoint, backend=backend)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        for name, value in plain.named_parameters():
            assert_same(model.get_parameter(name).clone(), value, name)


def test_the_statistics_say_how_files_are_read(backend: str, checkpoint: Path) -> None:
    model = offload_tightly(make_stack(4), checkpoint=checkpoint, backend=backend)
    said = ts.stats(model).backend
    assert said.startswith(f"{backend} (asked for): O_DIRECT by io_uring, 16 requests of")


def test_a_checkpoint_truncated_under_a_running_model(backend: str, checkpoint: Path) -> None:
    model, plain = make_stack(4), make_stack(4)
    offload_tightly(model, checkpoint=checkpoint, backend=backend)
    content = checkpoint.read_bytes()
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        os.truncate(checkpoint, len(content) // 3)
        for _ in range(2):
            with pytest.raises(ts.IoError, match=r"model\.safetensors") as raised:
                model(row_ids())
            assert raised.value.filename == str(checkpoint)
        checkpoint.write_bytes(content)
        with pytest.raises(ts.IoError, match="changed since it was opened"):
            model(row_ids())
        again = offload_tightly(make_stack(4), checkpoint=checkpoint, backend=backend)
        assert_same(again(row_ids()), plain(row_ids()))


def test_a_checkpoint_replaced_and_deleted_under_a_running_model(
    backend: str, checkpoint: Path, tmp_path: Path
) -> None:
    model, plain = make_stack(4), make_stack(4)
    offload_tightly(model, checkpoint=checkpoint, backend=backend)
    save_file(make_stack(4, seed=99).state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").replace(checkpoint)
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
        checkpoint.unlink()
        assert_same(model(row_ids()), plain(row_ids()))


def test_models_that_come_and_go_leave_no_threads_and_files(backend: str, checkpoint: Path) -> None:
    def use() -> tuple[int, int]:
        model = offload_tightly(make_stack(4), checkpoint=checkpoint, backend=backend)
        with torch.no_grad():
            model(row_ids())
        ts.restore(model)
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    use()
    before = use()
    for _ in range(3):
        after = use()
    assert after <= before


def test_where_io_uring_is_forbidden(checkpoint: Path) -> None:
    """By name it is an error, and the model as it was; "direct" reads by threads and says why."""
    done = run_python(
        WITHOUT_IO_URING
        + """
import sys, torch
import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly
from model_shapes import make_stack, row_ids
model, plain = make_stack(4), make_stack(4)
try:
    offload_tightly(model, checkpoint=sys.argv[1], backend="io_uring")
    sys.exit("no error")
except ts.UnsupportedError as error:
    assert "io_uring is forbidden here" in str(error), error
assert not hooks_of(model)
offload_tightly(model, checkpoint=sys.argv[1], backend="direct")
with torch.no_grad():
    assert_same(model(row_ids()), plain(row_ids()))
print(ts.stats(model).backend)
""",
        str(checkpoint),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("direct (asked for): O_DIRECT by threads, 16 requests of")
    assert "io_uring is forbidden here" in done.stdout


def test_plans_are_those_of_loading_ahead(backend: str) -> None:
    """A disk copies by itself: there is a place to copy to while another group is used."""
    model = make_stack(4)
    budget = ts.estimate_memory(model).smallest_budget_bytes * 2
    direct = ts.plan(model, ram_budget=budget, backend=backend)
    assert direct == ts.plan(model, ram_budget=budget, prefetch="aggressive")
    assert direct != ts.plan(model, ram_budget=budget)
