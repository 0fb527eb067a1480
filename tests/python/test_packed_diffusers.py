"""Models and pipelines of diffusers whose weights are packed: as those that were packed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorstream as ts
from conftest import assert_same
from diffusion_shapes import (
    ABSENT,
    PIPELINES,
    load_plain,
    make_autoencoder,
    make_unet,
    quiet,
    save_pipeline,
)
from fake_gpu import use_fake_gpu


@pytest.fixture(autouse=True)
def no_progress_bars() -> Iterator[None]:
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    yield


def packed_model(model: Any, folder: Path, **options: Any) -> tuple[Path, Path]:
    """A model's folder as diffusers saves it, and that folder packed."""
    model.save_pretrained(folder / "plain", **options)
    ts.pack(folder / "plain", folder / "packed")
    return folder / "plain", folder / "packed"


def assert_same_model(model: Any, plain: Any) -> None:
    """All that the two hold has the same names, types and bits, and is trained or not alike."""
    assert type(model) is type(plain)
    assert not model.training
    found, expected = (
        dict(each.state_dict()) | dict(each.named_buffers()) for each in (model, plain)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
    assert_same(found, expected)
    trained, expected_trained = (
        {name: parameter.requires_grad for name, parameter in each.named_parameters()}
        for each in (model, plain)
    )
    assert trained == expected_trained


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_packed_pipeline_gives_what_the_plain_one_gives(
    name: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    folder = save_pipeline(name, tmp_path / "plain")
    packed = tmp_path / "packed"
    ts.pack(folder, packed)
    run = PIPELINES[name][1]
    options = {} if dtype is None else {"dtype": dtype}
    expected = run(load_plain(name, folder, **options))
    estimate = ts.estimate_memory(packed, **options)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    for budget in (smallest, (smallest + fits) // 2, fits):
        pipeline = quiet(
            ts.from_pretrained(
                packed, **ABSENT[name], ram_budget=budget, self_check=True, **options
            )
        )
        for _ in range(2):
            assert_same(run(pipeline), expected)
        assert ts.stats(pipeline).peak_held_bytes <= budget
        ts.restore(pipeline)
        assert_same(run(pipeline), expected)
    with pytest.raises(ts.BudgetError):
        ts.from_pretrained(packed, **ABSENT[name], ram_budget=smallest - 1, **options)


@pytest.mark.parametrize("compression", ["none", "auto", 1])
@pytest.mark.parametrize("homes", [True, False], ids=["homes", "files"])
def test_a_packed_pipeline_on_a_gpu(
    homes: bool, compression: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    name, dtype = "flux", torch.bfloat16
    folder = save_pipeline(name, tmp_path / "plain")
    for part in sorted(folder.glob("*/*.safetensors")):  # as they are on hubs: nothing is cast
        values = {key: value.to(dtype) for key, value in load_file(part).items()}
        save_file(values, part, metadata={"format": "pt"})
    ts.pack(folder, tmp_path / "packed")
    run = PIPELINES[name][1]
    expected = run(load_plain(name, folder, dtype=dtype))
    estimate = ts.estimate_memory(tmp_path / "packed", dtype=dtype)
    ring = (32 << 20) if compression == 1 else 0
    pipeline = quiet(
        ts.from_pretrained(
            tmp_path / "packed",
            **ABSENT[name],
            dtype=dtype,
            ram_budget=estimate.smallest_budget_bytes + ring,
            compression=compression,
        )
    )
    for _ in range(2):
        assert_same(run(pipeline), expected)
    ts.restore(pipeline)
    assert_same(run(pipeline), expected)


def test_a_pipeline_is_packed_as_a_whole_and_comes_back(tmp_path: Path) -> None:
    folder = save_pipeline("flux", tmp_path / "plain")
    packed, back = tmp_path / "packed", tmp_path / "back"
    report = ts.pack(folder, packed)
    models = sorted(path.parent.name for path in folder.glob("*/config.json"))
    assert len(models) == 4
    assert {path.parent.name for path in packed.glob("*/packed.safetensors.index.json")} == set(
        models
    )
    assert list(packed.rglob("*.safetensors")) == list(packed.rglob("packed-*.safetensors"))
    assert ts.verify(packed) == report
    ts.unpack(packed, back)
    assert _bytes_below(back) == _bytes_below(folder)
    assert {group.name.split(".")[0] for group in ts.analyze(packed).groups} == set(models)
    with pytest.raises(OSError, match="no file named"):
        load_plain("flux", packed)
    with pytest.raises(ts.ConfigError, match="no model in"):
        ts.offload(make_unet(), checkpoint=packed)
    (folder / "vae" / "config.json").write_text(
        json.dumps({"transformers_weights": "other.safetensors"})
    )
    with pytest.raises(ts.ConfigError, match="transformers_weights"):
        ts.pack(folder, tmp_path / "named")
    steps = packed / "scheduler" / "scheduler_config.json"
    steps.write_text(steps.read_text() + " ")
    with pytest.raises(ts.FormatError, match="scheduler_config"):
        ts.verify(packed)


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_types_are_those_that_diffusers_gives(
    stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    folder, packed = packed_model(make_unet().to(stored), tmp_path)
    plain = diffusers.UNet2DConditionModel.from_pretrained(folder, dtype=dtype)
    model = ts.from_pretrained(packed, dtype=dtype, ram_budget="1GiB")
    assert_same_model(model, plain)
    assert model.config._name_or_path == str(packed)
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    assert_same_model(diffusers.UNet2DConditionModel.from_pretrained(saved, dtype=dtype), plain)


def test_types_that_a_class_keeps(tmp_path: Path) -> None:
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    assert model._keep_in_fp32_modules
    folder, packed = packed_model(model, tmp_path)
    plain = diffusers.WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16, torch.float32}
    smallest = ts.estimate_memory(packed, dtype=torch.bfloat16).smallest_budget_bytes
    loaded = ts.from_pretrained(packed, dtype=torch.bfloat16, ram_budget=smallest)
    assert_same_model(loaded, plain)
    inputs: dict[str, Any] = {
        "hidden_states": torch.ones(1, 4, 1, 4, 4, dtype=torch.bfloat16),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.ones(1, 5, 16, dtype=torch.bfloat16),
    }
    with torch.no_grad():
        assert_same(loaded(**inputs).sample, plain(**inputs).sample)


def test_buffers_that_are_made_in_the_type_asked_for(tmp_path: Path) -> None:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    folder, packed = packed_model(model, tmp_path)
    plain = diffusers.SD3Transformer2DModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert dict(plain.named_buffers())
    assert_same_model(ts.from_pretrained(packed, dtype=torch.bfloat16), plain)


def test_shards_names_of_before_and_fields_of_the_config(tmp_path: Path) -> None:
    folder, packed = packed_model(make_unet(), tmp_path, max_shard_size="100KB")
    assert len(list(packed.glob("packed-*.safetensors"))) > 1
    plain = diffusers.UNet2DConditionModel.from_pretrained(folder, sample_size=16)
    model = ts.from_pretrained(packed, sample_size=16, ram_budget="1GiB")
    assert model.config.sample_size == 16
    assert_same_model(model, plain)
    (tmp_path / "renamed").mkdir()
    folder, packed = packed_model(make_autoencoder(), tmp_path / "renamed")
    file = folder / "diffusion_pytorch_model.safetensors"
    values = diffusers.models.model_loading_utils.load_state_dict(file)
    before = {
        name.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value"): value
        for name, value in values.items()
    }
    before = {name.replace("to_out.0", "proj_attn"): value for name, value in before.items()}
    assert before.keys() != values.keys()
    save_file(before, file, metadata={"format": "pt"})
    shutil.rmtree(packed)
    ts.pack(folder, packed)
    plain = diffusers.AutoencoderKL.from_pretrained(folder)
    assert_same_model(ts.from_pretrained(packed, ram_budget="1GiB"), plain)


def test_shards_of_a_variant_alone_are_packed(tmp_path: Path) -> None:
    folder, packed = tmp_path / "plain", tmp_path / "packed"
    make_unet().save_pretrained(folder, variant="fp16", max_shard_size="100KB")
    ts.pack(folder, packed)
    plain = diffusers.UNet2DConditionModel.from_pretrained(folder, variant="fp16")
    assert_same_model(ts.from_pretrained(packed, ram_budget="1GiB"), plain)
    with pytest.raises(ts.ConfigError, match="variant='fp16'"):
        ts.from_pretrained(folder)


def test_what_plain_files_are_needed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = packed_model(make_unet(), tmp_path)
    with pytest.raises(ts.UnsupportedError, match=r"variant.*unpack"):
        ts.from_pretrained(packed, variant="fp16")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ts.UnsupportedError, match="pip install accelerate"):
        ts.from_pretrained(packed)
    monkeypatch.undo()
    config = packed / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"layers_per_block": 2}))
    for call in (ts.from_pretrained, ts.plan):
        with pytest.raises(ts.ConfigError, match="missing"):
            call(packed)
    config.write_text(json.dumps(fields | {"block_out_channels": [32, 96]}))
    for call in (ts.from_pretrained, ts.plan):
        with pytest.raises(ts.ConfigError, match="of another shape"):
            call(packed)
    config.write_text(json.dumps(fields | {"block_out_channels": "wide"}))
    with pytest.raises(ts.TensorStreamError):
        ts.from_pretrained(packed)
    assert torch.get_default_dtype() == torch.float32


