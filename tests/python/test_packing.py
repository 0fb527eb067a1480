"""ts.pack, ts.unpack, ts.verify: checkpoints that are packed without loss."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tensorstream as ts
from conftest import same_bytes
from model_shapes import SHAPES

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32,
    torch.uint64, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64,
]  # fmt: skip


def _bits(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Elements of any bit pattern: NaN payloads, infinities and subnormals too."""
    made = torch.Generator().manual_seed(seed)
    item = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 256, (count * item,), dtype=torch.uint8, generator=made)
    return raw.bitwise_and(1).bool() if dtype == torch.bool else raw.view(dtype)


def _weights(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(len(shape))
    return (torch.randn(shape, generator=made) * (1 if dtype.itemsize == 1 else 0.02)).to(dtype)


def _tensors() -> dict[str, torch.Tensor]:
    tensors = {f"bits.{dtype}": _bits(dtype, 5000, 3) for dtype in DTYPES}
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn):
        tensors[f"weights.{dtype}"] = _weights(dtype, 301, 77)
    tensors["empty"] = torch.empty(0, 5, dtype=torch.bfloat16)
    tensors["scalar"] = torch.tensor(1.5, dtype=torch.bfloat16)
    tensors["odd"] = _weights(torch.bfloat16, 1, 3, 1, 4099)
    tensors["several frames"] = _weights(torch.bfloat16, 1500, 1501)
    tensors['named "so" \\ é\n'] = torch.ones(3)
    return tensors


def _same_files(left: Path, right: Path) -> bool:
    names = sorted(str(path.relative_to(left)) for path in left.rglob("*") if path.is_file())
    found = sorted(str(path.relative_to(right)) for path in right.rglob("*") if path.is_file())
    return names == found and filecmp.cmpfiles(left, right, names, shallow=False)[1:] == ([], [])


def _bert(folder: Path, shard: str) -> Any:
    torch.manual_seed(5)
    config = transformers.BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        vocab_size=500,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def test_every_type_comes_back_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file(_tensors(), source / "model.safetensors", {"format": "pt", "note": "é"})
    packed = ts.pack(source, tmp_path / "packed")
    assert packed.tensors == len(_tensors())
    assert packed.encoded_tensors == 6
    assert packed.stored_bytes < packed.original_bytes
    assert ts.verify(tmp_path / "packed") == packed
    assert ts.unpack(tmp_path / "packed", tmp_path / "back") == packed
    assert _same_files(source, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in _tensors().items():
        assert same_bytes(back[name], tensor), name


def test_packed_files_are_safetensors_with_an_index(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    ts.pack(tmp_path / "model.safetensors", tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / "packed.safetensors.index.json").read_text())
    with safe_open(tmp_path / "packed" / "packed-model.safetensors", "pt") as file:
        assert set(file.keys()) == set(index["weight_map"])
        assert file.get_tensor("tensorstream.frames.odd").dtype == torch.uint8
        assert same_bytes(file.get_tensor("scalar"), _tensors()["scalar"])
        assert "odd" not in file.keys()  # noqa: SIM118
        assert file.metadata()["tensorstream.version"] == "1"


@pytest.mark.parametrize("shard", ["1GB", "100KB"])
def test_plain_transformers_finds_no_model(shard: str, tmp_path: Path) -> None:
    model = _bert(tmp_path / "source", shard)
    report = ts.pack(tmp_path / "source", tmp_path / "packed")
    assert (report.files > 1) == (shard == "100KB")
    assert (tmp_path / "packed" / "config.json").is_file()
    for options in ({}, {"use_safetensors": True}):
        with pytest.raises(OSError, match="no file named"):
            transformers.AutoModel.from_pretrained(tmp_path / "packed", **options)
    ts.unpack(tmp_path / "packed", tmp_path / "back")
    assert _same_files(tmp_path / "source", tmp_path / "back")
    again = transformers.AutoModel.from_pretrained(tmp_path / "back")
    for name, parameter in model.named_parameters():
        assert same_bytes(again.get_parameter(name), parameter), name


def test_a_tied_model_comes_back(tmp_path: Path) -> None:
    model = SHAPES["gpt2"].make(2)
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path / "source", max_shard_size="1MB")
    ts.pack(tmp_path / "source", tmp_path / "packed", level=9)
    ts.unpack(tmp_path / "packed", tmp_path / "back")
    assert _same_files(tmp_path / "source", tmp_path / "back")


