"""The benchmark beside DFloat11, without its package and without a GPU: its layout, and its launch."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import cuda_dfloat11
import cuda_llama
from cuda_runs import dfloat11_code, dfloat11_model
from cuda_runs.accelerator import open_accelerator
from cuda_runs.dfloat11_code import BYTES_PER_THREAD, THREADS, Kernel, Packed, pack
from cuda_runs.driver import chosen
from cuda_runs.llama_model import TINY, make_llama

import result_tables

# Any prefix code does: symbols 118 to 124 and the end, of 1 to 6 bits.
TABLE = {
    121: (1, 0b0), 120: (2, 0b10), 122: (3, 0b110), 119: (4, 0b1110), 123: (5, 0b11110),
    118: (6, 0b111110), "end": (6, 0b111111),
}  # fmt: skip


def weights_of(count: int, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    exponents = torch.tensor([121, 121, 121, 120, 120, 122, 119, 123, 118], dtype=torch.int16)
    chosen = exponents[torch.randint(0, len(exponents), (count,), generator=made)]
    rest = torch.randint(0, 256, (count,), generator=made).to(torch.int16)
    bits = (rest & 0x80) << 8 | chosen << 7 | rest & 0x7F
    return bits.to(torch.int16).view(torch.bfloat16)


def packed_bit_by_bit(weights: torch.Tensor) -> tuple[list[int], list[int], list[int]]:
    """Codes, blocks' positions and gaps, as plainly as can be."""
    text, positions, gaps = "", [], []
    cell_bits = 8 * BYTES_PER_THREAD

    def note(element: int) -> None:
        if len(text) // cell_bits + 1 > len(gaps):
            gaps.append(len(text) % cell_bits)
        if len(text) // (cell_bits * THREADS) + 1 > len(positions):
            positions.append(element)

    exponents = ((weights.view(torch.int16) >> 7) & 0xFF).tolist()
    for element, symbol in enumerate(exponents):
        note(element)
        length, code = TABLE[symbol]
        text += f"{code:0{length}b}"
    if len(text) % 8:
        note(len(exponents))
        text += "111111"[: 8 - len(text) % 8]
        text += "0" * (-len(text) % 8)
    codes = [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]
    gaps += [0] * (-len(gaps) % THREADS)
    gap_text = "".join(f"{gap:05b}" for gap in gaps)
    return (
        codes,
        [*positions, len(exponents)],
        [int(gap_text[at : at + 8], 2) for at in range(0, len(gap_text), 8)],
    )


@pytest.mark.parametrize("step", [1, 64, 1000, 1 << 24])
def test_codes_lie_as_the_kernel_reads_them(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dfloat11_code, "_STEP", step)
    for seed, count in enumerate(
        [1, 2, 3, 8, 63, 64, 500, 1001, *((15_000, 40_007) if step > 1 else ())]
    ):
        weights = weights_of(count, seed)
        packed = pack(weights, TABLE)
        codes, positions, gaps = packed_bit_by_bit(weights)
        assert packed.codes.tolist() == codes
        assert packed.positions.tolist() == positions
        assert packed.gaps.tolist() == gaps
        back = cuda_dfloat11.decoded_on_the_host(packed, TABLE)
        assert torch.equal(back, weights.view(torch.int16))
        widest = max(b - a for a, b in itertools.pairwise(positions))
        assert packed.shared_bytes == THREADS * 4 + 4 + 2 * widest
        assert packed.same(pack(weights, TABLE))
        other = Packed(packed.codes, packed.rest ^ 1, packed.positions, packed.gaps)
        assert not packed.same(other)


