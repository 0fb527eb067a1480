"""Question: while the disk is the bound, does a pass over three tiers take what the disk needs?

Method: layers of 33.5 MB of bfloat16 in one safetensors file, of which some find a home in host memory and
the others are read from the file in each pass. Passes at batch 1, each followed by a measurement of the
disk by itself, half a second; medians, with the least and most, beside what the plan predicts.
`--fake` runs it on the tests' driver, whose memory is host memory: what is shown then is the disk's part.

    python benchmarks/cuda_tiers.py FOLDER [--layers 43] [--homes 0 10 20 30] [--backend direct] [--fake]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

import tensorstream as ts
from tensorstream import _native, orchestrator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "python"))
import limited_run
from limited_run import LAYER_BYTES, WIDTH

PLACES = 4
RING_BYTES = 64 << 20
SLACK_BYTES = 1 << 20


def use_fake_gpu(ram_bytes: int) -> None:
    import fake_gpu
    from tensorstream.compute_device import ComputeDevice

    class UncheckedGpu(fake_gpu.FakeGpu):
        """As fast as host memory is."""

        def __init__(self) -> None:
            library = fake_gpu.LIBRARY
            compiler = str(library.with_name("libfake_nvrtc.so"))
            cufile = _native.CufilePlaces()
            cufile.library = str(library)
            native = _native.cuda_device(
                0, _native.Checking.OFF, 1, str(library), compiler, cufile=cufile
            )
            ComputeDevice.__init__(self, native, torch.device("cpu"), _native.ArrayDevice.HOST)
            self.is_host = False
            self.link_bytes_per_second = 5e9

    orchestrator.open_device = lambda device, self_check: UncheckedGpu()
    orchestrator._ram_budget = lambda config: _native.create_budget(ram_bytes)


def run(options: argparse.Namespace, path: Path, homes: int) -> None:
    ram_bytes = RING_BYTES + homes * LAYER_BYTES + SLACK_BYTES
    budgets = {"vram_budget": PLACES * LAYER_BYTES + SLACK_BYTES, "ram_budget": ram_bytes}
    if options.fake:
        use_fake_gpu(ram_bytes)
        budgets = {"ram_budget": budgets["vram_budget"]}
    model = ts.offload(
        limited_run.make_layers(options.layers, "meta"),
        checkpoint=path,
        backend=options.backend,
        compression="none",
        **budgets,
    )
    x = torch.zeros(1, WIDTH, dtype=torch.bfloat16, device="cpu" if options.fake else "cuda")
    seconds, disk = [], []
    with torch.inference_mode():
        for _ in range(options.passes + 1):
            start = time.perf_counter()
            model(x).cpu()
            seconds.append(time.perf_counter() - start)
            disk.append(_native.measure_disk(str(path)) or 0.0)
    plan, stats = orchestrator.orchestrator_of(model).engine.plan, ts.stats(model)
    median = statistics.median(seconds[1:])
    said = stats.backend.split(":")[0]
    from_disk = plan.disk_bytes / median / 1e9
    ahead = stats.read_ahead_bytes / max(1, stats.streamed_disk_bytes)
    share = stats.peak_ram_held_bytes / stats.ram_budget_bytes
    print(
        f"{homes} homes, {said}): {plan.disk_bytes / 1e9:.2f} GB a pass from disk; pass {median:.3f} s "
        f"({min(seconds[1:]):.3f} to {max(seconds[1:]):.3f}), predicted {plan.predicted_seconds:.3f} "
        f"({plan.bound}); from disk at {from_disk:.2f} GB/s, the disk by itself "
        f"{statistics.median(disk) / 1e9:.2f}; read ahead {ahead:.2f}; host memory at most {share:.3f} of "
        "its budget"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the checkpoint is kept")
    parser.add_argument("--layers", type=int, default=43)
    parser.add_argument("--homes", type=int, nargs="+", default=[0, 10, 20, 30])
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--backend", default="direct")
    parser.add_argument("--fake", action="store_true", help="on the tests' driver")
    options = parser.parse_args()
    path = options.folder / f"layers-{options.layers}.safetensors"
    if not path.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        limited_run.write_checkpoint(path, options.layers)
    for homes in options.homes:
        run(options, path, homes)


if __name__ == "__main__":
    main()
