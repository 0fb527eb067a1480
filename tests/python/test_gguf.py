"""GGUF files as sources: what transformers makes of one, streamed, is what it computes."""

from __future__ import annotations

import importlib.util
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers

import tensorstream as ts
from conftest import assert_same, hooks_of
from fake_gpu import use_fake_gpu
from tensorstream.orchestrator import orchestrator_of

LAYERS = 4
CONFIG = transformers.LlamaConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=256,
    max_position_embeddings=128,
)
IDS = torch.tensor([[1, 2, 3, 5, 8, 13]])


def write_llama(path: Path, without: str = "") -> None:
    """A Llama with 8-bit matrices and float32 vectors."""
    import gguf  # not at the top: where the GPU's tests run it may be missing

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(CONFIG.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = transformers.LlamaForCausalLM(CONFIG).state_dict()
    for name, value in state.items():
        if without and without in name:
            continue
        module, kind = name.rsplit(".", 1)
        stored = f"{names.get_name(module)}.{kind}"
        if value.dim() == 1:
            writer.add_tensor(stored, value.numpy())
        else:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(value.numpy(), q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llama.gguf"
    write_llama(path)
    return path


def plain(file: Path) -> torch.nn.Module:
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    return model


def test_a_gguf_file_is_streamed_to_a_gpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_gpu(monkeypatch, homes=True)
    expected = plain(file)
    budget = ts.estimate_memory(expected).smallest_budget_bytes
    for named in (
        lambda: ts.from_pretrained(file, dtype=torch.bfloat16, ram_budget=budget),
        lambda: ts.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16, ram_budget=budget
        ),
    ):
        model = named()
        assert hooks_of(model)
        assert not model.training
        with torch.no_grad():
            for _ in range(2):
                assert_same(model(IDS).logits, expected(IDS).logits)
        assert ts.stats(model).streamed_bytes > 0
        assert orchestrator_of(model) is not None


def test_a_file_that_is_open_for_writing(file: Path) -> None:
    with file.open("r+b"), pytest.raises(ts.IoError, match="open for writing"):
        ts.from_pretrained(file, dtype=torch.bfloat16)


def test_on_the_cpu_its_weights_count(file: Path) -> None:
    expected = plain(file)
    needed = ts.estimate_memory(expected).everything_fits_bytes
    with pytest.raises(ts.BudgetError):
        ts.from_pretrained(file, dtype=torch.bfloat16, ram_budget=needed // 4)
    model = ts.from_pretrained(file, dtype=torch.bfloat16, ram_budget=2 * needed)
    with torch.no_grad():
        assert_same(model(IDS).logits, expected(IDS).logits)


def test_a_file_in_a_subfolder(file: Path) -> None:
    expected = plain(file)
    model = ts.from_pretrained(
        file.parent.parent,
        subfolder=file.parent.name,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        ram_budget="1GiB",
    )
    with torch.no_grad():
        assert_same(model(IDS).logits, expected(IDS).logits)


def test_a_name_that_transformers_does_not_take(file: Path) -> None:
    for name in ("LLAMA.GGUF", "blob"):
        shutil.copy(file, file.parent / name)
        options = {} if name.endswith("GGUF") else {"gguf_file": name}
        with pytest.raises(ts.ConfigError, match=r"end in \.gguf"):
            ts.from_pretrained(file.parent / name if not options else file.parent, **options)


def test_what_is_advised_makes_a_folder_that_is_streamed(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ts.UnsupportedError, match="hf_quantizer = None") as refused:
        ts.estimate_memory(file)
    assert "del model.config.quantization_config" in str(refused.value)
    model = ts.from_pretrained(file, ram_budget="1GiB")
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(tmp_path / "plain")
    smallest = ts.estimate_memory(tmp_path / "plain").smallest_budget_bytes
    streamed = ts.from_pretrained(tmp_path / "plain", ram_budget=smallest)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert_same(streamed(ids).logits, model(ids).logits)


def test_a_misspelt_option(file: Path) -> None:
    with pytest.raises(ts.ConfigError, match="ram_budget"):
        ts.from_pretrained(file, ram_budgt="1GiB")


def test_a_file_that_is_not_there_or_no_gguf(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ts.ConfigError, match=r"other\.gguf' cannot be read: No such file"):
        ts.from_pretrained(file.with_name("other.gguf"), ram_budget="1GiB")
    other = tmp_path / "text.gguf"
    other.write_text("hello")
    with pytest.raises(ts.FormatError, match=r"text\.gguf' does not begin with GGUF"):
        ts.from_pretrained(tmp_path, gguf_file=other.name, ram_budget="1GiB")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_file_that_ends_too_soon(file: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises((ts.FormatError, ts.ConfigError), match=r"llama\.gguf"):
        ts.from_pretrained(file, ram_budget="1GiB")


def test_weights_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "holes.gguf"
    write_llama(path, without="layers.2.mlp.up_proj")
    with pytest.raises(ts.ConfigError, match=r"holes\.gguf.*missing.*up_proj"):
        ts.from_pretrained(path, ram_budget="1GiB")


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "oddity")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ts.UnsupportedError, match=r"odd\.gguf.*not supported.*from_single_file"):
        ts.from_pretrained(path, ram_budget="1GiB")


def test_a_class_of_diffusers_says_how_it_is_loaded(file: Path) -> None:
    import diffusers

    with pytest.raises(ts.UnsupportedError, match=r"from_single_file.*tensorstream.offload"):
        ts.from_pretrained(file, model_class=diffusers.FluxTransformer2DModel, ram_budget="1GiB")


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ts.UnsupportedError, match="pip install gguf"):
        ts.from_pretrained(file, ram_budget="1GiB")


HEADERS = {
    "magic alone": b"GGUF",
    "cut in its counts": b"GGUF" + struct.pack("<IQ", 3, 1),
    "nothing in it": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(40),
    "counts without end": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63) + bytes(100),
    "another version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0) + bytes(100),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_that_are_damaged(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header)
    with pytest.raises(ts.FormatError, match=r"model\.gguf' cannot be read as GGUF"):
        ts.from_pretrained(path, ram_budget="1GiB")


def test_a_file_that_ends_anywhere(tmp_path: Path) -> None:
    write_llama(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (5, 9, 30, 100, 200, 400, 800, 2000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ts.TensorStreamError, match=r"cut\.gguf"):
            ts.from_pretrained(path, ram_budget="1GiB")


def test_an_option_that_the_model_does_not_take(tmp_path: Path) -> None:
    write_llama(tmp_path / "model.gguf")
    with pytest.raises(ts.ConfigError, match="'colour'"):
        ts.from_pretrained(tmp_path / "model.gguf", colour="red", ram_budget="1GiB")


def test_a_folder_may_be_called_as_such_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "model.gguf"
    transformers.LlamaForCausalLM(CONFIG).save_pretrained(folder)
    plain = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    smallest = ts.estimate_memory(folder).smallest_budget_bytes
    model = ts.from_pretrained(folder, ram_budget=smallest)
    assert_same(model(IDS).logits, plain(IDS).logits)
