"""Bad input: each case a typed error that names what is wrong, the numbers, and what to do."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, save, smallest_budget
from model_shapes import SHAPES, make_stack, row_ids, token_ids


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded Llama checkpoint; tests that damage it take a copy."""
    return save(SHAPES["llama"].make(3), tmp_path_factory.mktemp("llama"), shard="800KB")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


# What is loaded of a folder, and what is asked of it without loading.
OPENERS: dict[str, Callable[..., Any]] = {
    "from_pretrained": ts.from_pretrained,
    "plan": ts.plan,
    "estimate_memory": lambda path, **options: ts.estimate_memory(path),
    "analyze": lambda path, **options: ts.analyze(path),
}


def test_kinds_of_errors() -> None:
    bases = {
        ts.BudgetError: MemoryError,
        ts.ConfigError: ValueError,
        ts.FormatError: ValueError,
        ts.IoError: OSError,
        ts.UnsupportedError: ts.TensorStreamError,
        ts.LeaseError: ts.TensorStreamError,
    }
    for kind, base in bases.items():
        assert issubclass(kind, base)
        assert issubclass(kind, ts.TensorStreamError)
        assert str(kind("what failed")) == "what failed"


def _assert_budget_message(error: ts.BudgetError, budget: int, model: Any) -> None:
    """The message names a group, both sizes and the smallest budget, which works."""
    message = str(error)
    names = {name for name, _ in model.named_modules()} | {n for n, _ in model.named_parameters()}
    named = re.search(r"group,? '([^']+)'", message)
    assert named and named.group(1) in names, message
    assert f"{budget} bytes" in message
    assert f"{error.needed_bytes} bytes" in message
    assert len(re.findall(r"\d+(?:\.\d+)? (?:B|KiB|MiB)\b", message)) >= 3, message
    assert error.budget_bytes == budget < error.needed_bytes


@pytest.mark.parametrize("budget", [1, 4096, "just too small"])
def test_a_budget_that_is_too_small(budget: int | str) -> None:
    for layers in (3, 4):
        model, plain = make_stack(layers), make_stack(layers)
        given = smallest_budget(model) - 1 if isinstance(budget, str) else budget
        for refused in (ts.offload, ts.plan):
            with pytest.raises(ts.BudgetError) as raised:
                refused(model, ram_budget=given)
            _assert_budget_message(raised.value, given, plain)
            assert raised.value.needed_bytes == smallest_budget(model)
        assert hooks_of(model) == []
        ts.offload(model, ram_budget=raised.value.needed_bytes)
        with torch.no_grad():
            assert_same(model(row_ids()), plain(row_ids()))


def test_a_budget_too_small_for_a_checkpoint(original: Path) -> None:
    needed = 0
    for opener in ("from_pretrained", "plan"):
        with pytest.raises(ts.BudgetError) as raised:
            OPENERS[opener](original, ram_budget="100KB")
        _assert_budget_message(raised.value, 100_000, SHAPES["llama"].make(3))
        assert needed in (0, raised.value.needed_bytes)
        needed = raised.value.needed_bytes
    model = ts.from_pretrained(original, ram_budget=needed)
    plain = transformers.AutoModelForCausalLM.from_pretrained(original)
    with torch.no_grad():
        assert_same(model(token_ids()), plain(token_ids()))


def test_a_budget_too_small_for_what_is_kept_resident() -> None:
    model = make_stack(4)
    with pytest.raises(ts.BudgetError) as raised:
        ts.offload(model, ram_budget=smallest_budget(model), keep_resident=("blocks",))
    ts.offload(model, ram_budget=raised.value.needed_bytes, keep_resident=("blocks",))


SIZES = ["", "many", "-1", "4 apples", "1.5.2GB", "101%", "-5%", "1e30GB", "NaN", "4GiBs"]


@pytest.mark.parametrize("size", [*SIZES, -1, 1.5, True, b"4GB", [1]])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(ts.ConfigError, match="ram_budget"):
        ts.offload(make_stack(2), ram_budget=size)


def test_sizes_in_all_their_forms() -> None:
    forms = {"1GiB": 2**30, "500MB": 500 * 10**6, "1.5 GiB": 3 * 2**29, "123456789": 123456789}
    for text, size in (forms | {123456789: 123456789}).items():
        assert ts.Config(ram_budget=text).budget_bytes() == size
    half = ts.Config(ram_budget="50%").budget_bytes()
    assert abs(2 * half - ts.Config(ram_budget="100%").budget_bytes()) <= 2
    assert ts.Config().budget_bytes() > 0


UNKNOWN: list[tuple[str, str]] = [
    ("ram_budgt", "ram_budget"),
    ("prefetsh", "prefetch"),
    ("keep_residents", "keep_resident"),
    ("vram_buget", "vram_budget"),
]