def test_what_is_packed_is_not_packed_again(tmp_path: Path) -> None:
    _bert(tmp_path / "source", "1GB")
    ts.pack(tmp_path / "source", tmp_path / "packed")
    with pytest.raises(ts.UnsupportedError, match="packed"):
        ts.pack(tmp_path / "packed", tmp_path / "again")


def test_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    for threads in (1, 2, 3):
        ts.pack(tmp_path / "model.safetensors", tmp_path / f"packed-{threads}", threads=threads)
    assert _same_files(tmp_path / "packed-1", tmp_path / "packed-2")
    assert _same_files(tmp_path / "packed-1", tmp_path / "packed-3")


def test_damage_is_named(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    ts.pack(tmp_path / "model.safetensors", tmp_path / "packed")
    file = tmp_path / "packed" / "packed-model.safetensors"
    good = file.read_bytes()
    at = good.index(b"TSFR", good.index(b"TSFR") + 1) + 5000
    file.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
    for check in (ts.verify, lambda path: ts.unpack(path, tmp_path / "back")):
        with pytest.raises(ts.FormatError, match="chunk") as caught:
            check(tmp_path / "packed")
        assert caught.value.path == str(file)
        assert caught.value.tensor in _tensors()
    assert not (tmp_path / "back").exists()
    file.write_bytes(good[:-1])
    with pytest.raises(ts.FormatError) as caught:
        ts.verify(file)
    assert caught.value.path == str(file)


def test_arguments_that_cannot_be_used(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    source, target = tmp_path / "model.safetensors", tmp_path / "packed"
    for level in (-1, 10, 2.5, "fast"):
        with pytest.raises(ts.ConfigError, match="level"):
            ts.pack(source, target, level=level)  # type: ignore[arg-type]
    for threads in (0, -1, 1.5):
        with pytest.raises(ts.ConfigError, match="threads"):
            ts.pack(source, target, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(ts.ConfigError, match="not packed"):
        ts.unpack(source, target)
    with pytest.raises(ts.ConfigError, match="not empty"):
        ts.pack(source, tmp_path)
    with pytest.raises(ts.IoError, match="no such file"):
        ts.verify(tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_an_error_names_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file({"w": torch.ones(3)}, source / "model.safetensors")
    name = os.fsdecode(b"gone \xff")
    (source / name).symlink_to("nowhere")
    with pytest.raises(ts.IoError, match=r"gone \\xff") as caught:
        ts.pack(source, tmp_path / "packed")
    assert caught.value.filename == str(source / name)


def test_progress_is_called_and_can_stop_the_work(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    source = tmp_path / "model.safetensors"
    calls: list[tuple[int, int]] = []
    ts.pack(source, tmp_path / "packed", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 4_000_000

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for work in (ts.pack, ts.unpack):
        start = source if work is ts.pack else tmp_path / "packed"
        with pytest.raises(KeyboardInterrupt):
            work(start, tmp_path / "stopped", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        ts.verify(tmp_path / "packed", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "packed"]


def test_a_terminal_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    shown: list[str] = []
    terminal = type(
        "Terminal", (), {"isatty": lambda self: True, "write": lambda self, text: shown.append(text),
                         "flush": lambda self: None},
    )()  # fmt: skip
    monkeypatch.setattr(sys, "stderr", terminal)
    ts.pack(tmp_path / "model.safetensors", tmp_path / "packed")
    assert shown[-2].startswith("\rpacking ") and shown[-2].endswith(": 100%") and shown[-1] == "\n"
    count = len(shown)
    ts.verify(tmp_path / "packed", progress=lambda done, total: None)
    assert len(shown) == count


MEASURED = """
import sys
import tensorstream as ts
from tensorstream._native import resident_size
source, folder = sys.argv[1:]
before = resident_size().peak_bytes
ts.pack(source, folder + "/packed", threads=2)
ts.verify(folder + "/packed", threads=2)
ts.unpack(folder + "/packed", folder + "/back", threads=2)
print(resident_size().peak_bytes - before)
"""


def test_a_large_tensor_is_never_whole_in_memory(tmp_path: Path) -> None:
    elements = 100 * 2**20
    header = json.dumps({
        "coded": {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]},
        "kept": {"dtype": "U8", "shape": [elements], "data_offsets": [2 * elements, 3 * elements]},
    }).encode()  # fmt: skip
    source = tmp_path / "model.safetensors"
    with source.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 3 * elements)
    command = [sys.executable, "-c", MEASURED, str(source), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 32 * 2**20
    assert filecmp.cmp(source, tmp_path / "back" / "model.safetensors", shallow=False)


# Forks instead of starting Python anew for each run: importing takes a hundred times as long as packing.
KILLED = """
import os, random, signal, sys, time
import tensorstream as ts
source, folder, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
quiet = lambda done, total: None
def timed(name):
    start = time.perf_counter()
    ts.pack(source, os.path.join(folder, name), threads=2, progress=quiet)
    return time.perf_counter() - start
seconds = min(timed(f"timed-{turn}") for turn in range(5))  # whatever else the machine does
random.seed(1)
killed = left = run = 0
while killed < runs and run < 4 * runs:
    target = os.path.join(folder, f"target-{run}")
    run += 1
    child = os.fork()
    if child == 0:
        ts.pack(source, target, threads=2, progress=quiet)
        os._exit(0)
    time.sleep(1.2 * seconds * random.random())
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    partial = os.path.join(folder, f".{os.path.basename(target)}.tensorstream-partial")
    left += os.path.exists(partial)
    if os.path.exists(target):
        ts.verify(target, progress=quiet)
    else:
        ts.pack(source, target, threads=2, progress=quiet)
    assert not os.path.exists(partial)
print(killed, left, run)
"""


def test_a_pack_that_is_killed_leaves_no_target_or_a_whole_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file(_tensors(), source / "model.safetensors")
    (source / "config.json").write_text("{}")
    runs = 50
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path), str(runs)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    killed, left, tried = map(int, result.stdout.split())
    # Many are killed while they write, or the test shows nothing.
    assert killed == runs and left > runs / 4
    for run in range(tried):
        assert _same_files(tmp_path / "timed-0", tmp_path / f"target-{run}"), run


# A file system of 8 MiB of this process alone, which something else fills once packing has begun; or a
# limit that files meet.
FULL = """
import ctypes, os, resource, shutil, sys
import tensorstream as ts
source, folder, how = sys.argv[1:]
target = os.path.join(folder, "packed")
filler = os.path.join(folder, "filler")
if how == "disk":
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None) or libc.mount(
        b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=8m"
    ):
        sys.exit(77)

def fill(done, total):
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    elif not os.path.exists(filler):
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
quiet = lambda done, total: None
try:
    ts.pack(source, target, threads=1, progress=fill)
    sys.exit("packed")
except ts.IoError as error:
    print(error.errno, error)
assert not os.path.exists(target)
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
else:
    os.remove(filler)
ts.pack(source, target, threads=1, progress=quiet)
ts.verify(target, progress=quiet)
"""


@pytest.mark.parametrize(("how", "number"), [("limit", errno.EFBIG), ("disk", errno.ENOSPC)])
def test_a_disk_that_gets_full_is_an_error_and_the_next_pack_goes_on(
    how: str, number: int, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "folder").mkdir()
    weights = {f"w{i}": _weights(torch.bfloat16, 500, 600 + i) for i in range(6)}
    save_file(weights, tmp_path / "source" / "model.safetensors")
    command = [sys.executable, "-c", FULL, str(tmp_path / "source"), str(tmp_path / "folder"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this user may mount nothing: no disk can be filled")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{number} "), done.stdout


_FIRST_WRITE = """
import os, resource, signal, sys
import tensorstream as ts
source, target = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    ts.pack(source, target, progress=lambda *_: None)
    sys.exit("packed")
except ts.IoError as error:
    print(error)
"""


def test_a_first_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_file({"w": torch.randn(1000)}, tmp_path / "source" / "model.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", _FIRST_WRITE, str(tmp_path / "source"), str(tmp_path / "packed")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
