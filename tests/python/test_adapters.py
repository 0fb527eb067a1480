"""Adapters on an offloaded model give what they give on the plain one, whenever they are attached."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from peft.utils.hotswap import hotswap_adapter
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, save, smallest_budget
from fake_gpu import use_fake_gpu
from model_shapes import SHAPES, WIDTH, token_ids

# peft says at each use of tied embeddings, of several adapters and of models without a name what to mind.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
IDS = token_ids()
ATTENTION = ["q_proj", "v_proj"]


def _lora(**options: Any) -> peft.LoraConfig:
    """Weights are random from the start: those of a new adapter are 0, and would change nothing."""
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "init_lora_weights": False}
    return peft.LoraConfig(**{**wanted, **options})


def _llama(*, tied: bool = False) -> Any:
    model = SHAPES["llama"].make(3)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
        assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


def _seeded(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make(*args, **options)


def _logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


class Twins:
    """The same adapter on an offloaded model and on a plain one; what is done is done to both."""

    def __init__(self, plain: Any, config: peft.PeftConfig, order: str) -> None:
        model = copy.deepcopy(plain)
        without = _logits(plain)
        if order == "offloaded first":
            offload_tightly(model, self_check=True)
        self.streamed, self.plain = (
            _seeded(peft.get_peft_model, each, copy.deepcopy(config)) for each in (model, plain)
        )
        if order == "adapted first":
            offload_tightly(self.streamed, self_check=True)
        self.offloaded = model if order == "offloaded first" else self.streamed
        self.check("with the adapter")
        assert not torch.equal(_logits(self.plain), without), "the adapter changes nothing"

    def do(self, step: Callable[[Any], Any]) -> None:
        for each in (self.streamed, self.plain):
            _seeded(step, each)

    def become(self, step: Callable[[Any], Any]) -> None:
        self.streamed, self.plain = step(self.streamed), step(self.plain)

    def check(self, when: str) -> None:
        for _ in range(2):  # an adapter that is applied twice shows in the second
            assert_same(_logits(self.streamed), _logits(self.plain), when)


ORDERS = ["offloaded first", "adapted first"]
KINDS: dict[str, tuple[Callable[[], peft.PeftConfig], bool]] = {
    "lora": (_lora, False),
    "every linear layer": (lambda: _lora(target_modules="all-linear", bias="all"), False),
    "dora, embeddings too": (
        lambda: _lora(use_dora=True, target_modules=["embed_tokens", "o_proj", "down_proj"]),
        False,
    ),
    "embeddings": (lambda: _lora(target_modules=["embed_tokens", "q_proj"]), False),
    "tied embeddings": (lambda: _lora(target_modules=["embed_tokens", "q_proj"]), True),
    "a tied head": (lambda: _lora(target_modules=["lm_head", "q_proj"]), True),
    "a copy of the head": (lambda: _lora(modules_to_save=["lm_head"]), False),
    "new tokens of tied embeddings": (
        lambda: _lora(trainable_token_indices=IDS[0, :3].tolist()),
        True,
    ),
    "principal components": (lambda: _lora(init_lora_weights="pissa"), False),
    "a parameter": (
        lambda: _lora(target_modules=[], target_parameters=["up_proj.weight"]),
        False,
    ),
    "ia3": (
        lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
        False,
    ),
    "rotations": (
        lambda: peft.OFTConfig(
            r=0, oft_block_size=8, target_modules=["q_proj"], init_weights=False
        ),
        False,
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_applied_disabled_merged_and_removed(kind: str, order: str) -> None:
    make, tied = KINDS[kind]
    twins = Twins(_llama(tied=tied), make(), order)
    with twins.streamed.disable_adapter(), twins.plain.disable_adapter():
        twins.check("disabled")
    twins.check("enabled again")
    twins.do(lambda model: model.merge_adapter())
    twins.check("merged")
    twins.do(lambda model: model.unmerge_adapter())
    twins.check("unmerged")
    twins.become(lambda model: model.merge_and_unload(safe_merge=True))
    assert type(twins.streamed) is tf.LlamaForCausalLM
    twins.check("merged for good")
    assert ts.stats(twins.offloaded).streamed_bytes > 0
    ts.restore(twins.offloaded)
    assert not hooks_of(twins.streamed)
    twins.check("restored")


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens(kind: str) -> None:
    makes = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig}
    config = makes[kind](task_type="CAUSAL_LM", num_virtual_tokens=4)
    for order in ORDERS:
        Twins(_llama(), config, order)


@pytest.mark.parametrize("order", ORDERS)
def test_adapters_are_switched_combined_and_deleted(order: str) -> None:
    twins = Twins(_llama(), _lora(), order)
    twins.do(lambda model: model.add_adapter("other", _lora(r=2, target_modules=["k_proj"])))
    twins.check("another one beside it")
    twins.do(lambda model: model.set_adapter("other"))
    twins.check("switched")
    twins.do(lambda model: model.merge_adapter())
    twins.check("merged")
    twins.do(lambda model: model.unmerge_adapter())
    twins.do(lambda model: model.base_model.set_adapter(["default", "other"]))
    twins.check("both")
    twins.do(lambda model: model.add_adapter("like", _lora()))
    twins.do(
        lambda model: model.add_weighted_adapter(
            ["default", "like"], [0.5, 0.25], "sum", combination_type="linear"
        )
    )
    twins.do(lambda model: model.set_adapter("sum"))
    twins.check("a weighted sum")
    names = ["default", "other", "__base__"]
    twins.do(lambda model: model.set_adapter("default"))
    with torch.no_grad():
        assert_same(
            *[
                model.eval()(IDS.expand(3, -1), adapter_names=names).logits
                for model in (twins.streamed, twins.plain)
            ],
            "each row with another",
        )
    for name in ("default", "like", "sum"):
        twins.do(lambda model, name=name: model.delete_adapter(name))
    twins.do(lambda model: model.set_adapter("other"))
    twins.check("deleted")
    twins.become(lambda model: model.unload())
    twins.check("unloaded")


@pytest.mark.parametrize("order", ORDERS)
def test_adapters_are_saved_and_loaded(order: str, tmp_path: Path) -> None:
    twins = Twins(_llama(), _lora(use_dora=True), order)
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    for folder, model in zip(folders, (twins.streamed, twins.plain), strict=True):
        model.save_pretrained(folder)
    written = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert written[0] == written[1]
    loaded = peft.PeftModel.from_pretrained(offload_tightly(_llama()), folders[0])
    assert_same(_logits(loaded), _logits(twins.plain), "loaded onto an offloaded model")
    with torch.no_grad():
        for parameter in twins.plain.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    twins.plain.save_pretrained(folders[1])
    twins.streamed.load_adapter(folders[1], "second")
    twins.streamed.set_adapter("second")
    twins.check("a second one from its folder")


@pytest.mark.parametrize("order", ORDERS)
def test_an_adapter_is_exchanged_in_place(order: str, tmp_path: Path) -> None:
    twins = Twins(_llama(), _lora(), order)
    other = peft.get_peft_model(_llama(), _lora())
    other.save_pretrained(tmp_path)
    twins.do(lambda model: hotswap_adapter(model, tmp_path, "default", torch_device="cpu"))
    twins.check("exchanged")
    assert_same(_logits(twins.streamed), _logits(other))


@pytest.mark.parametrize("order", ORDERS)
def test_adapters_by_the_methods_of_transformers(order: str, tmp_path: Path) -> None:
    plain = _llama()
    model = copy.deepcopy(plain)
    both = (model, plain)
    if order == "offloaded first":
        offload_tightly(model, self_check=True)
    for each in both:
        _seeded(each.add_adapter, _lora(), adapter_name="a")
    if order == "adapted first":
        offload_tightly(model, self_check=True)

    def check(when: str) -> None:
        for _ in range(2):
            assert_same(_logits(model), _logits(plain), when)

    check("one")
    for each in both:
        _seeded(each.add_adapter, _lora(target_modules=["k_proj"]), adapter_name="b")
    check("another")
    for each in both:
        each.set_adapter(["a", "b"])
    check("both")
    for each in both:
        each.disable_adapters()
    check("disabled")
    assert_same(_logits(model), _logits(_llama()), "as it was")
    for each, name in zip(both, ("ours", "theirs"), strict=True):
        each.enable_adapters()
        each.set_adapter("a")
        each.save_pretrained(tmp_path / name)
    for each in both:
        each.delete_adapter("a")
        each.load_adapter(tmp_path / "theirs", adapter_name="c")
        each.set_adapter("c")
    written = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "theirs")
    ]
    assert written[0] == written[1]
    check("loaded")
    ts.restore(model)
    check("restored")


@pytest.mark.parametrize("order", ORDERS)
def test_adapters_beside_a_gpu(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the GPU without a GPU: what is merged is written to homes in pinned host memory."""
    use_fake_gpu(monkeypatch, homes=True)
    plain = _llama()
    model = copy.deepcopy(plain)
    budget = smallest_budget(model) + (2 << 20)  # places are aligned there
    if order == "offloaded first":
        ts.offload(model, ram_budget=budget)
    streamed, adapted = (_seeded(peft.get_peft_model, each, _lora()) for each in (model, plain))
    if order == "adapted first":
        ts.offload(streamed, ram_budget=budget)
    assert hooks_of(streamed)
    for step in ("merge_adapter", "unmerge_adapter", "merge_and_unload"):
        for _ in range(2):
            assert_same(_logits(streamed), _logits(adapted), f"before {step}")
        for each in (streamed, adapted):
            getattr(each, step)()
    assert_same(_logits(streamed), _logits(adapted), "merged for good")
    ts.restore(streamed)
    assert_same(_logits(streamed), _logits(adapted), "restored")