@pytest.mark.parametrize(("given", "meant"), UNKNOWN)
def test_a_misspelt_option_names_the_nearest(original: Path, given: str, meant: str) -> None:
    options = {given: "1GiB"}
    for call in (
        lambda: ts.offload(make_stack(2), **options),
        lambda: ts.plan(make_stack(2), **options),
        lambda: ts.from_pretrained(original, **options),
    ):
        with pytest.raises(ts.ConfigError) as raised:
            call()
        assert f"'{given}'" in str(raised.value)
        assert f"did you mean '{meant}'" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "meant"), [("ram_buget", "ram_budget"), ("pre_fetch", "prefetch")]
)
def test_an_option_of_config_that_is_misspelt_is_named(name: str, meant: str) -> None:
    wrong: dict[str, Any] = {name: "1GiB"}
    with pytest.raises(ts.ConfigError, match=f"unknown option '{name}' .did you mean '{meant}'"):
        ts.Config(**wrong)
    assert list(inspect.signature(ts.Config).parameters) == [
        field.name for field in dataclasses.fields(ts.Config)
    ]
    assert ts.Config("cpu", ram_budget="1GiB").ram_budget == "1GiB"


def test_a_home_that_only_shells_know_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uses: list[Callable[[Any], Any]] = [
        lambda path: ts.from_pretrained(path, ram_budget="1GiB"),
        lambda path: ts.from_pretrained("a", cache_dir=path, ram_budget="1GiB"),
        lambda path: ts.offload(make_stack(2), ram_budget="1GiB", checkpoint=path),
        ts.analyze,
        lambda path: ts.pack(path, "packed"),
        lambda path: ts.pack("source", path),
        lambda path: ts.unpack("packed", path),
        ts.verify,
    ]
    for use in uses:
        for path in ("~/model", Path("~somebody") / "model", "~"):
            with pytest.raises(ts.ConfigError, match=r"begins with '~.*expanduser"):
                use(path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "~").mkdir()  # which it may be called
    save_file(make_stack(2).state_dict(), tmp_path / "~" / "model.safetensors")
    ts.verify("~/model.safetensors")


def test_a_weak_proxy_is_no_model() -> None:
    model = make_stack(2)
    proxy: Any = weakref.proxy(model)
    uses: list[Callable[[Any], Any]] = [
        lambda model: ts.offload(model, ram_budget="1GiB"),
        ts.analyze,
        ts.estimate_memory,
        lambda model: ts.plan(model, ram_budget="1GiB"),
        ts.stats,
        ts.restore,
        lambda model: ts.set_budget(model, ram_budget="1GiB"),
    ]
    for use in uses:
        with pytest.raises(ts.ConfigError, match=r"weakref\.proxy"):
            use(proxy)
    ts.offload(model, ram_budget="1GiB")
    with pytest.raises(ts.ConfigError, match=r"weakref\.proxy"):
        ts.stats(proxy)


def test_an_unknown_option_lists_those_there_are() -> None:
    with pytest.raises(ts.ConfigError, match="unknown option 'colour'") as raised:
        ts.offload(make_stack(2), colour="red")
    assert "ram_budget" in str(raised.value) and "did you mean" not in str(raised.value)
    with pytest.raises(ts.ConfigError, match="colour"):
        ts.Config(colour="red")  # type: ignore[call-arg]


CONFIGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prefetch": "adaptiv"}, ts.ConfigError, "did you mean 'adaptive'"),
    ({"prefetch": 3}, ts.ConfigError, "prefetch is 3"),
    ({"backend": "gds"}, ts.ConfigError, "backend is 'gds'.*mmap"),
    ({"keep_resident": "blocks"}, ts.ConfigError, r"\('blocks',\)"),
    ({"device": "xpu"}, ts.UnsupportedError, "'xpu'.*'cpu'"),
    ({"device": "nonsense"}, ts.ConfigError, "device"),
    ({"vram_budget": 4.5, "device": "cpu"}, ts.ConfigError, "'cpu', whose budget is ram_budget"),
    ({"vram_budget": "4GiB", "device": "cpu"}, ts.ConfigError, "'cpu', whose budget is ram_budget"),
]


