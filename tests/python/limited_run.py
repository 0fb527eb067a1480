"""Runs a stack of layers from a checkpoint and prints a digest of what came out, and what it took.

A program of its own: the memory that its process may take is limited before torch is imported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WIDTH = 4096
LAYER_BYTES = WIDTH * WIDTH * 2  # bfloat16


def limit_memory(group: Path | None, limit_bytes: int) -> Any:
    """Enters the control group, or has the kernel refuse private memory beyond the limit."""
    if group is None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        return None
    sys.path.insert(0, str(EXAMPLES))
    from memory_group import MemoryGroup

    made = MemoryGroup(group)
    made.limit(limit_bytes)
    made.enter()
    return made


def make_layers(count: int, device: str) -> Any:
    import torch
    from torch import nn

    torch.set_num_threads(1)

    class Layer(nn.Linear):
        """Keeps activations in the range where every weight counts."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(super().forward(x))

    with torch.device(device):
        return nn.Sequential(
            *(Layer(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16) for _ in range(count))
        )


def write_checkpoint(path: Path, layers: int) -> None:
    """Layers of random weights, no two alike."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = torch.randn(WIDTH * WIDTH).mul_(WIDTH**-0.5).to(torch.bfloat16)
    weights = {
        f"{layer}.weight": base.roll(9973 * layer).view(WIDTH, WIDTH) for layer in range(layers)
    }
    save_file(weights, path)


def load_plain(path: Path, layers: int) -> Any:
    from safetensors import safe_open

    model = make_layers(layers, "cpu")
    with safe_open(path, "pt") as file:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(name))
    return model


def run(options: argparse.Namespace) -> dict[str, Any]:
    group = None
    if options.limit:
        group = limit_memory(options.group, options.limit)
    import torch

    result: dict[str, Any] = {}
    if options.backend == "plain":
        model = load_plain(options.checkpoint, options.layers)
    else:
        import tensorstream as ts

        model = ts.offload(
            make_layers(options.layers, "meta"),
            checkpoint=options.checkpoint,
            device="cpu",
            ram_budget=options.budget,
            backend=options.backend,
        )
    digest = hashlib.sha256()
    with torch.inference_mode():
        for rows in (1, 3):
            x = torch.arange(rows * WIDTH).remainder(7).sub(3).view(rows, WIDTH)
            digest.update(model(x.to(torch.bfloat16)).view(torch.uint8).numpy().tobytes())
    if options.backend != "plain":
        stats = ts.stats(model)
        result = {"peak_held": stats.peak_held_bytes, "from_disk": stats.streamed_disk_bytes}
        result["backend"] = stats.backend
    result["digest"] = digest.hexdigest()
    result["group_peak"] = group.peak_bytes() if group else 0
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--backend", default="plain", help='of tensorstream, or "plain" for none')
    parser.add_argument("--budget", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="of the process's memory, in bytes")
    parser.add_argument("--group", type=Path, help="the control group that holds it to that")
    parser.add_argument("--write", action="store_true", help="write the checkpoint, run nothing")
    options = parser.parse_args()
    if options.write:
        write_checkpoint(options.checkpoint, options.layers)
    else:
        print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
