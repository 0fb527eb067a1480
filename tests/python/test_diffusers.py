"""Models and pipelines of diffusers: loaded from their folders, streamed under one budget."""

from __future__ import annotations

import copy
import json
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorstream as ts
from conftest import assert_same, hooks_of, same_bytes, smallest_budget
from diffusion_shapes import (
    ABSENT,
    PIPELINES,
    load_plain,
    make_autoencoder,
    make_flux_transformer,
    make_stable_diffusion,
    make_text_encoder,
    make_unet,
    quiet,
    run_stable_diffusion,
    save_pipeline,
)
from fake_gpu import use_fake_gpu
from tensorstream import diffusion
from tensorstream.loading import describe

NAME = "stable-diffusion"


@pytest.fixture(autouse=True)
def no_progress_bars() -> Iterator[None]:
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    yield


def _load(name: str, folder: Path, **options: Any) -> Any:
    return quiet(ts.from_pretrained(folder, **ABSENT[name], **options))


def _rooms(model_or_path: Any) -> list[int]:
    estimate = ts.estimate_memory(model_or_path)
    smallest, fits = estimate.smallest_budget_bytes, estimate.everything_fits_bytes
    return [smallest, (smallest + fits) // 2, fits]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_from_its_folder_gives_what_the_plain_one_gives(
    name: str, tmp_path: Path
) -> None:
    folder = save_pipeline(name, tmp_path)
    run = PIPELINES[name][1]
    plain = load_plain(name, folder)
    expected = run(plain)
    for budget in _rooms(folder):
        pipeline = _load(name, folder, ram_budget=budget, self_check=True)
        assert type(pipeline) is type(plain)
        for _ in range(2):
            assert_same(run(pipeline), expected)
        stats = ts.stats(pipeline)
        assert stats.source_ram_bytes == 0
        assert stats.peak_held_bytes <= stats.budget_bytes == budget
        assert (stats.streamed_bytes == 0) == (budget == _rooms(folder)[-1])
        assert pipeline.device == pipeline._execution_device == torch.device("cpu")
        ts.restore(pipeline)
        assert_same(run(pipeline), expected)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_file_that_is_open_for_writing(tmp_path: Path, part: str) -> None:
    folder = save_pipeline(NAME, tmp_path)
    file = next((folder / part).glob("*.safetensors"))
    with file.open("r+b"), pytest.raises(ts.IoError, match="open for writing"):
        ts.from_pretrained(folder, dtype=torch.float64, ram_budget="1GiB")


def test_one_budget_is_shared_and_none_is_divided(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path)
    pipeline = make_stable_diffusion()
    alone = [smallest_budget(part) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)]
    assert smallest_budget(folder) == smallest_budget(pipeline) < sum(alone)
    parts = {group.name.split(".")[0] for group in ts.analyze(pipeline).groups}
    assert parts == {"unet", "vae", "text_encoder"}
    names = [group.name.split(".")[0] for group in ts.plan(folder, ram_budget="1GiB").groups]
    assert names == sorted(names, key=["text_encoder", "unet", "vae"].index), "the order of use"


def test_a_part_that_fits_can_be_kept(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path)
    kept = {"ram_budget": "4MiB", "keep_resident": ("unet",)}
    placements = {
        group.name: group.placement
        for group in ts.plan(folder, **kept).groups
        if group.name.startswith("unet")
    }
    assert set(placements.values()) == {"resident"}
    pipeline = _load(NAME, folder, **kept)
    assert_same(run_stable_diffusion(pipeline), run_stable_diffusion(load_plain(NAME, folder)))
    others = sum(
        p.nbytes for part in (pipeline.vae, pipeline.text_encoder) for p in part.parameters()
    )
    assert 0 < ts.stats(pipeline).streamed_bytes <= others


def test_the_file_that_a_disk_is_measured_by(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path)
    largest = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert describe(str(folder)).largest_file() == str(largest)
    assert describe(str(folder / "unet")).largest_file() == str(largest)