def test_what_is_merged_into_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    plain = _llama()
    folder = save(plain, tmp_path / "model")
    smallest = smallest_budget(folder)
    model = ts.from_pretrained(folder, ram_budget=smallest, self_check=True)
    streamed, adapted = (_seeded(peft.get_peft_model, m, _lora()) for m in (model, plain))

    def check(when: str) -> None:
        for _ in range(2):
            assert_same(_logits(streamed), _logits(adapted), when)

    for each in (streamed, adapted):
        each.merge_adapter()
    check("merged")
    ts.set_budget(streamed, ram_budget="1GiB")
    check("all resident")
    ts.set_budget(streamed, ram_budget=smallest)
    check("streamed again")
    for each in (streamed, adapted):
        each.unmerge_adapter()
    check("unmerged")
    merged = [each.merge_and_unload() for each in (streamed, adapted)]
    for each, name in zip(merged, ("ours", "theirs"), strict=True):
        each.save_pretrained(tmp_path / name)
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("ours", "theirs")]
    assert written[0] == written[1]
    again = ts.from_pretrained(tmp_path / "ours", ram_budget=smallest)
    assert_same(_logits(again), _logits(merged[1]), "the merged checkpoint")


def test_a_model_whose_wrapper_is_gone_can_be_restored() -> None:
    """`model = model.merge_and_unload()` lets go of what was offloaded."""
    streamed, plain = (_seeded(peft.get_peft_model, _llama(), _lora()) for _ in range(2))
    offload_tightly(streamed, self_check=True)
    _logits(streamed)
    streamed, plain = streamed.merge_and_unload(), plain.merge_and_unload()
    assert_same(_logits(streamed), _logits(plain))
    assert ts.stats(streamed).streamed_bytes > 0
    ts.restore(streamed)
    assert not hooks_of(streamed)
    assert_same(_logits(streamed), _logits(plain), "restored")
    offload_tightly(streamed, self_check=True)
    assert_same(_logits(streamed), _logits(plain), "offloaded again")