@pytest.mark.parametrize(("options", "error", "message"), CONFIGS)
def test_options_that_cannot_be_used(
    original: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for call in (
        lambda: ts.Config(**options),
        lambda: ts.offload(make_stack(2), **options),
        lambda: ts.offload(make_stack(2), ts.Config(), **options),
        lambda: ts.plan(make_stack(2), **options),
        lambda: ts.from_pretrained(original, **options),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize(
    "options",
    [{"device": "cuda"}, {"device": "cuda:1", "vram_budget": "1GiB"}, {"vram_budget": "1GiB"}],
)
def test_a_gpu_is_asked_for_where_there_is_none(options: dict[str, Any]) -> None:
    model = make_stack(2)
    for call in (lambda: ts.Config(**options), lambda: ts.offload(model, **options)):
        with pytest.raises(ts.UnsupportedError, match=r"'cuda.* sees no GPU.*device='cpu'"):
            call()
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_configs_and_options_are_merged() -> None:
    model = make_stack(3)
    smallest = smallest_budget(model)
    config = ts.Config(ram_budget=1, prefetch="none")
    ts.offload(model, config, ram_budget=smallest)
    assert ts.stats(model).budget_bytes == smallest
    assert config.ram_budget == 1
    with pytest.raises(ts.ConfigError, match="config is dict"):
        ts.offload(make_stack(2), {"ram_budget": 1})  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        config.ram_budget = 2  # type: ignore[misc]


def test_names_to_keep_that_nothing_has() -> None:
    with pytest.raises(ts.ConfigError, match=r"keep_resident names 'block\.1'.*did you mean") as e:
        ts.offload(make_stack(3), ram_budget="1GiB", keep_resident=("block.1",))
    assert "blocks.1" in str(e.value)


def test_offloading_twice_is_refused_and_changes_nothing() -> None:
    model, plain = make_stack(3), make_stack(3)
    offload_tightly(model)
    for again in (model, model.blocks, nn.Sequential(model)):
        with pytest.raises(ts.ConfigError, match=r"offloaded already.*tensorstream\.restore"):
            ts.offload(again, ram_budget="1GiB")
    with torch.no_grad():
        assert_same(model(row_ids()), plain(row_ids()))
    fits = make_stack(2)
    ts.offload(fits, ram_budget="1GiB")
    with pytest.raises(ts.ConfigError, match="offloaded already"):
        ts.offload(fits, ram_budget="1GiB")


def test_what_is_no_model() -> None:
    for thing in ("a/path", None, 3, Path("x"), {"a": torch.ones(2)}, torch.ones(2), nn.Linear):
        with pytest.raises(ts.ConfigError, match=r"torch\.nn\.Module"):
            ts.offload(thing, ram_budget="1GiB")  # type: ignore[type-var]
        for function in (ts.stats, ts.restore):
            with pytest.raises(ts.ConfigError, match="not offloaded"):
                function(thing)  # type: ignore[arg-type]


def _drop_shard(folder: Path) -> str:
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.unlink()
    return victim.name


def _truncate_shard(folder: Path) -> str:
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-1000])
    return victim.name