class Library:
    """Stands for libcuda: reads what it is given as the driver does."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.result = 0

    def cuModuleLoadData(self, module: Any, source: Any) -> int:
        self.calls.append(("load", ctypes.string_at(source)))
        module._obj.value = 11
        return self.result

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        assert module.value == 11
        self.calls.append(("find", name))
        function._obj.value = 12
        return self.result

    def cuFuncSetAttribute(self, function: Any, attribute: Any, value: Any) -> int:
        assert function.value == 12
        self.calls.append(("attribute", attribute.value, value.value))
        return self.result

    def cuLaunchKernel(self, function: Any, *given: Any) -> int:
        assert function.value == 12
        *sizes, stream, arguments, extra = given
        assert extra is None
        pointers = [ctypes.c_uint64.from_address(arguments[i]).value for i in range(6)]
        counts = [ctypes.c_int32.from_address(arguments[i]).value for i in range(6, 9)]
        self.calls.append(
            ("launch", [size.value for size in sizes], stream.value, pointers, counts)
        )
        return self.result


def test_the_kernel_is_launched_as_its_package_does() -> None:
    library = Library()
    kernel = Kernel(b"ptx", library)
    weights = weights_of(40_007, 3)
    packed = pack(weights, TABLE)
    tables, out = torch.zeros(5, 256, dtype=torch.uint8), torch.zeros(40_007, dtype=torch.int16)
    kernel.prepare(packed, tables, out)(77)
    blocks = -(-packed.codes.numel() // (THREADS * BYTES_PER_THREAD))
    assert library.calls == [
        ("load", b"ptx"),
        ("find", b"decode"),
        (
            "launch",
            [blocks, 1, 1, THREADS, 1, 1, packed.shared_bytes],
            77,
            [
                part.data_ptr()
                for part in (tables, packed.codes, packed.rest, packed.positions, packed.gaps, out)
            ],
            [5, packed.codes.numel(), 40_007],
        ),
    ]


def test_a_block_that_needs_more_memory_asks_for_it_and_errors_end_the_run() -> None:
    library = Library()
    kernel = Kernel(b"ptx", library)
    packed = pack(weights_of(1000, 3), TABLE)
    packed.positions = torch.tensor([0, 30_000], dtype=torch.int32)
    kernel.prepare(packed, torch.zeros(5, 256, dtype=torch.uint8), torch.zeros(1000))
    assert library.calls[-1] == ("attribute", 8, THREADS * 4 + 4 + 60_000)
    library.result = 701
    with pytest.raises(SystemExit, match=r"cuFuncSetAttribute .* error 701"):
        kernel.prepare(packed, torch.zeros(5, 256, dtype=torch.uint8), torch.zeros(1000))


def test_rates_are_those_of_cuda_decode() -> None:
    seconds = [float(i) for i in range(1, 26)]
    assert cuda_dfloat11.rates(seconds, int(26e9)) == {
        "decoded_gb_s": 2.0,
        "p10_gb_s": round(26 / 22, 2),
        "p90_gb_s": round(26 / 3, 2),
        "median_us": 13e6,
    }


def test_a_program_beside_it_gives_its_bf16_rows(tmp_path: Path) -> None:
    rows = [
        {"what": "copy", "tensor": "block"},
        {"what": "decode", "dtype": "bfloat16", "shape": "a", "level": 1},
        {"what": "decode", "dtype": "bfloat16", "shape": "b", "level": 1},
        {"what": "decode", "dtype": "float16", "shape": "a", "level": 1},
    ]
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\n[ $3 = --repeats ] && [ $4 = 9 ] && echo '{json.dumps({'rows': rows})}' > $2\n"
    )
    program.chmod(0o755)
    assert cuda_dfloat11.ours(program, 9) == rows[:2]


def test_the_table_shows_both() -> None:
    measured = {"decoded_gb_s": 100.4, "p10_gb_s": 99.0, "p90_gb_s": 101.0, "exact": True}
    result = {
        "machine": {
            "gpus": [{"name": "A card", "driver_version": "1"}],
            "date": "2026-11-26T00:00:00",
            "commit": "abc",
            "packages": {"dfloat11": "0.5.0"},
        },
        "repeats": 25,
        "dfloat11": [{"tensor": "matrix", "ratio": 0.68, **measured}],
        "tensorstream": [
            {"what": "copy", "tensor": "matrix", **measured},
            {"what": "decode", "tensor": "matrix", "level": 4, "ratio": 0.667, **measured},
        ],
    }
    text = "".join(result_tables.dfloat11_table(result))
    assert "| matrix | DFloat11 0.5.0 | 100 (99 to 101) | 0.680 |" in text
    assert "| matrix | TensorStream, level 4 | 100 (99 to 101) | 0.667 |" in text
    assert "copied" not in text


class PackageOfOneTable:
    """Stands for the package where its table is TABLE, whatever the weights."""

    def codec(self, weights: torch.Tensor) -> tuple[None, dict[Any, tuple[int, int]], torch.Tensor]:
        return None, TABLE, torch.full((2, 256), 7, dtype=torch.uint8)


def test_a_checkpoint_holds_each_module_as_the_packages_loader_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfloat11_model, "Package", PackageOfOneTable)
    model = make_llama(TINY, open_accelerator("cpu"))
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = weights_of(parameter.numel(), seed).view(parameter.shape)
    dfloat11_model.write_dfloat11(model, tmp_path, torch.device("cpu"))

    config = json.loads((tmp_path / "config.json").read_text())["dfloat11_config"]
    assert (config["threads_per_block"], config["bytes_per_thread"]) == ([THREADS], 8)
    layers = [f"model.layers.{layer}" for layer in range(TINY.layers)]
    names = ["lm_head", "model.embed_tokens", *layers]
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == sorted(
        name.replace(".", "_") for name in names
    )
    for name in names:
        linears = next(
            linears
            for pattern, linears in config["pattern_dict"].items()
            if re.fullmatch(pattern, name)
        )
        module = model.get_submodule(name)
        owners = [module.get_submodule(linear) for linear in linears] or [module]
        stored = load_file(tmp_path / f"{name.replace('.', '_')}.safetensors")
        stored = {key.removeprefix(f"{name}."): value for key, value in stored.items()}
        sizes = [owner.weight.numel() for owner in owners]
        assert stored["split_positions"].tolist() == list(itertools.accumulate(sizes))[:-1]
        assert stored["output_positions"].dtype == torch.uint8
        packed = Packed(
            stored["encoded_exponent"],
            stored["sign_mantissa"],
            stored["output_positions"].view(torch.int32),
            stored["gaps"],
        )
        expected = torch.cat([owner.weight.flatten() for owner in owners])
        assert torch.equal(
            cuda_dfloat11.decoded_on_the_host(packed, TABLE), expected.view(torch.int16)
        )
    coded = sum(sum(w.numel() for w in ws) for _, ws in dfloat11_model.coded_modules(model))
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert coded + norms == sum(p.numel() for p in model.parameters())


def test_it_is_the_last_of_the_peers_where_there_is_a_gpu_and_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = "dfloat11-cpu-offload"
    for device, installed in itertools.product(("cpu", "cuda:0"), (False, True)):
        monkeypatch.setattr(cuda_llama, "has_dfloat11", lambda installed=installed: installed)
        plan = cuda_llama.make_plan(cuda_llama.parse(["--device", device]))
        assert (way in plan) == (device != "cpu" and installed)
    assert list(plan)[-2:] == [way, "link-after"]
    assert list(chosen(plan, "native,dfloat11")) == ["link-before", "native", way, "link-after"]
    arguments = plan[way]
    assert not callable(arguments)
    options = cuda_llama.parse(list(arguments))
    assert (options.command, options.device, options.new_tokens) == (way, "cuda:0", 32)
    assert options.passes == f"{cuda_llama.DECODES},{cuda_llama.PREFILLS}"