@pytest.mark.parametrize("moved", [False, True])
def test_so_can_one_of_which_everything_fits(moved: bool) -> None:
    wrapped, plain = (_seeded(peft.get_peft_model, _llama(), _lora()) for _ in range(2))
    if moved:
        offload_tightly(wrapped)
        ts.set_budget(wrapped, ram_budget="1GiB")
    else:
        ts.offload(wrapped, ram_budget="1GiB")
    assert not hooks_of(wrapped)
    model = wrapped.merge_and_unload()
    del wrapped
    assert ts.stats(model).streamed_bytes == 0
    with pytest.raises(ts.ConfigError, match="not offloaded"):
        ts.stats(plain)
    ts.restore(model)
    assert_same(_logits(model), _logits(plain.merge_and_unload()))
    with pytest.raises(ts.ConfigError, match="not offloaded"):
        ts.restore(model)


def test_a_wrapper_stands_for_the_model_in_it_and_a_part_does_not() -> None:
    model = offload_tightly(_llama())
    wrapped = peft.get_peft_model(model, _lora())
    expected = _logits(wrapped)
    assert ts.stats(wrapped).acquires == ts.stats(model).acquires > 0
    with pytest.raises(ts.ConfigError, match="offloaded already, by itself"):
        ts.offload(wrapped, ram_budget="1GiB")
    with pytest.raises(ts.ConfigError, match="a part of an offloaded LlamaForCausalLM"):
        ts.restore(model.model.layers[0])
    two = nn.ModuleList([model, offload_tightly(_llama())])
    with pytest.raises(ts.ConfigError, match="holds 2 offloaded models"):
        ts.stats(two)
    ts.restore(wrapped)
    assert not hooks_of(wrapped)
    assert_same(_logits(wrapped), expected)