def _truncate_header(folder: Path) -> str:
    victim = sorted(folder.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    return victim.name


def _empty_shard(folder: Path) -> str:
    victim = sorted(folder.glob("*.safetensors"))[0]
    victim.write_bytes(b"")
    return victim.name


def _foreign_bytes(folder: Path) -> str:
    victim = sorted(folder.glob("*.safetensors"))[0]
    victim.write_bytes(b"PK\x03\x04" * 1000)
    return victim.name


def _index_leaves_folder(folder: Path) -> str:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    content["weight_map"][name] = "../outside.safetensors"
    index.write_text(json.dumps(content))
    return "outside.safetensors"


def _index_is_no_json(folder: Path) -> str:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    return "model.safetensors.index.json"


DAMAGE = {
    "missing shard": (_drop_shard, ts.FormatError),
    "truncated shard": (_truncate_shard, ts.FormatError),
    "truncated header": (_truncate_header, ts.FormatError),
    "empty shard": (_empty_shard, ts.FormatError),
    "foreign bytes": (_foreign_bytes, ts.FormatError),
    "index leaves the folder": (_index_leaves_folder, ts.FormatError),
    "index is no json": (_index_is_no_json, ts.FormatError),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints(folder: Path, damage: str) -> None:
    """Each names its file; transformers has not touched it before, nor has it made random weights."""
    make, error = DAMAGE[damage]
    name = make(folder)
    for opener in OPENERS.values():
        with pytest.raises(ts.TensorStreamError) as raised:
            opener(folder, ram_budget="1GiB")
        assert isinstance(raised.value, error), raised.value
        assert name in str(raised.value)
        if isinstance(raised.value, ts.FormatError):
            assert raised.value.rule
            assert Path(raised.value.path).name in (name, "model.safetensors.index.json")
    model = SHAPES["llama"].make(3)
    with pytest.raises(ts.TensorStreamError, match=re.escape(name)):
        ts.offload(model, ram_budget="1GiB", checkpoint=folder)
    assert hooks_of(model) == []


def _no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return r"config\.json"


def _only_bin(folder: Path) -> str:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model.bin")
    return "safetensors"


def _empty_folder(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return r"config\.json|safetensors"


def _foreign_folder(folder: Path) -> str:
    for file in folder.iterdir():
        file.unlink()
    (folder / "notes.txt").write_text("nothing")
    (folder / "config.json").write_text("{}")
    return "safetensors"


def _no_folder(folder: Path) -> str:
    shutil.rmtree(folder)
    return "model"


@pytest.mark.parametrize(
    "make", [_no_config, _only_bin, _empty_folder, _foreign_folder, _no_folder]
)
def test_paths_that_are_no_model(folder: Path, make: Callable[[Path], str]) -> None:
    message = make(folder)
    for opener in OPENERS.values():
        with pytest.raises(ts.TensorStreamError, match=message) as raised:
            opener(folder, ram_budget="1GiB")
        assert str(folder) in str(raised.value)
    if make is not _no_config:
        with pytest.raises(ts.TensorStreamError, match=re.escape(str(folder))):
            ts.offload(SHAPES["llama"].make(3), ram_budget="1GiB", checkpoint=folder)


@pytest.mark.parametrize("path", ["", "no/such/model", "no-such-model", "/", "/dev/null"])
def test_texts_that_are_no_model(path: str) -> None:
    for opener in OPENERS.values():
        with pytest.raises(ts.TensorStreamError):
            opener(path, ram_budget="1GiB")
    with pytest.raises(ts.TensorStreamError):
        ts.offload(make_stack(2), ram_budget="1GiB", checkpoint=path)


def test_a_checkpoint_of_another_model(folder: Path, tmp_path: Path) -> None:
    other = SHAPES["gpt2"].make(3)
    with pytest.raises(ts.ConfigError, match="does not fit the model") as raised:
        ts.offload(other, ram_budget="1GiB", checkpoint=folder)
    assert "'transformer.wpe.weight' (F32 [64, 128])" in str(raised.value)
    deeper = SHAPES["llama"].make(4)
    with pytest.raises(ts.ConfigError, match=r"'model\.layers\.3\.[a-z_.]+' "):
        ts.offload(deeper, ram_budget="1GiB", checkpoint=folder)
    wider = nn.Sequential(nn.Linear(256, 300))
    save_file(nn.Sequential(nn.Linear(256, 200)).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ts.ConfigError, match=r"'0\.weight' \(F32 \[300, 256\] in the model, F32 \[2"
    ):
        ts.offload(wider, ram_budget="1GiB", checkpoint=tmp_path / "w.safetensors")
    save_file(wider.bfloat16().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ts.ConfigError, match=r"F32.*BF16"):
        ts.offload(wider.float(), ram_budget="1GiB", checkpoint=tmp_path / "w.safetensors")
    for model in (other, deeper, wider):
        assert hooks_of(model) == []


def test_from_pretrained_with_a_class_that_does_not_match(folder: Path) -> None:
    with pytest.raises(ts.ConfigError, match=r"does not match the model.*model_class="):
        ts.from_pretrained(
            folder, model_class=transformers.LlamaForSequenceClassification, ram_budget="1GiB"
        )
    with pytest.raises(ts.ConfigError, match="does not match the model"):
        ts.from_pretrained(folder, model_class=transformers.GPT2LMHeadModel, ram_budget="1GiB")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"hidden_size": 256}))
    with pytest.raises(ts.ConfigError, match="does not match the model"):
        ts.from_pretrained(folder, ram_budget="1GiB")
    (folder / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 4}))
    with pytest.raises(ts.ConfigError, match=r"does not match the model.*layers\.3"):
        ts.from_pretrained(folder, ram_budget="1GiB")


PLACING = ["device_map", "max_memory", "offload_folder", "quantization_config", "force_download"]


@pytest.mark.parametrize("argument", PLACING)
def test_arguments_of_transformers_that_place_weights(original: Path, argument: str) -> None:
    for given in ("auto", 0):  # the first GPU's number, which equals False
        with pytest.raises(ts.ConfigError, match=f"{argument} has no place in"):
            ts.from_pretrained(original, **{argument: given}, ram_budget="1GiB")
    model = ts.from_pretrained(original, **{argument: None}, ram_budget="1GiB")
    assert ts.stats(model).streamed_bytes == 0


def test_a_shard_whose_tensor_has_another_value_is_refused_for_a_model_in_memory(
    folder: Path,
) -> None:
    victim = sorted(folder.glob("*.safetensors"))[0]
    values = load_file(victim)
    name = sorted(values)[0]
    changed = {key: value.clone() for key, value in values.items()}
    changed[name].view(-1)[-1] += 1
    save_file(changed, victim, {"format": "pt"})
    with pytest.raises(ts.ConfigError, match=re.escape(f"'{name}' of the model differs")):
        ts.offload(SHAPES["llama"].make(3), ram_budget="1GiB", checkpoint=folder)