def test_a_pipeline_in_memory_is_offloaded_moved_and_restored() -> None:
    pipeline, plain = make_stable_diffusion(), make_stable_diffusion()
    expected = run_stable_diffusion(plain)
    before = {name: dict(part.named_parameters()) for name, part in _parts(pipeline).items()}
    smallest, half, fits = _rooms(pipeline)
    assert ts.offload(pipeline, ram_budget=smallest) is pipeline
    assert_same(run_stable_diffusion(pipeline), expected)
    for budget in (fits, half):
        assert ts.set_budget(pipeline, ram_budget=budget) is pipeline
        assert_same(run_stable_diffusion(pipeline), expected)
    assert ts.restore(pipeline) is pipeline
    for name, part in _parts(pipeline).items():
        assert not hooks_of(part)
        assert all(part.get_parameter(key) is value for key, value in before[name].items())
    assert_same(run_stable_diffusion(pipeline), expected)
    assert_same(run_stable_diffusion(ts.offload(pipeline, ram_budget=smallest)), expected)


def _parts(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {
        name: part
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }


@pytest.mark.parametrize("everything", [False, True], ids=["smallest", "everything"])
def test_a_part_is_not_offloaded_twice(everything: bool) -> None:
    pipeline = make_stable_diffusion()
    budget = _rooms(pipeline)[-1 if everything else 0]
    ts.offload(pipeline, ram_budget=budget)
    for again in (
        pipeline,
        pipeline.unet,
        diffusers.StableDiffusionPipeline(**pipeline.components),
    ):
        with pytest.raises(ts.ConfigError, match="offloaded already"):
            ts.offload(again, ram_budget="1GiB")
    with pytest.raises(ts.ConfigError, match="a part of an offloaded StableDiffusionPipeline"):
        ts.stats(pipeline.unet)
    unet = pipeline.unet
    pipeline.unet = make_unet()  # replaced: it is a plain model still when the pipeline is restored
    ts.restore(pipeline)
    ts.restore(ts.offload(unet, ram_budget=smallest_budget(unet)))
    ts.offload(pipeline.vae, ram_budget="1GiB")
    with pytest.raises(ts.ConfigError, match="offloaded already"):
        ts.offload(pipeline, ram_budget="1GiB")


def test_a_pipeline_in_memory_lets_go_of_what_its_folder_has(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path)
    pipeline = make_stable_diffusion()
    expected = run_stable_diffusion(pipeline)
    budget = smallest_budget(pipeline)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.add_(1)
    with pytest.raises(
        ts.ConfigError, match=r"'vae\.decoder\.conv_out\.bias' of the model differs"
    ):
        ts.offload(pipeline, checkpoint=folder, ram_budget=budget)
    pipeline = make_stable_diffusion()
    pipeline.vae.encoder = pipeline.unet.conv_in  # in two parts: bound once
    (folder / "text_encoder" / "config.json").unlink()  # the weights are all that counts
    ts.offload(pipeline, checkpoint=folder, ram_budget=budget, self_check=True)
    assert ts.stats(pipeline).source_ram_bytes == 0
    assert_same(run_stable_diffusion(pipeline), expected)
    missing = make_stable_diffusion()
    missing.unet.extra = torch.nn.Linear(64, 64)
    with pytest.raises(ts.ConfigError, match="extra"):
        ts.offload(missing, checkpoint=folder, ram_budget="1GiB")


def test_an_autoencoder_is_leased_whichever_way_it_is_entered() -> None:
    plain = make_autoencoder()
    model = ts.offload(copy.deepcopy(plain), ram_budget=smallest_budget(plain), self_check=True)
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = plain.encode(images).latent_dist.mode()
        for _ in range(2):
            assert_same(model.encode(images).latent_dist.mode(), latents)
            assert_same(model.decode(latents).sample, plain.decode(latents).sample)
            assert_same(model(images).sample, plain(images).sample)
    weights = sum(p.nbytes for p in plain.parameters())
    assert ts.stats(model).streamed_bytes > 3 * weights, "read weight by weight, not loaded"


@pytest.mark.parametrize("shard", ["10GB", "300KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_model_from_its_folder(shard: str, variant: str | None, tmp_path: Path) -> None:
    plain = make_unet()
    if variant:  # beside it, other weights of the same names
        make_unet().to(torch.bfloat16).save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path, max_shard_size=shard, variant=variant)
    inputs = (torch.ones(1, 4, 8, 8), torch.tensor(3), torch.ones(1, 5, 32))
    model = ts.from_pretrained(
        tmp_path, ram_budget=smallest_budget(plain), variant=variant, self_check=True
    )
    # The same memory as its own: what multiplies matrices chooses its code by where weights begin.
    plain = type(plain).from_pretrained(tmp_path, variant=variant)
    with torch.no_grad():
        assert_same(model(*inputs).sample, plain(*inputs).sample)
    assert type(model) is type(plain) and not model.training
    assert ts.stats(model).source_ram_bytes == 0 and ts.stats(model).streamed_bytes > 0
    if variant:
        with pytest.raises(ts.ConfigError, match="variant 'int8'"):
            ts.from_pretrained(tmp_path, variant="int8")


def test_a_model_on_the_meta_device_from_its_folder(tmp_path: Path) -> None:
    plain = make_flux_transformer()
    plain.save_pretrained(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel.from_config(plain.config).eval()
    ts.offload(model, ram_budget=smallest_budget(plain), checkpoint=tmp_path, self_check=True)
    inputs: dict[str, Any] = {
        "hidden_states": torch.ones(1, 4, 16),
        "encoder_hidden_states": torch.ones(1, 3, 32),
        "pooled_projections": torch.ones(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    with torch.no_grad():
        assert_same(model(**inputs).sample, plain(**inputs).sample)


def test_the_type_is_the_one_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_pipeline(NAME, tmp_path / "f32")
    half = tmp_path / "bf16"
    load_plain(NAME, folder, dtype=torch.bfloat16).save_pretrained(half)
    plain = load_plain(NAME, half, dtype=torch.bfloat16)
    budget = ts.estimate_memory(half, dtype=torch.bfloat16).smallest_budget_bytes
    assert budget < smallest_budget(half)
    with caplog.at_level(logging.WARNING, "tensorstream"):
        pipeline = _load(NAME, half, ram_budget=budget, dtype=torch.bfloat16)
    assert not caplog.records
    assert_same(run_stable_diffusion(pipeline), run_stable_diffusion(plain))
    assert ts.stats(pipeline).source_ram_bytes == 0
    with caplog.at_level(logging.WARNING, "tensorstream"):
        grown = _load(NAME, half, ram_budget="1GiB")  # diffusers' default is float32
    assert "makes float32 of the bfloat16" in caplog.text
    for name, part in _parts(load_plain(NAME, half)).items():
        assert _parts(grown)[name].dtype == part.dtype


@pytest.mark.parametrize("dtype", [None, "bfloat16", {"unet": "bfloat16", "default": "float32"}])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_smallest_budget_of_a_pipeline(dtype: Any, stored: torch.dtype, tmp_path: Path) -> None:
    whole = save_pipeline(NAME, tmp_path / "float32")
    folder = tmp_path / "stored"
    load_plain(NAME, whole, dtype=stored).save_pretrained(folder)
    smallest = ts.estimate_memory(folder, dtype=dtype).smallest_budget_bytes
    absent = ABSENT[NAME]
    ts.from_pretrained(folder, dtype=dtype, ram_budget=smallest, **absent)
    with pytest.raises(ts.BudgetError) as raised:
        ts.from_pretrained(folder, dtype=dtype, ram_budget=smallest - 1, **absent)
    assert raised.value.needed_bytes == smallest


def test_a_type_that_diffusers_does_not_take_is_said(tmp_path: Path) -> None:
    class Unet(diffusers.UNet2DConditionModel):
        @classmethod
        def from_pretrained(cls, path: Any, **options: Any) -> Any:
            del options["dtype"]
            return diffusers.UNet2DConditionModel.from_pretrained(path, **options)

    make_unet().save_pretrained(tmp_path)
    with pytest.raises(ts.UnsupportedError, match=r"did not load .* as torch\.bfloat16"):
        ts.from_pretrained(tmp_path, model_class=Unet, dtype=torch.bfloat16)


def test_what_is_cast_beyond_the_budget_is_not_cast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pipeline(NAME, tmp_path)
    make_unet().to(torch.bfloat16).save_pretrained(folder / "unet")
    needed = {"": smallest_budget(folder), "unet": smallest_budget(folder / "unet")}
    for part, budget in needed.items():
        _load_any(folder / part, ram_budget=budget)
    (folder / "text_encoder" / "model.safetensors").rename(tmp_path / "elsewhere")
    _load(NAME, folder, ram_budget="1GiB", text_encoder=make_text_encoder())
    (tmp_path / "elsewhere").rename(folder / "text_encoder" / "model.safetensors")
    monkeypatch.setattr(diffusion, "load", None)
    advice = {"": r"\{'unet': torch\.bfloat16\}", "unet": r"torch\.bfloat16,"}
    for part, budget in needed.items():
        match = f"of bfloat16.*give dtype={advice[part]}"
        with pytest.raises(ts.BudgetError, match=match) as raised:
            _load_any(folder / part, ram_budget=budget - 1)
        assert raised.value.needed_bytes == budget


def _load_any(folder: Path, **options: Any) -> Any:
    return ts.from_pretrained(
        folder, **(options if folder.name == "unet" else ABSENT[NAME] | options)
    )


def test_types_of_single_parts(tmp_path: Path) -> None:
    make_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(ts.ConfigError, match="holds one model: give one type"):
        ts.from_pretrained(tmp_path / "unet", dtype={"unet": torch.bfloat16})
    with pytest.raises(ts.ConfigError, match="dtype is for a path"):
        ts.estimate_memory(make_stable_diffusion(), dtype=torch.bfloat16)
    folder = save_pipeline(NAME, tmp_path)
    dtypes = {"unet": torch.bfloat16, "default": torch.float32}
    pipeline = _load(NAME, folder, ram_budget="1GiB", torch_dtype=dtypes)
    plain = load_plain(NAME, folder, dtype=dtypes)
    for name, part in _parts(plain).items():
        assert part.dtype == _parts(pipeline)[name].dtype
        for key, value in part.named_parameters():
            assert same_bytes(_parts(pipeline)[name].get_parameter(key), value)


def test_a_variant_of_a_pipeline(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path)
    unet = make_unet()
    with torch.no_grad():
        unet.conv_in.weight.mul_(2)
    unet.save_pretrained(folder / "unet", variant="fp16")
    pipeline = _load(NAME, folder, ram_budget="1GiB", variant="fp16")
    assert_same(pipeline.unet.conv_in.weight, unet.conv_in.weight)
    expected = run_stable_diffusion(load_plain(NAME, folder, variant="fp16"))
    assert_same(run_stable_diffusion(pipeline), expected)
    unet.save_pretrained(tmp_path / "one", variant="fp16")
    assert ts.analyze(tmp_path / "one", variant="fp16") == ts.analyze(folder / "unet")
    assert ts.estimate_memory(folder, variant="fp16") == ts.estimate_memory(folder)
    for variant, message in (("fp1", "variant 'fp1'"), (3, "variant is 3"), ("", "variant is ''")):
        with pytest.raises(ts.ConfigError, match=message):
            _load(NAME, folder, variant=variant)
        with pytest.raises(ts.ConfigError, match=message):
            ts.plan(folder, variant=variant)


def test_parts_that_are_given_are_taken(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path)
    text_encoder = make_text_encoder()
    (folder / "text_encoder" / "model.safetensors").unlink()
    pipeline = _load(NAME, folder, ram_budget="1GiB", text_encoder=text_encoder)
    assert pipeline.text_encoder is text_encoder
    assert_same(run_stable_diffusion(pipeline), run_stable_diffusion(make_stable_diffusion()))


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path)
    for part, file in (
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ):
        path = folder / part / file
        whole = load_file(path)
        save_file(dict(list(whole.items())[1:]), path, metadata={"format": "pt"})
        with pytest.raises(ts.ConfigError, match="1 weights are missing"):
            _load(NAME, folder, ram_budget="1GiB")
        for call in (ts.plan, ts.estimate_memory, ts.analyze):
            with pytest.raises(ts.ConfigError, match="1 weights are missing"):
                call(folder)
        save_file(whole, path, metadata={"format": "pt"})
    wrong = {**load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")}
    wrong["conv_in.bias"] = torch.zeros(3)
    save_file(wrong, folder / "unet" / "diffusion_pytorch_model.safetensors")
    for call in (ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze):
        with pytest.raises(ts.ConfigError, match=r"of another shape, 'conv_in\.bias'"):
            call(folder / "unet")


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_parts_that_cannot_be_loaded_are_not_planned_either(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path / "plain")
    index = folder / "model_index.json"
    plain = index.read_text()
    for call in (ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze):
        with pytest.raises(ts.ConfigError, match=r"type of 'unett'.*did you mean 'unet'"):
            call(folder, dtype={"unett": torch.bfloat16})
        _edit(index, unet=["diffusers"])
        with pytest.raises(ts.ConfigError, match="not a library and a class"):
            call(folder)
        _edit(index, unet=["mymodule", "MyUNet"])
        with pytest.raises(ts.UnsupportedError, match=r"'unet' .*is a MyUNet of mymodule"):
            call(folder)
        index.write_text(plain)


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    folder = save_pipeline(NAME, tmp_path / "plain")
    with pytest.raises(ts.ConfigError, match="has some"):
        ts.offload(types.SimpleNamespace(components={"scheduler": None}))
    for option in (
        {"use_flashpack": True},
        {"device_map": "balanced"},
        {"device_map": 0},
        {"ram_budgett": 1},
        {"colour": "red"},
        {"dtype": "float17"},
        {"use_safetensors": False},
    ):
        with pytest.raises(ts.ConfigError, match=next(iter(option))):
            _load(NAME, folder, **option)
    index = folder / "model_index.json"
    plain = index.read_text()
    _edit(index, **{"../elsewhere": ["diffusers", "UNet2DConditionModel"]})
    with pytest.raises(ts.ConfigError, match="names no part of a pipeline"):
        _load(NAME, folder)
    index.write_text(plain)
    _edit(folder / "unet" / "config.json", quantization_config={"quant_method": "gguf"})
    for call in (ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze):
        for path in (folder, folder / "unet"):
            with pytest.raises(ts.UnsupportedError, match="quantised"):
                call(path)
    _edit(folder / "unet" / "config.json", quantization_config=None, _class_name="NoSuchModel")
    with pytest.raises(ts.UnsupportedError, match="NoSuchModel"):
        ts.estimate_memory(folder / "unet")
    for name in ("DDIMScheduler", "is_torch_available", "StableDiffusionPipeline"):
        _edit(folder / "unet" / "config.json", _class_name=name)
        for call in (ts.estimate_memory, ts.from_pretrained):
            with pytest.raises(ts.UnsupportedError, match=f"'{name}', which is no model"):
                call(folder / "unet")
    _edit(folder / "unet" / "config.json", _class_name="UNet2DConditionModel", act_fn=3)
    for call in (ts.estimate_memory, ts.from_pretrained):
        with pytest.raises(ts.ConfigError, match=r"unet/?' cannot be loaded"):
            call(folder / "unet")
    _edit(index, _class_name="UNet2DConditionModel")
    with pytest.raises(ts.UnsupportedError, match="which is no pipeline"):
        _load(NAME, folder)


def test_a_part_whose_loading_says_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its weights may be random."""
    folder = save_pipeline(NAME, tmp_path)
    found = list(diffusion._parts_in(str(folder)))
    others = [part for part in found if part[0] != "unet"]
    monkeypatch.setattr(diffusion, "_parts_in", lambda folder: iter(others))
    with pytest.raises(ts.UnsupportedError, match="give it as unet="):
        _load(NAME, folder, ram_budget="1GiB")
    assert _load(NAME, folder, ram_budget="1GiB", unet=make_unet())


@pytest.mark.parametrize("homes", [True, False], ids=["homes", "files"])
def test_a_pipeline_on_a_gpu(homes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    folder = save_pipeline(NAME, tmp_path)
    expected = run_stable_diffusion(load_plain(NAME, folder))
    pipeline = _load(NAME, folder, ram_budget=_rooms(folder)[0], compression="none")
    for _ in range(2):
        assert_same(run_stable_diffusion(pipeline), expected)
    assert ts.stats(pipeline).streamed_bytes > 0
    ts.restore(pipeline)
    assert_same(run_stable_diffusion(pipeline), expected)
