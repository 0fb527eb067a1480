"""Writes the tables of the documents from the results in benchmarks/results, or checks them.

Usage: result_tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
END = "<!-- end -->\n"
MODELS = (
    "gpu_llama_raw.json",
    "gpu_llama.json",
    "gpu_llama_h200.json",
    "gpu_llama_h200_coded.json",
)
LORA = "cuda_lora.json"
DFLOAT11_OFFLOAD = "cuda_llama_dfloat11.json"
DECODE = "cuda_decode.json"
DFLOAT11 = "cuda_dfloat11.json"
LOADING = "cuda_loading.json"


# The step of the GPU check, and what its passes' names begin with.
KINDS = (("llama", "decode"), ("llama", "prefill"), ("diffusion", "step"))


def steps_of(result: dict[str, Any], name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The machine and the benchmark's result of each run of a step."""
    for run in result["runs"]:
        for step in run["steps"]:
            if step["name"] == name:
                yield run["machine"], step["result"]


def model_tables(result: dict[str, Any]) -> Iterator[str]:
    """Decoding, prefills and diffusion, apart."""
    for name, kind in KINDS:
        yield from model_table(result, name, kind)


def model_table(result: dict[str, Any], name: str, kind: str) -> Iterator[str]:
    """The rows of each run; times are compared within it alone."""
    for machine, found in steps_of(result, name):
        yield from run_table(machine, found, kind)


def run_table(machine: dict[str, Any], found: dict[str, Any], kind: str) -> Iterator[str]:
    """The rows of one run whose passes' names begin so."""
    card = machine["gpus"][0]
    yield (
        f"{card['name']}, driver {card['driver_version']}, torch {machine['packages']['torch']}, "
        f"{machine['date'][:10]}, commit `{machine['commit']}`; link "
        f"{found['link_bytes_per_second'] / 1e9:.1f} GB/s by the run's own probe:\n\n"
    )
    yield "| way | pass | seconds, median (least to most) | x native | peak, GB | bits as native |\n"
    yield "|---|---|---|---|---|---|\n"
    for way, measured in found["ways"].items():
        for row in measured.get("rows", ()):
            if "seconds_median" in row and row["pass"].startswith(kind):
                yield model_row(way, row)
    yield "\n"


def model_row(way: str, row: dict[str, Any]) -> str:
    """A pass of a way."""
    peak = row.get("peak_device_bytes")
    same = row.get("identical_to_native")
    cells = (
        way,
        row["pass"],
        f"{row['seconds_median']:.4f} ({row['seconds_min']:.4f} to {row['seconds_max']:.4f})",
        "" if "times_native" not in row else f"{row['times_native']:.3g}",
        "" if peak is None else f"{peak / 1e9:.2f}",
        "" if same is None else "yes" if same else "NO",
    )
    return f"| {' | '.join(cells)} |\n"


def decode_table(result: dict[str, Any]) -> Iterator[str]:
    """Rates of the decoder that is used, beside copies of the same bytes."""
    shape = next(row["shape"] for row in result["rows"] if "shape" in row)
    yield (
        f"{result['device']}, {result['date']}, commit `{result['commit']}`: GB/s of decoded bytes, "
        f"median of {result['repeats']} (tenth and ninetieth percentile)\n\n"
    )
    yield "| weights | type | level | GB/s | of its bytes |\n|---|---|---|---|---|\n"
    for row in result["rows"]:
        if row.get("shape", shape) != shape:
            continue
        rate = f"{row['decoded_gb_s']:.0f} ({row['p10_gb_s']:.0f} to {row['p90_gb_s']:.0f})"
        kind = row.get("dtype", "copied on the device")
        ratio = f"{row['ratio']:.3f}" if "ratio" in row else ""
        yield f"| {row['tensor']} | {kind} | {row.get('level', '')} | {rate} | {ratio} |\n"


