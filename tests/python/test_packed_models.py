"""Models streamed from packed checkpoints: bit for bit those of the original, and damage is an error."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, same_bytes, save, smallest_budget
from fake_gpu import use_fake_gpu
from model_shapes import SHAPES, make_stack, row_ids
from packed_folders import assert_same_model, budgets_of, packed_of
from tensorstream import _native
from tensorstream.packed import StoredTensor, stored_tensors


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_models_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    made: Any = shape.make(3)
    if getattr(made, "generation_config", None) is not None:
        made.generation_config.max_new_tokens = 7
    source, packed = packed_of(made, tmp_path)
    plain = type(made).from_pretrained(source)
    with torch.no_grad():
        expected = plain(**shape.inputs())
    assert ts.estimate_memory(packed) == ts.estimate_memory(source)
    smallest, fits = budgets_of(packed)
    for budget in (smallest, (smallest + fits) // 2, fits):
        model = ts.from_pretrained(packed, ram_budget=budget, device="cpu")
        assert ts.stats(model).source_ram_bytes == 0, "nothing is decoded to stay"
        with torch.no_grad():
            for round_ in range(2):
                assert_same(model(**shape.inputs()), expected, f"budget {budget}, {round_}")
        assert ts.stats(model).peak_held_bytes <= budget
    model = ts.from_pretrained(packed, ram_budget=smallest, device="cpu")
    assert hooks_of(model)
    assert_same_model(model, plain)
    if shape.prompt is not None:
        options = {"max_new_tokens": 5, "do_sample": False}
        assert_same(
            model.generate(**shape.prompt(), **options), plain.generate(**shape.prompt(), **options)
        )
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(**shape.inputs()), expected, "restored")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto", "float32"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "bert"])
def test_types_are_cast_as_from_the_original(name: str, dtype: Any, tmp_path: Path) -> None:
    made: Any = SHAPES[name].make(2)
    source, packed = packed_of(made, tmp_path)
    plain = type(made).from_pretrained(source, dtype=dtype)
    model = ts.from_pretrained(packed, dtype=dtype, ram_budget="1GiB", device="cpu")
    assert_same_model(model, plain)
    with torch.no_grad():
        assert_same(model(**SHAPES[name].inputs()), plain(**SHAPES[name].inputs()))


@pytest.mark.parametrize("homes", [None, False, True])
@pytest.mark.parametrize("backend", ["direct", "cached", "mmap"])
def test_files_are_read_in_every_way(
    backend: str, homes: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"device": "cpu"}
    if homes is not None:
        use_fake_gpu(monkeypatch, homes=homes)
        options = {}
    made: Any = SHAPES["llama"].make(4).to(torch.bfloat16)
    source, packed = packed_of(made, tmp_path)
    inputs = SHAPES["llama"].inputs()
    with torch.no_grad():
        expected = type(made).from_pretrained(source)(**inputs)
    smallest, fits = budgets_of(packed)
    model = ts.from_pretrained(
        packed, ram_budget=(smallest + fits) // 2, backend=backend, **options
    )
    with torch.no_grad():
        for _ in range(3):
            assert_same(model(**inputs), expected)
    assert ts.stats(model).backend.startswith(f"{backend} (asked for)")
    ts.restore(model)
    with torch.no_grad():
        assert_same(model(**inputs), expected)


def test_auto_reads_past_a_page_cache_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, packed = packed_of(SHAPES["llama"].make(3), tmp_path)
    plain = transformers.LlamaForCausalLM.from_pretrained(source)
    monkeypatch.setattr(_native, "ram_room", lambda: _native.RamRoom(0, 1 << 40))
    smallest, _ = budgets_of(packed)
    model = ts.from_pretrained(packed, ram_budget=smallest, device="cpu")
    assert ts.stats(model).backend.startswith("direct (auto: each pass reads ")
    inputs = SHAPES["llama"].inputs()
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(**inputs), plain(**inputs))


def test_a_config_without_a_type_leaves_it_to_the_files(tmp_path: Path) -> None:
    made: Any = SHAPES["qwen3"].make(2)
    source = save(made, tmp_path / "source", shard="100KB")
    config = source / "config.json"
    config.write_text(
        "\n".join(line for line in config.read_text().splitlines() if "dtype" not in line)
    )
    ts.pack(source, tmp_path / "packed")
    plain = type(made).from_pretrained(source)
    assert plain.dtype == torch.bfloat16
    assert_same_model(
        ts.from_pretrained(tmp_path / "packed", ram_budget="1GiB", device="cpu"), plain
    )


def test_auto_classes_and_other_heads(tmp_path: Path) -> None:
    _, packed = packed_of(SHAPES["gpt2"].make(2), tmp_path, shard="10GB")
    for model_class in (transformers.AutoModelForCausalLM, transformers.AutoModel, None):
        source = tmp_path / "source"
        loader = model_class or transformers.GPT2LMHeadModel
        plain = loader.from_pretrained(source, output_attentions=True)
        model = ts.from_pretrained(
            packed, model_class=model_class, ram_budget="1GiB", device="cpu", output_attentions=True
        )
        assert type(model) is type(plain)
        assert model.config.output_attentions
        with torch.no_grad():
            assert_same(model(**SHAPES["gpt2"].inputs())[0], plain(**SHAPES["gpt2"].inputs())[0])
    with pytest.raises(ts.ConfigError, match="knows no model"):
        ts.from_pretrained(
            packed, model_class=transformers.AutoModelForMaskedLM, ram_budget="1GiB", device="cpu"
        )


def test_what_transformers_makes_is_made_once(tmp_path: Path) -> None:
    """Experts are merged on loading: RAM owns the result, as from the original."""
    config = transformers.MixtralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=500,
    )
    torch.manual_seed(3)
    made = transformers.MixtralForCausalLM(config).eval()
    source, packed = packed_of(made, tmp_path)
    plain = type(made).from_pretrained(source)
    model = ts.from_pretrained(packed, ram_budget="1GiB", device="cpu")
    assert_same_model(model, plain)
    from_source = ts.from_pretrained(source, ram_budget="1GiB", device="cpu")
    assert 0 < ts.stats(model).source_ram_bytes == ts.stats(from_source).source_ram_bytes
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))


def test_saved_buffers_are_said_to_be_missing_of_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
    )
    plain = transformers.ResNetModel(config).eval()
    for name, buffer in plain.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    plain.save_pretrained(tmp_path / "plain")
    ts.pack(tmp_path / "plain", tmp_path / "packed")
    model = ts.from_pretrained(tmp_path / "packed", ram_budget="64MB", device="cpu")
    for name, buffer in model.named_buffers():
        assert_same(buffer, plain.get_buffer(name), name)
    assert "not in the checkpoint" not in caplog.text


def test_a_subfolder(tmp_path: Path) -> None:
    made: Any = SHAPES["bert"].make(2)
    source, packed = packed_of(made, tmp_path)
    (tmp_path / "outer").mkdir()
    packed.rename(tmp_path / "outer" / "inner")
    model = ts.from_pretrained(
        tmp_path / "outer", subfolder="inner", ram_budget="1GiB", device="cpu"
    )
    assert_same_model(model, type(made).from_pretrained(source))


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    """As from a plain checkpoint: never a random weight."""
    made: Any = SHAPES["llama"].make(2)
    source = save(made, tmp_path / "source", shard="10GB")
    file = source / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {"missing": None, "of another shape": whole[name][:-1].clone()}
    for what, value in changes.items():
        held = {key: tensor for key, tensor in whole.items() if key != name}
        save_file(held if value is None else held | {name: value}, file, {"format": "pt"})
        packed = tmp_path / what
        ts.pack(source, packed)
        for path in (source, packed):
            with pytest.raises(ts.ConfigError, match=f"1 weights are {what}, '{name}'"):
                ts.from_pretrained(path, ram_budget="1GiB", device="cpu")


@pytest.mark.parametrize(
    "options", [{"trust_remote_code": True}, {"variant": "fp16"}, {"adapter_kwargs": {"a": 1}}]
)
def test_what_needs_a_plain_checkpoint_says_so(options: dict[str, Any], tmp_path: Path) -> None:
    _, packed = packed_of(SHAPES["bert"].make(1), tmp_path)
    with pytest.raises(ts.UnsupportedError, match=r"tensorstream\.unpack"):
        ts.from_pretrained(packed, ram_budget="1GiB", device="cpu", **options)


def test_a_language_of_a_packed_model_is_loaded_afterwards(tmp_path: Path) -> None:
    _, packed = packed_of(SHAPES["bert"].make(1), tmp_path)
    with pytest.raises(ts.UnsupportedError, match=r"model\.load_adapter\('eng'\)"):
        ts.from_pretrained(packed, ram_budget="1GiB", device="cpu", target_lang="eng")


@pytest.mark.parametrize("where", ["meta", "memory"])
def test_a_plain_model_from_a_packed_checkpoint(where: str, tmp_path: Path) -> None:
    plain = make_stack(4)
    save_file(dict(plain.state_dict()), tmp_path / "model.safetensors")
    ts.pack(tmp_path / "model.safetensors", tmp_path / "packed")
    for path in (tmp_path / "packed", tmp_path / "packed" / "packed-model.safetensors"):
        model = make_stack(4)
        if where == "meta":
            model.to("meta")
            model.scale = torch.tensor(0.5)
        ts.offload(model, ram_budget=smallest_budget(plain), device="cpu", checkpoint=path)
        assert ts.stats(model).source_ram_bytes == 0
        with torch.no_grad():
            for _ in range(2):
                assert_same(model(row_ids()), plain(row_ids()))
    changed = make_stack(4)
    with torch.no_grad():
        changed.blocks[2].up.weight[5, 7] += 1e-3
    with pytest.raises(ts.ConfigError, match=r"blocks\.2\.up\.weight' of the model differs"):
        ts.offload(changed, ram_budget="1GiB", device="cpu", checkpoint=tmp_path / "packed")


def _damage(packed: Path, tensor: str) -> Path:
    """Flips a bit in the middle of the frames of a tensor."""
    for file in packed.glob("*.safetensors"):
        raw = bytearray(file.read_bytes())
        size = int.from_bytes(raw[:8], "little")
        entry = json.loads(raw[8 : 8 + size]).get(f"tensorstream.frames.{tensor}")
        if entry is not None:
            begin, end = entry["data_offsets"]
            raw[8 + size + (begin + end) // 2] ^= 2
            file.write_bytes(raw)
            return file
    raise AssertionError(f"{tensor} is not encoded")


@pytest.mark.parametrize("prefetch", ["none", "adaptive"])
def test_damage_ends_the_forward_that_needs_it(prefetch: str, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    made: Any = SHAPES["llama"].make(3)
    source, packed = packed_of(made, tmp_path)
    plain = type(made).from_pretrained(source)
    good = tmp_path / "good"
    shutil.copytree(packed, good)
    file = _damage(packed, name)
    smallest, _ = budgets_of(packed)
    model = ts.from_pretrained(packed, ram_budget=smallest, device="cpu", prefetch=prefetch)
    inputs = SHAPES["llama"].inputs()
    for _ in range(2):
        with pytest.raises(ts.FormatError) as raised, torch.no_grad():
            model(**inputs)
        assert str(file) in str(raised.value)
        assert name in str(raised.value)
        assert "chunk" in str(raised.value)
        with pytest.raises(ts.FormatError), torch.no_grad():
            model.get_parameter(name).sum()
    # What is whole goes on: the model without that block, and with the value put back.
    block = model.model.layers[2]
    x = torch.randn(1, 3, model.config.hidden_size)
    angles = model.model.rotary_emb(x, torch.arange(3)[None])
    with torch.no_grad():
        assert_same(
            block(x, position_embeddings=angles),
            plain.model.layers[2](x, position_embeddings=angles),
        )
        model.get_parameter(name).data = plain.get_parameter(name).data
        assert_same(model(**inputs), plain(**inputs))


def test_damage_of_what_is_cast_is_found_on_loading(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    _, packed = packed_of(SHAPES["llama"].make(2), tmp_path)
    _damage(packed, name)
    with pytest.raises(ts.TensorStreamError, match=name):
        ts.from_pretrained(packed, dtype=torch.float16, ram_budget="1GiB", device="cpu")


@pytest.mark.parametrize("homes", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_models_on_a_device(
    name: str, homes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_gpu(monkeypatch, homes=homes)
    shape = SHAPES[name]
    made: Any = shape.make(4).to(torch.bfloat16)
    source, packed = packed_of(made, tmp_path, level=7)
    plain = type(made).from_pretrained(source)
    with torch.no_grad():
        expected = plain(**shape.inputs())
    smallest, fits = budgets_of(packed)
    for compression in ("none", "auto", 1):
        ring = (16 << 20) if compression == 1 else 0
        for budget in (smallest, (smallest + fits) // 2):
            model = ts.from_pretrained(packed, ram_budget=budget + ring, compression=compression)
            with torch.no_grad():
                for round_ in range(2):
                    assert_same(model(**shape.inputs()), expected, f"{compression}, {round_}")
            for parameter_name, parameter in model.named_parameters():
                assert same_bytes(parameter, plain.get_parameter(parameter_name)), parameter_name
            ts.restore(model)
            with torch.no_grad():
                assert_same(model(**shape.inputs()), expected, "restored")


def _stored(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    tensors = {
        "weights": (torch.randn(90, 100) * 0.02).to(torch.bfloat16),
        "bits": torch.randint(0, 255, (7,), dtype=torch.uint8),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
    }
    save_file(tensors, folder / "model.safetensors")
    ts.pack(folder / "model.safetensors", folder / "packed")
    return stored_tensors(_native.Checkpoint.open(str(folder / "packed"))), tensors


def test_stored_tensors_have_their_values_in_every_operation(tmp_path: Path) -> None:
    stored, tensors = _stored(tmp_path)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        lazy = stored[name]
        assert (lazy.dtype, lazy.shape, lazy.device.type) == (tensor.dtype, tensor.shape, "cpu")
        for same in (lazy, lazy[...], lazy.detach(), lazy.to("cpu"), lazy.to(tensor.dtype)):
            assert isinstance(same, StoredTensor)
            assert same.place is not None
        assert same_bytes(lazy.clone(), tensor)
        assert same_bytes(lazy.to(torch.float64), tensor.to(torch.float64))
        assert same_bytes(torch.stack([lazy, lazy]), torch.stack([tensor, tensor]))
        assert lazy.place is not None, "nothing is kept"
        parameter = nn.Parameter(lazy, requires_grad=False)
        assert isinstance(parameter, nn.Parameter)
        assert isinstance(parameter, StoredTensor)


def test_what_is_written_to_a_stored_tensor_is_kept(tmp_path: Path) -> None:
    """In place, through a view, through what was detached from it: it is no longer in the file."""
    for write in (
        lambda tensor: tensor.mul_(3),
        lambda tensor: tensor[4].zero_(),
        lambda tensor: tensor.detach().t()[2].fill_(7),
        lambda tensor: torch.add(tensor, 1, out=tensor),
        lambda tensor: tensor.view(torch.int16).bitwise_not_(),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        stored, tensors = _stored(folder)
        lazy, value = stored["weights"], tensors["weights"].clone()
        again = lazy.detach()
        write(lazy)
        write(value)
        assert not same_bytes(value, tensors["weights"])
        assert same_bytes(lazy.clone(), value)
        assert same_bytes(again.clone(), value)
        assert lazy.place is None


def test_two_parameters_on_one_tensor_stay_so(tmp_path: Path) -> None:
    class Doubled(transformers.BertModel):
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            model, info = super().from_pretrained(*args, **kwargs)
            model.again = nn.Parameter(model.embeddings.word_embeddings.weight)
            return model, info

    _, packed = packed_of(SHAPES["bert"].make(1), tmp_path)
    model = ts.from_pretrained(packed, model_class=Doubled, ram_budget="1GiB", device="cpu")
    with torch.no_grad():
        model.again[3, 4] = 17
    assert model.embeddings.word_embeddings.weight[3, 4] == 17


def test_what_a_class_writes_on_loading_is_in_the_model(tmp_path: Path) -> None:
    class Scaled(transformers.BertModel):
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            model, info = super().from_pretrained(*args, **kwargs)
            with torch.no_grad():
                model.encoder.layer[0].output.dense.weight[3] *= 2
            return model, info

    made: Any = SHAPES["bert"].make(2)
    _, packed = packed_of(made, tmp_path)
    model = ts.from_pretrained(packed, model_class=Scaled, ram_budget="1GiB", device="cpu")
    with torch.no_grad():
        made.encoder.layer[0].output.dense.weight[3] *= 2
        assert_same(model(**SHAPES["bert"].inputs()), made(**SHAPES["bert"].inputs()))


def test_a_model_larger_than_its_memory_is_never_whole_in_it(tmp_path: Path) -> None:
    """What is held beside the budget is small: nothing keeps what it decoded."""
    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        vocab_size=2000,
        dtype="bfloat16",
    )
    made = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    weights = sum(parameter.nbytes for parameter in made.parameters())
    _, packed = packed_of(made, tmp_path, shard="10GB")
    del made
    gc.collect()
    smallest, _ = budgets_of(packed)
    assert smallest < weights // 4

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = held()
    model = ts.from_pretrained(packed, ram_budget=smallest, device="cpu")
    loaded = held()
    with torch.no_grad():
        for _ in range(2):
            model(row_ids())
    assert loaded - before < weights // 4
    assert held() - loaded < smallest + weights // 4


def test_on_the_cpu_packed_files_count_as_they_are(tmp_path: Path) -> None:
    plain = make_stack(4).to(torch.bfloat16)
    source = tmp_path / "model.safetensors"
    save_file(plain.state_dict(), source)
    ts.pack(source, tmp_path / "packed", progress=lambda *_: None)
    model = offload_tightly(make_stack(4).to(torch.bfloat16), checkpoint=tmp_path / "packed")
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
    stats = ts.stats(model)
    assert stats.streamed_ram_bytes == 0
    assert 0.6 < stats.streamed_disk_bytes / stats.decoded_bytes < 0.8
