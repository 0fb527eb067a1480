# Question: how small do bf16 weights become, and how fast does a GPU decode them, by DFloat11's own
# encoder and kernel and by TensorStream's?
"""DFloat11 and TensorStream's decoder on one GPU, in one run: ratio, rates, exactness.

The package is installed, and none of it is copied; cupy is not needed:
    pip install --no-deps dfloat11==0.5.0 dahuffman==0.4.2

Weights: Gaussian ones of standard deviation 0.02 in bf16, a matrix of 4096 x 4096 and a transformer block
of 7B, each as one tensor. The matrix is encoded by the package's encoder; the block with the same table by
a packer that is held against that encoder on the matrix, bit for bit, as the encoder's loop would take
minutes. Each is decoded into several buffers in turn, timed by events around one launch; medians and
spread after a warm-up, in bytes that are written. The last result in each buffer is compared with the
weights as bits. TensorStream's figures are those of build/gpu/benchmarks/cuda_decode, run after it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cuda_runs.dfloat11_code import (
    BYTES_PER_THREAD,
    THREADS,
    Kernel,
    Package,
    Packed,
    Table,
    pack,
)
from cuda_runs.machine_sheet import ROOT, machine_sheet, version

MATRIX = 4096 * 4096
BLOCK = 202_383_360
DEVIATION = 0.02
ROTATED_BYTES = 512 << 20  # past any cache, by several buffers
MOST_BUFFERS = 6
DRY_WEIGHTS = 100_003
STALE = 0x5A5A


def gaussian(count: int, device: torch.device) -> torch.Tensor:
    """The same on every device."""
    made = torch.Generator().manual_seed(1)
    parts = [
        (torch.randn(min(MATRIX, count - at), generator=made) * DEVIATION).to(torch.bfloat16)
        for at in range(0, count, MATRIX)
    ]
    return torch.cat(parts).to(device)


def rates(seconds: list[float], size_bytes: int) -> dict[str, float]:
    """As cuda_decode has them."""
    ordered = sorted(seconds)

    def rate(share: float) -> float:
        return round(size_bytes / ordered[int(share * (len(ordered) - 1))] / 1e9, 2)

    return {
        "decoded_gb_s": rate(0.5),
        "p10_gb_s": rate(0.9),
        "p90_gb_s": rate(0.1),
        "median_us": round(ordered[len(ordered) // 2] * 1e6, 1),
    }


def decode(
    kernel: Kernel, packed: Packed, tables: torch.Tensor, weights: torch.Tensor, repeats: int
) -> dict[str, Any]:
    """Times the kernel, and compares what it wrote."""
    device = weights.device
    bits = weights.view(torch.int16)
    buffers = [
        torch.full_like(bits, STALE)
        for _ in range(min(max(ROTATED_BYTES // weights.nbytes + 1, 2), MOST_BUFFERS))
    ]
    packed, tables = packed.to(device), tables.to(device)
    launches = [kernel.prepare(packed, tables, buffer) for buffer in buffers]
    stream = torch.cuda.current_stream(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    seconds = []
    for at in range(len(launches) + repeats):
        begin.record(stream)
        launches[at % len(launches)](stream.cuda_stream)
        end.record(stream)
        end.synchronize()
        if at >= len(launches):  # each buffer once before
            seconds.append(begin.elapsed_time(end) / 1e3)
    exact = all(torch.equal(buffer, bits) for buffer in buffers)
    return rates(seconds, weights.nbytes) | {"exact": exact}


def decoded_on_the_host(packed: Packed, table: Table) -> torch.Tensor:
    """As the kernel does it, thread by thread, but slowly: from the gaps and the blocks' positions."""
    symbols = {code: symbol for symbol, code in table.items()}
    text = "".join(f"{byte:08b}" for byte in packed.codes.tolist())
    gap_text = "".join(f"{byte:08b}" for byte in packed.gaps.tolist())
    positions, rest = packed.positions.tolist(), packed.rest.tolist()
    found = []
    cell_bits = 8 * BYTES_PER_THREAD
    for thread in range(-(-len(text) // cell_bits)):
        if thread % THREADS == 0 and positions[thread // THREADS] != len(found):
            raise SystemExit(f"block {thread // THREADS} does not begin at element {len(found)}")
        at = thread * cell_bits + int(gap_text[5 * thread : 5 * thread + 5], 2)
        while at < (thread + 1) * cell_bits and len(found) < len(rest):
            length = 1
            while (length, int(text[at : at + length], 2)) not in symbols:
                length += 1
            symbol = symbols[length, int(text[at : at + length], 2)]
            low = rest[len(found)]
            found.append((low & 0x80) << 8 | symbol << 7 | low & 0x7F)
            at += length
    return torch.tensor(found, dtype=torch.int32).to(torch.int16)


class Run:
    """The package on one device, or without one where nothing is decoded by a kernel."""

    def __init__(self, repeats: int, device: torch.device) -> None:
        self.package = Package()
        self.device = device
        self.repeats = repeats
        self.kernel: Kernel | None = None
        if device.type == "cuda":
            torch.zeros(1, device=device)  # makes torch's context this thread's
            self.kernel = Kernel(self.package.kernel)

    def measure(self, name: str, count: int, *, by_package: bool) -> dict[str, Any]:
        """One tensor of so many weights, encoded by the package's encoder or by the packer."""
        weights = gaussian(count, self.device)
        on_host = weights.cpu()
        codec, table, tables = self.package.codec(weights)
        packed = pack(weights, table)
        row: dict[str, Any] = {"tensor": name, "weights": count, "bytes": weights.nbytes}
        if by_package:
            began = time.perf_counter()
            theirs = self.package.encode(on_host, codec)
            taken = time.perf_counter() - began
            row["encode_mb_s"] = round(weights.nbytes / taken / 1e6, 3)
            if not theirs.same(packed):
                raise SystemExit(f"{name}: the packer differs from the package's encoder")
            packed = theirs
        row["encoder"] = "the package's" if by_package else "the packer, equal to the package's"
        row["ratio"] = round((packed.nbytes + tables.nbytes) / weights.nbytes, 4)
        if self.kernel is not None:
            row |= decode(self.kernel, packed, tables, weights, self.repeats)
        else:
            row["exact"] = torch.equal(
                decoded_on_the_host(packed, table), on_host.view(torch.int16)
            )
        print(json.dumps(row), flush=True)
        return row


def ours(program: Path, repeats: int) -> list[dict[str, Any]]:
    """What cuda_decode measures of bf16 on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        subprocess.run([program, "--output", output, "--repeats", str(repeats)], check=True)
        rows = json.loads(output.read_text())["rows"]
    return [
        row
        for row in rows
        if row["what"] == "copy"
        or (row["dtype"] == "bfloat16" and row["shape"] == rows[1]["shape"])
    ]


def main() -> int:
    """Prints rows as they come, and writes the result as JSON where --output says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--matrix", type=int, default=MATRIX, help="its weights")
    parser.add_argument("--block", type=int, default=BLOCK, help="its weights")
    parser.add_argument("--output", type=Path, help="a file for the JSON")
    parser.add_argument("--decode", type=Path, default=ROOT / "build/gpu/benchmarks/cuda_decode")
    parser.add_argument("--dry-run", action="store_true", help="few weights, decoded by the host")
    options = parser.parse_args()
    if options.dry_run:
        options.matrix, options.block = DRY_WEIGHTS, 3 * DRY_WEIGHTS
    elif not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here; --dry-run does without one")
    run = Run(options.repeats, torch.device("cpu" if options.dry_run else "cuda"))
    sheet = machine_sheet()
    sheet["packages"] |= {name: version(name) for name in ("dfloat11", "dahuffman")}
    result: dict[str, Any] = {
        "question": "ratio and rates of DFloat11 and TensorStream on bf16 weights",
        "machine": sheet,
        "repeats": options.repeats,
        "dry_run": options.dry_run,
        "dfloat11": [
            run.measure("matrix", options.matrix, by_package=True),
            run.measure("block", options.block, by_package=False),
        ],
    }
    if options.dry_run or not options.decode.is_file():
        print(f"not measured: TensorStream's decoder; {options.decode} was not run")
        result["tensorstream"] = []
    else:
        torch.cuda.empty_cache()
        result["tensorstream"] = ours(options.decode, options.repeats)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    exact = all(row["exact"] for row in result["dfloat11"])
    print("all exact" if exact else "NOT EXACT")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
