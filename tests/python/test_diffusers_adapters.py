"""LoRA by the methods of diffusers: an offloaded model or pipeline gives what the plain one gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, smallest_budget
from diffusion_shapes import PIPELINES, make_flux_transformer, make_unet

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
ORDERS = ["offloaded first", "adapted first"]
_FILE = "pytorch_lora_weights.safetensors"
ATTENTION = ["to_q", "to_v", "to_out.0"]


def _lora(**options: Any) -> peft.LoraConfig:
    """Weights are random from the start: those of a new adapter are 0, and would change nothing."""
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "init_lora_weights": False}
    return peft.LoraConfig(**{**wanted, **options})


def _seeded(make: Callable[[], Any], seed: int = 3) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def _run_unet(model: Any) -> torch.Tensor:
    return model(_random(1, 4, 8, 8), 3, _random(1, 6, 32)).sample


def _run_transformer(model: Any) -> torch.Tensor:
    return model(
        hidden_states=_random(1, 16, 16),
        encoder_hidden_states=_random(1, 6, 32),
        pooled_projections=_random(1, 32),
        timestep=torch.tensor([0.5]),
        img_ids=torch.zeros(16, 3),
        txt_ids=torch.zeros(6, 3),
    ).sample


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], torch.Tensor]]] = {
    "unet": (make_unet, _run_unet),
    "transformer": (make_flux_transformer, _run_transformer),
}


class Twins:
    """An offloaded model or pipeline and a plain one; what is done is done to both."""

    def __init__(self, plain: Any, run: Callable[[Any], torch.Tensor]) -> None:
        self.plain, self.streamed, self._run = plain, copy.deepcopy(plain), run

    def offload(self) -> None:
        budget = smallest_budget(self.streamed)
        assert ts.plan(self.streamed, ram_budget=budget).streamed_bytes > 0, "nothing is streamed"
        ts.offload(self.streamed, ram_budget=budget, self_check=True)

    def do(self, step: Callable[[Any], Any]) -> None:
        for each in (self.plain, self.streamed):
            _seeded(lambda each=each: step(each))

    def check(self, when: str) -> torch.Tensor:
        with torch.no_grad():
            expected = self._run(self.plain)
            for _ in range(2):  # an adapter that is applied twice shows in the second
                assert_same(self._run(self.streamed), expected, when)
        return expected


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", MODELS)
def test_adapters_of_a_model(kind: str, order: str) -> None:
    make, run = MODELS[kind]
    twins = Twins(make(), run)
    if order == "offloaded first":
        twins.offload()
    before = run(twins.plain).detach()
    twins.do(lambda model: model.add_adapter(_lora(), "a"))
    if order == "adapted first":
        twins.offload()
    adapted = twins.check("one adapter")
    assert not torch.equal(adapted, before), "the adapter changes nothing"
    twins.do(lambda model: model.add_adapter(_lora(r=2, target_modules=["to_k"]), "b"))
    twins.check("another beside it")
    twins.do(lambda model: model.set_adapters(["a", "b"], [0.5, 0.25]))
    twins.check("both, weighted")
    twins.do(lambda model: model.disable_adapters())
    assert_same(twins.check("disabled"), before, "as it was")
    twins.do(lambda model: model.enable_adapters())
    twins.do(lambda model: model.fuse_lora(lora_scale=0.5))
    twins.check("fused")
    twins.do(lambda model: model.unfuse_lora())
    twins.check("taken out again")
    twins.do(lambda model: model.delete_adapters("b"))
    twins.do(lambda model: model.set_adapters("a"))
    twins.check("one of them deleted")
    twins.do(lambda model: model.unload_lora())
    twins.check("without any")
    assert ts.stats(twins.streamed).streamed_bytes > 0
    ts.restore(twins.streamed)
    assert not hooks_of(twins.streamed)
    twins.check("restored")


def _save_lora(name: str, folder: Path) -> Path:
    """Adapters of the pipeline's parts, written by diffusers as a training script does it."""
    pipeline = PIPELINES[name][0]()
    layers = {}
    for part, targets in _ADAPTED[name].items():
        model = getattr(pipeline, part)
        _seeded(lambda: model.add_adapter(_lora(target_modules=targets)), seed=11)  # noqa: B023
        state = get_peft_model_state_dict(model)
        converted = part.startswith("text") or name == "stable-diffusion"
        layers[f"{part}_lora_layers"] = (
            convert_state_dict_to_diffusers(state) if converted else state
        )
    type(pipeline).save_lora_weights(folder, **layers)
    return folder


_ADAPTED = {
    "stable-diffusion": {"unet": ATTENTION, "text_encoder": ["q_proj", "v_proj"]},
    "flux": {"transformer": ATTENTION, "text_encoder": ["q_proj", "v_proj"]},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PIPELINES)
def test_adapters_of_a_pipeline(name: str, order: str, tmp_path: Path) -> None:
    folder = _save_lora(name, tmp_path)
    make, run = PIPELINES[name]
    twins = Twins(make(), run)
    twins.do(lambda pipeline: pipeline.set_progress_bar_config(disable=True))
    if order == "offloaded first":
        twins.offload()
    before = run(twins.plain)
    twins.do(lambda pipeline: pipeline.load_lora_weights(folder, adapter_name="a"))
    if order == "adapted first":
        twins.offload()
    adapted = twins.check("loaded")
    assert not torch.equal(adapted, before), "the adapter changes nothing"
    twins.do(lambda pipeline: pipeline.set_adapters("a", 0.5))
    twins.check("at half its strength")
    twins.do(lambda pipeline: pipeline.fuse_lora(components=list(_ADAPTED[name])))
    twins.check("fused")
    twins.do(lambda pipeline: pipeline.unfuse_lora(components=list(_ADAPTED[name])))
    twins.check("taken out again")
    twins.do(lambda pipeline: pipeline.fuse_lora(components=list(_ADAPTED[name])))
    twins.do(lambda pipeline: pipeline.unload_lora_weights())
    twins.check("fused for good")
    twins.do(lambda pipeline: pipeline.load_lora_weights(folder, adapter_name="b"))
    twins.check("loaded once more")
    twins.do(lambda pipeline: pipeline.delete_adapters("b"))
    twins.check("deleted")
    ts.restore(twins.streamed)
    twins.check("restored")


@pytest.mark.parametrize("order", ORDERS)
def test_an_adapter_is_written_as_the_plain_model_writes_it(order: str, tmp_path: Path) -> None:
    twins = Twins(make_unet(), _run_unet)
    if order == "offloaded first":
        twins.offload()
    twins.do(lambda model: model.add_adapter(_lora(), "default"))
    if order == "adapted first":
        twins.offload()
    for place, model in (("plain", twins.plain), ("streamed", twins.streamed)):
        model.save_lora_adapter(tmp_path / place, weight_name=_FILE)
    written = [load_file(tmp_path / place / _FILE) for place in ("plain", "streamed")]
    assert list(written[0]) == list(written[1])
    assert_same(written[1], written[0], "written")
    other = diffusers.UNet2DConditionModel.from_config(twins.plain.config)
    other.load_state_dict(make_unet().state_dict())
    offload_tightly(other.eval(), self_check=True)
    other.load_lora_adapter(tmp_path / "streamed", prefix=None, weight_name=_FILE)
    with torch.no_grad():
        assert_same(_run_unet(other), _run_unet(twins.plain), "loaded onto an offloaded model")