def dfloat11_table(result: dict[str, Any]) -> Iterator[str]:
    """DFloat11's kernel and the decoder that is used, in one run."""
    machine = result["machine"]
    card = machine["gpus"][0]["name"]
    yield (
        f"{card}, {machine['date'][:10]}, commit `{machine['commit']}`: GB/s of decoded bytes of bf16, "
        f"median of {result['repeats']} (tenth and ninetieth percentile)\n\n"
    )
    yield "| weights | code | GB/s | of its bytes |\n|---|---|---|---|\n"
    theirs = f"DFloat11 {machine['packages']['dfloat11']}"
    for row in (*result["dfloat11"], *result["tensorstream"]):
        if row.get("what") == "copy":  # also of weights of other types
            continue
        code = f"TensorStream, level {row['level']}" if "level" in row else theirs
        rate = f"{row['decoded_gb_s']:.0f} ({row['p10_gb_s']:.0f} to {row['p90_gb_s']:.0f})"
        yield f"| {row['tensor']} | {code} | {rate} | {row['ratio']:.3f} |\n"


def loading_table(result: dict[str, Any]) -> Iterator[str]:
    """Loads from the page cache to a ready model and to its first token, of each loader."""
    machine = result["machine"]
    size = sum(result["files_bytes"]) / 1e9
    yield (
        f"{machine['gpus'][0]['name']}, {machine['date'][:10]}, commit `{machine['commit']}`: {size:.1f} GB "
        f"of safetensors in the page cache ({result['file_system']}) to a ready model, seconds, median of "
        f"{result['rounds']} (least to most)\n\n"
    )
    yield "| loader | ready | first token | host memory at its peak, GB | bits as native |\n"
    yield "|---|---|---|---|---|\n"
    for name, way in result["ways"].items():
        if "missing" in way:
            yield f"| {name} | {way['missing']} | | | |\n"
            continue
        ready, first = (loading_cell(row) for row in way["rows"])
        same = way["rows"][1].get("identical_to_native")
        said = "" if same is None else "yes" if same else "NO"
        title = f"{name} {result['loaders'].get(name, '')}".strip()
        yield f"| {title} | {ready} | {first} | {way['peak_host_bytes'] / 1e9:.2f} | {said} |\n"


def loading_cell(row: dict[str, Any]) -> str:
    """Seconds, with the least and the most."""
    median, low, high = (row[f"seconds_{what}"] for what in ("median", "min", "max"))
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def measured(name: str) -> Any:
    """A result; None where it is not there: some need a package that nothing else does."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def model_runs() -> list[dict[str, Any]]:
    """The runs of the GPU check's benchmarks, those of an H100 first."""
    return [run for name in MODELS for run in measured(name)["runs"]]


def run_with(ways: tuple[str, ...], kind: str) -> str:
    """The rows of the first run that has all these ways."""
    for machine, found in steps_of({"runs": model_runs()}, "llama"):
        if set(ways) <= found["ways"].keys():
            return "".join(run_table(machine, found, kind)).removesuffix("\n")
    raise ValueError(f"no run has all of {ways}")


def all_tables() -> str:
    """Everything that was measured on GPUs."""
    text = "".join(model_tables({"runs": model_runs()}))
    if lora := measured(LORA):
        text += "".join(run_table(lora["machine"], lora, "lora"))
    if offload := measured(DFLOAT11_OFFLOAD):
        for kind in ("decode", "prefill"):
            text += "".join(run_table(offload["machine"], offload, kind))
    text += "".join(decode_table(measured(DECODE)))
    if beside := measured(DFLOAT11):
        text += "\n" + "".join(dfloat11_table(beside))
    if loads := measured(LOADING):
        text += "\n" + "".join(loading_table(loads))
    return text


# By document, and by the mark that they stand behind.
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "gpu decode": lambda: run_with(("tensorstream-small", "accelerate-device-map"), "decode/1"),
        "gpu prefill": lambda: run_with(("tensorstream-prefill",), "prefill"),
    },
    "docs/benchmarks.md": {"gpu tables": all_tables},
}


def with_tables(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """A document with what belongs between its marks."""
    for mark, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"the marks of '{mark}' are not there")
        text = before + begin + table() + end + after
    return text


def main(arguments: list[str]) -> int:
    """Writes or checks; the status says whether the documents are as they should be."""
    stale = 0
    for name, tables in TABLES.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = with_tables(old, tables)
        if arguments != ["--check"]:
            path.write_text(new, encoding="utf-8")
        elif new != old:
            print(f"{name}: its tables are not those of benchmarks/results: run make tables")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