def test_merged_weights_are_not_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save(_llama(), tmp_path, shard="1GB")
    merged = _seeded(peft.get_peft_model, _llama(), _lora()).merge_and_unload()
    with pytest.raises(ts.ConfigError, match="differs from the checkpoint's"):
        ts.offload(merged, checkpoint=folder, ram_budget="1GiB")
    assert not hooks_of(merged)


def test_what_changes_the_type_of_weights_is_refused() -> None:
    """prepare_model_for_kbit_training casts what is half precision; the model goes on working."""
    plain = SHAPES["qwen3"].make(3)
    model = offload_tightly(copy.deepcopy(plain))
    with pytest.raises(ts.UnsupportedError, match=r"tensorstream.restore\(model\) first"):
        peft.prepare_model_for_kbit_training(model)
    assert_same(_logits(model), _logits(plain))


def test_a_folder_that_holds_an_adapter_names_what_to_do(tmp_path: Path) -> None:
    folder = save(_llama(), tmp_path / "model")
    loaded = tf.AutoModelForCausalLM.from_pretrained(folder)
    adapted = _seeded(peft.get_peft_model, loaded, _lora(task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    budget = smallest_budget(folder)
    with pytest.raises(ts.ConfigError, match=r"PeftModel\.from_pretrained"):
        ts.from_pretrained(tmp_path / "adapter", ram_budget=budget)
    model = ts.from_pretrained(folder, ram_budget=budget)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert_same(_logits(model), _logits(adapted))
    adapted.save_pretrained(folder)  # transformers loads the adapter beside its model
    both = ts.from_pretrained(folder, ram_budget=2 * budget)
    assert_same(_logits(both), _logits(adapted), "beside its model")


class Attending(nn.Module):
    """nn.MultiheadAttention: peft exchanges its weights for others in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = x + layer(x, x, x)[0]
        return tf.modeling_outputs.BaseModelOutput(x)


@pytest.mark.parametrize("order", ORDERS)
def test_an_attention_whose_weights_are_exchanged_in_each_forward(order: str) -> None:
    plain = _seeded(Attending).eval()
    model = copy.deepcopy(plain)
    x = torch.randn(5, 2, WIDTH, generator=torch.Generator().manual_seed(1))
    config = _lora(target_modules=["layers.0", "layers.2"])
    if order == "offloaded first":
        offload_tightly(model, self_check=True)
    both = [_seeded(peft.get_peft_model, each, copy.deepcopy(config)) for each in (model, plain)]
    if order == "adapted first":
        offload_tightly(both[0], self_check=True)

    def check(when: str) -> None:
        with torch.no_grad():
            for _ in range(2):
                assert_same(both[0](x), both[1](x), when)

    check("with the adapter")
    for each in both:
        each.train()
        each(x)[0].sum().backward()
        each.eval()
    trained = [[p.grad for p in each.parameters() if p.requires_grad] for each in both]
    assert_same(*trained, "gradients")
    for each in both:
        each.merge_adapter()
    check("merged")
    both = [each.merge_and_unload() for each in both]
    check("merged for good")
    ts.restore(both[0])
    check("restored")


def test_an_adapter_beside_a_model_is_loaded_with_it_or_refused(tmp_path: Path) -> None:
    """As save_pretrained of peft leaves it in the folder of the model."""
    folder = save(_llama(), tmp_path / "model")
    adapted = _seeded(peft.get_peft_model, _llama(), _lora())
    adapted.save_pretrained(folder)
    plain = tf.LlamaForCausalLM.from_pretrained(folder)
    assert not torch.equal(_logits(plain), _logits(_llama()))
    model = ts.from_pretrained(folder, ram_budget="1GiB", device="cpu")
    assert_same(_logits(model), _logits(plain))
    packed = tmp_path / "packed"
    ts.pack(folder, packed)
    with pytest.raises(
        ts.UnsupportedError, match=r"adapter beside its model.*tensorstream\.unpack"
    ):
        ts.from_pretrained(packed, ram_budget="1GiB", device="cpu")
    ts.unpack(packed, tmp_path / "unpacked")
    model = ts.from_pretrained(tmp_path / "unpacked", ram_budget="1GiB", device="cpu")
    assert_same(_logits(model), _logits(plain))
    for path in (folder, packed):
        for asked in (ts.analyze, ts.estimate_memory, ts.plan):
            with pytest.raises(ts.UnsupportedError, match=r"adapter beside its model.*give that"):
                asked(path)
