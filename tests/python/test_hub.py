"""Hub ids: models in the local cache, which is all that is asked; and files of other formats."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, save, smallest_budget
from hub_cache import add_to_cache
from model_shapes import SHAPES

NAME = "somebody/tiny-llama"
FIRST, SECOND = "1" * 40, "2" * 40
INPUTS = SHAPES["llama"].inputs()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two revisions of a model in shards; the hub may be asked, and is not."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for commit, ref in ((FIRST, "main"), (SECOND, "v2")):
        model = _model(commit)
        folder = save(model, tmp_path / commit, shard="400KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        snapshot = add_to_cache(tmp_path / "cache", NAME, folder, commit=commit, ref=ref)
        assert all(path.is_symlink() for path in snapshot.iterdir())
    return tmp_path / "cache"


def _model(commit: str) -> Any:
    model = SHAPES["llama"].make(2)
    if commit == SECOND:
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
    return model


def _logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**INPUTS).logits
        return logits


@pytest.mark.parametrize(
    ("revision", "commit"),
    [(None, FIRST), ("main", FIRST), ("v2", SECOND), (SECOND, SECOND)],
)
def test_an_id_is_the_revision_in_the_cache(revision: str | None, commit: str, cache: Path) -> None:
    budget = smallest_budget(_model(commit))
    model = ts.from_pretrained(
        NAME, ram_budget=budget, cache_dir=cache, revision=revision, self_check=True
    )
    plain = transformers.LlamaForCausalLM.from_pretrained(
        NAME, cache_dir=cache, revision=revision, local_files_only=True
    )
    assert_same(_logits(model), _logits(plain))
    assert hooks_of(model) and ts.stats(model).source_ram_bytes == 0
    assert model.name_or_path == plain.name_or_path == NAME


def test_an_id_as_a_path_of_a_folder_in_the_cache(cache: Path) -> None:
    snapshot = cache / "models--somebody--tiny-llama" / "snapshots" / SECOND
    budget = smallest_budget(snapshot)
    assert_same(
        _logits(ts.from_pretrained(snapshot, ram_budget=budget)),
        _logits(ts.from_pretrained(NAME, ram_budget=budget, cache_dir=cache, revision="v2")),
    )


def test_the_cache_that_the_environment_names(cache: Path) -> None:
    """In a process of its own: libraries read the variable when they are imported."""
    script = (
        "import tensorstream as ts, sys\n"
        f"budget = ts.estimate_memory({NAME!r}).smallest_budget_bytes\n"
        f"model = ts.from_pretrained({NAME!r}, ram_budget=budget)\n"
        f"assert ts.plan({NAME!r}, ram_budget=budget).groups\n"
        f"assert ts.analyze({NAME!r}).weights_bytes\n"
        "print(ts.stats(model).source_ram_bytes, model.name_or_path)\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["0", NAME], result.stderr


@pytest.mark.parametrize("call", [ts.from_pretrained, ts.estimate_memory, ts.plan, ts.analyze])
@pytest.mark.parametrize("name", ["somebody/other", "no/such/folder", "gone"])
def test_what_is_not_there_is_said(call: Any, name: str, cache: Path) -> None:
    with pytest.raises(ts.ConfigError, match=f"'{name}' is no folder, and no model of that name"):
        call(name)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "packed.safetensors.index.json"]
)
@pytest.mark.parametrize("call", [ts.from_pretrained, ts.plan, ts.estimate_memory, ts.analyze])
def test_a_file_in_place_of_a_folder_is_said(
    call: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(SHAPES["llama"].make(1), tmp_path / "plain", shard="1GB")
    if name.startswith("packed"):
        ts.pack(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    with pytest.raises(ts.ConfigError, match=rf"is a file.*give '{re.escape(str(folder))}'"):
        call(folder / name)
    monkeypatch.chdir(folder)
    with pytest.raises(ts.ConfigError, match=r"is a file.*give '\.'"):
        call(name)
    call(".")


def test_a_revision_that_is_not_there_is_said(cache: Path) -> None:
    match = (
        rf"in revision 'v3' is in the local cache '.*/cache'.*hf download {NAME} --revision v3\)"
    )
    for call in (ts.from_pretrained, ts.plan):
        with pytest.raises(ts.ConfigError, match=match):
            call(NAME, cache_dir=cache, revision="v3")


def test_a_snapshot_that_lacks_a_shard_names_it(cache: Path) -> None:
    snapshot = cache / "models--somebody--tiny-llama" / "snapshots" / FIRST
    shard = sorted(snapshot.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ts.FormatError, match=shard.name):
        ts.from_pretrained(NAME, cache_dir=cache)
    dangling = sorted(snapshot.glob("*.safetensors"))[0]
    dangling.resolve().unlink()
    with pytest.raises(ts.TensorStreamError, match=dangling.name):
        ts.from_pretrained(NAME, cache_dir=cache)


def test_a_model_in_a_subfolder(tmp_path: Path) -> None:
    plain = save(_model(FIRST), tmp_path / "repository" / "below", shard="400KB").parent
    add_to_cache(tmp_path / "cache", NAME, plain, commit=FIRST)
    budget = smallest_budget(_model(FIRST))
    options: dict[str, Any] = {"subfolder": "below", "ram_budget": budget}
    assert_same(
        _logits(ts.from_pretrained(NAME, cache_dir=tmp_path / "cache", **options)),
        _logits(ts.from_pretrained(plain, **options)),
    )


def test_sizes_in_a_type_that_is_asked_for(tmp_path: Path) -> None:
    folder = save(_model(FIRST), tmp_path)
    whole, half = (
        call(folder, dtype=dtype).weights_bytes
        for call, dtype in ((ts.estimate_memory, None), (ts.analyze, torch.bfloat16))
    )
    assert 2 * half == whole
    planned = ts.plan(folder, dtype=torch.bfloat16, ram_budget="1GiB")
    assert planned.groups and planned.everything_fits_bytes < whole


def test_plans_are_not_made_of_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    for load in (lambda: ts.plan(path), lambda: ts.offload(_model(FIRST), checkpoint=path)):
        with pytest.raises(ts.UnsupportedError, match=r"gguf.*safetensors.*save_pretrained"):
            load()


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    for call in (ts.plan, ts.from_pretrained):
        with pytest.raises(ts.ConfigError, match=r"no\.gguf' (is no folder|cannot be read)"):
            call(tmp_path / "no.gguf")
        os.mkfifo(tmp_path / f"{call.__name__}.gguf")
        with pytest.raises(ts.TensorStreamError, match=r"is (no regular|a GGUF) file"):
            call(tmp_path / f"{call.__name__}.gguf")
    with pytest.raises(ts.ConfigError, match="gguf_file is ''"):
        ts.from_pretrained(tmp_path, gguf_file="")
    (tmp_path / "A.GGUF").write_bytes(b"GGUX")
    with pytest.raises(ts.FormatError, match="no GGUF file"):
        ts.from_pretrained(tmp_path / "A.GGUF")
    folder = save(_model(FIRST), tmp_path / "model")
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")
    for load in (ts.plan, ts.from_pretrained):
        with pytest.raises(ts.ConfigError, match=r"generation_config\.json' is no regular file"):
            load(folder)


@pytest.mark.parametrize("ending", ["", "/", "//"])
def test_paths_are_shown_as_they_are(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for call in (ts.plan, ts.from_pretrained):
        with pytest.raises(ts.ConfigError, match=r"^'empty' holds no model"):
            call(f"empty{ending}")


def test_a_variant_of_a_model(tmp_path: Path) -> None:
    folder = save(_model(FIRST), tmp_path, shard="400KB")
    _model(SECOND).save_pretrained(folder, variant="v2", max_shard_size="400KB")
    budget = smallest_budget(_model(FIRST))
    for variant, commit in ((None, FIRST), ("v2", SECOND)):
        model = ts.from_pretrained(folder, variant=variant, ram_budget=budget)
        head = _model(commit).lm_head.weight
        assert_same(model.lm_head.weight, head)
    for victim in folder.glob("*v2-00001-of*"):
        victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(ts.FormatError, match="v2-00001"):
        ts.from_pretrained(folder, variant="v2", ram_budget=budget)
    with pytest.raises(
        ts.ConfigError, match="no safetensors of the variant 'v3': give variant='v2'"
    ):
        ts.from_pretrained(folder, variant="v3", ram_budget=budget)