class Odd(diffusers.ModelMixin, diffusers.ConfigMixin):
    """Buffers and weights of several types, one weight under two names, one that is kept in float32."""

    _keep_in_fp32_modules = "kept"
    config_name = "config.json"

    @diffusers.configuration_utils.register_to_config
    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.register_buffer("mask", torch.arange(size) % 2 == 0)
        self.register_buffer("ids", torch.arange(size))
        self.weight = torch.nn.Parameter(torch.arange(float(size)))
        self.first = torch.nn.Linear(size, size)
        self.second = self.first
        self.kept = torch.nn.Linear(size, size)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_stored_types_that_the_model_has_not(dtype: torch.dtype | None, tmp_path: Path) -> None:
    Odd().save_config(tmp_path / "plain")
    file = tmp_path / "plain" / "diffusion_pytorch_model.safetensors"
    values = {name: value.clone() for name, value in Odd().state_dict().items()}
    values |= {"mask": values["mask"].to(torch.uint8), "ids": values["ids"].to(torch.int32)}
    values |= {"weight": values["weight"].to(torch.int64)}
    for number, name in enumerate(("first", "second")):  # two values of what is one in the model
        values |= {
            f"{name}.weight": torch.full((6, 6), number + 1.5),
            f"{name}.bias": torch.ones(6) * number,
        }
    save_file(values, file, metadata={"format": "pt"})
    ts.pack(tmp_path / "plain", tmp_path / "packed")
    plain = Odd.from_pretrained(tmp_path / "plain", dtype=dtype)
    model = ts.from_pretrained(tmp_path / "packed", model_class=Odd, dtype=dtype, ram_budget="1GiB")
    assert_same_model(model, plain)
    assert {plain.mask.dtype, plain.ids.dtype, plain.kept.weight.dtype} == {
        torch.bool,
        torch.int64,
        torch.float32,
    }
    assert not (~model.mask).all()
    estimate = ts.estimate_memory(tmp_path / "packed", model_class=Odd, dtype=dtype)
    assert estimate.weights_bytes == ts.estimate_memory(plain).weights_bytes


class AllKept(Odd):
    """Whose weights are all kept in float32."""

    _keep_in_fp32_modules: ClassVar = ["first", "second", "kept", "weight"]


def test_a_class_that_keeps_all_of_its_weights(tmp_path: Path) -> None:
    folder, packed = tmp_path / "plain", tmp_path / "packed"
    AllKept().save_config(folder)
    values = {name: value.clone() for name, value in AllKept().state_dict().items()}
    save_file(values, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    ts.pack(folder, packed)
    plain = AllKept.from_pretrained(folder, dtype=torch.bfloat16)
    for each in (folder, packed):
        model = ts.from_pretrained(
            each, model_class=AllKept, dtype=torch.bfloat16, ram_budget="1GiB"
        )
        assert_same_model(model, plain)


def test_options_as_where_nobody_gives_them(tmp_path: Path) -> None:
    folder, packed = packed_model(make_unet(), tmp_path)
    for each in (folder, packed):
        for option in (
            "low_cpu_mem_usage",
            "disable_mmap",
            "use_onnx",
            "use_flashpack",
            "device_map",
        ):
            for value in (None, False):
                ts.from_pretrained(each, ram_budget="1GiB", **{option: value})
