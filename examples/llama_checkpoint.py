"""Makes a Llama-shaped checkpoint: seeded random bfloat16 weights, one shard at a time."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

_INDEX_FILE = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the model. The defaults are TinyLlama's with 20 layers: 2.0 GB of bfloat16.

    The name of the checkpoint's folder is made of all of them: where the same sizes come to mean
    other bytes, `format` changes.
    """

    hidden: int = 2048
    inner: int = 5632
    layers: int = 20
    heads: int = 32
    key_heads: int = 4
    vocabulary: int = 32000
    shard_bytes: int = 400_000_000
    seed: int = 0
    format: int = 1

    def folder_name(self) -> str:
        """Names the content: the same shape, the same bytes."""
        key = hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()
        return f"llama-{self.hidden}x{self.layers}-{key[:12]}"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Adds one option a field."""
        for field in dataclasses.fields(Shape):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=int, default=field.default, metavar="N")

    @staticmethod
    def from_options(options: argparse.Namespace) -> Shape:
        """The shape that the parsed options say."""
        names = [field.name for field in dataclasses.fields(Shape)]
        return Shape(**{name: getattr(options, name) for name in names})

    def arguments(self) -> list[str]:
        """The options that say this shape."""
        return [
            text
            for field in dataclasses.fields(Shape)
            for text in (f"--{field.name.replace('_', '-')}", str(getattr(self, field.name)))
        ]

    def config(self):
        """The transformers config of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            dtype="bfloat16",
        )


def make_checkpoint(shape: Shape, parent: Path) -> Path:
    """The checkpoint's folder below `parent`: made now, or found from an earlier time.

    Written under another name and renamed when whole: a folder of that name is complete.
    """
    folder = parent / shape.folder_name()
    if folder.is_dir():
        return folder
    unfinished = parent / f"{folder.name}.{os.getpid()}.unfinished"
    unfinished.mkdir(parents=True)
    try:
        _write(shape, unfinished)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process made it meanwhile
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(shape: Shape, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(shape.config()).to(torch.bfloat16)
    forms = model.state_dict()
    total_bytes = sum(form.nbytes for form in forms.values())
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < total_bytes:
        raise SystemExit(
            f"the checkpoint takes {total_bytes:,} bytes, and {free_bytes:,} are free in {folder}; "
            "free some, or give another --folder"
        )
    shards = _shards(forms, shape.shard_bytes)
    generator = torch.Generator().manual_seed(shape.seed)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _fill(forms[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / _INDEX_FILE).write_text(json.dumps(index, indent=2))
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)


def _fill(form, generator):
    """Weights as a fresh model has them: norms 1, the rest normal with deviation 0.02."""
    import torch

    if form.dim() == 1:
        return torch.ones(form.shape, dtype=form.dtype)
    return torch.empty(form.shape, dtype=form.dtype).normal_(0, 0.02, generator=generator)


def _shards(forms, shard_bytes: int) -> list[list[str]]:
    """Names in order, cut where a shard would become larger than `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, form in forms.items():
        if shards[-1] and filled + form.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += form.nbytes
    return shards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    Shape.add_options(parser)
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints are kept")
    options = parser.parse_args()
    print(make_checkpoint(Shape.from_options(options), options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
