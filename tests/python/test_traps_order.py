"""Traps of rings and of order: any number of layers, of any sizes, in any order, used in any way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn
from torch.nn.utils import parametrizations, prune

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, smallest_budget
from fake_gpu import use_fake_gpu
from flexible_model import X, make_flexible
from model_shapes import SHAPES, Block

WIDTH = 256
MORE_ON_A_GPU = 1 << 20  # places are aligned there


def _check(model: Any, plain: Any, *inputs: Any, rounds: int = 3) -> None:
    with torch.no_grad():
        for round_ in range(rounds):
            assert_same(model(*inputs), plain(*inputs), f"round {round_}")


def _offload_on(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, device: str, room: float
) -> None:
    """On the CPU in checking mode, or on the GPU without a GPU."""
    budget = max(1, int(smallest_budget(model) * room))
    if device == "cpu":
        ts.offload(model, ram_budget=budget, prefetch="aggressive", self_check=True)
    else:
        use_fake_gpu(monkeypatch, homes=True)
        ts.offload(model, ram_budget=budget + MORE_ON_A_GPU)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("layers", range(1, 8))
def test_any_number_of_layers_over_any_number_of_places(
    layers: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (1.0, 1.4, 2.0, 2.7, 3.3):
        plain = make_flexible(max(3, layers))
        model = copy.deepcopy(plain)
        _offload_on(monkeypatch, model, device, room)
        for either in (model, plain):
            either.order = range(layers)
        _check(model, plain, X)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_one_layer_and_nothing_to_stream(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, none = Block(), nn.Sequential(nn.ReLU(), nn.Flatten())
    for plain in (one, none):
        model = copy.deepcopy(plain)
        _offload_on(monkeypatch, model, device, 1.0)
        _check(model, plain, X)
        if device == "cpu":
            assert bool(hooks_of(model)) == (plain is one)


class Uneven(nn.Module):
    """A layer of each given width, in and out of a common one."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, width) for width in widths)
        self.down = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return x


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("seed", range(4))
def test_layers_of_unlike_sizes(seed: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is far larger than the others; odd sizes leave no row on an aligned byte."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.randint(65, 700, (5,), generator=generator).tolist()
    widths.insert(seed, 1501)
    torch.manual_seed(seed)
    plain = Uneven(widths)
    for room in (1.0, 1.3, 1.9):
        model = copy.deepcopy(plain)
        _offload_on(monkeypatch, model, device, room)
        _check(model, plain, X)


def test_a_first_call_that_differs_from_the_rest() -> None:
    """What was learnt of the order is a guess: a prefill may skip what each later step needs."""
    plain = make_flexible()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    for order in ([5, 0], range(6), range(6), [2], range(6)):
        for either in (model, plain):
            either.order = order
        _check(model, plain, X, rounds=1)


class Borrowing(nn.Module):
    """Uses weights without their modules' forward, in the ways that models are found to do it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.table = nn.Embedding(512, WIDTH)
        self.inner = nn.ModuleDict({"proj": nn.Linear(WIDTH, WIDTH)})
        self.scale = nn.Parameter(
            torch.randn(WIDTH, WIDTH)
        )  # held by the parent, used between blocks
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0](x) @ self.scale
        x = F.linear(x, self.attention.out_proj.weight, self.attention.out_proj.bias)
        x = x + self.table.weight[7] + F.embedding(torch.tensor([3]), self.table.weight)
        x = torch.addmm(self.inner["proj"].bias, x, self.inner["proj"].weight.T)
        attended, _ = self.attention(x[None], x[None], x[None])
        x = self.blocks[1](attended[0]) + self.blocks[2].down.weight.mean(0)
        logits: torch.Tensor = F.linear(x, self.table.weight)
        return logits


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_weights_that_are_used_without_their_modules_forward(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    plain = Borrowing().eval()
    for room in (1.0, 2.0):
        model = copy.deepcopy(plain)
        _offload_on(monkeypatch, model, device, room)
        _check(model, plain, X)


def _layers() -> nn.Sequential:
    """A block that is a group of its own where there is room for it: no two parts are of one kind."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), Block())


def _by_wrapper(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    class Wrapper(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return module(x)  # type: ignore[no-any-return]

    return Wrapper()(x)  # type: ignore[no-any-return]


def _each_of(layers: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        x = layer(x)
    return x


# How a parent uses a block without a call of it.
UNCALLED: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "iterated": _each_of,
    "by index": lambda block, x: block[3](block[2](block[1](block[0](x)))),
    "in slices": lambda block, x: block[2:](block[:2](x)),
    "its children": lambda block, x: _each_of(block.children(), x),
    "its parts' parts": lambda block, x: block[3].down(block[3].up(block[1](block[0](x)))),
    "through wrappers": lambda block, x: _by_wrapper(block[3], _by_wrapper(block[:3], x)),
    "its forward": lambda block, x: block.forward(x),
}


class Uncalled(nn.Module):
    """Uses its blocks so, every third by a call."""

    def __init__(self, use: Callable[[Any, torch.Tensor], torch.Tensor], kind: str) -> None:
        super().__init__()
        self.use = use
        blocks = [_layers() for _ in range(4)]
        self.blocks: Any = {
            "list": nn.ModuleList(blocks),
            "dict": nn.ModuleDict({str(i): block for i, block in enumerate(blocks)}),
            "sequential": nn.Sequential(*blocks),
        }[kind]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for position, block in enumerate(self.blocks.children()):
            x = block(x) if position % 3 == 2 else self.use(block, x)
        return x


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["list", "dict", "sequential"])
@pytest.mark.parametrize("use", UNCALLED)
def test_blocks_whose_parts_are_called_and_they_are_not(
    use: str, kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hooks do not run: the weights are read at each operation, for gradients too."""
    torch.manual_seed(5)
    plain = Uncalled(UNCALLED[use], kind).eval()
    for room in (1.0, 3.0):
        model = copy.deepcopy(plain)
        _offload_on(monkeypatch, model, device, room)
        block = model.blocks.get_submodule("0")
        assert hooks_of(model) and (room == 1.0 or block._forward_pre_hooks), "it is no group"
        _check(model, plain, X)
        steps: list[list[Any]] = []
        for either in (model.train(), copy.deepcopy(plain).train()):
            x = X.clone().requires_grad_()
            either(x).square().sum().backward()
            steps.append([x.grad, *(p.grad for p in either.parameters() if p.grad is not None)])
            steps[-1] += either.buffers()  # what norms wrote
        assert_same(steps[0], steps[1])


def test_recurrent_modules_that_keep_lists_of_their_weights() -> None:
    torch.manual_seed(5)

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for cell in self.cells:
                x, _ = cell(x)
            return x

    plain = Stacked()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    _check(model, plain, X[None])


def test_a_clip_model_through_its_other_entry_points() -> None:
    text = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "vocab_size": 500}
    vision = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "image_size": 32,
    }
    torch.manual_seed(5)
    plain = tf.CLIPModel(
        tf.CLIPConfig(
            text_config={**text, "num_attention_heads": 4},
            vision_config={**vision, "num_attention_heads": 4, "patch_size": 8},
            projection_dim=64,
        )
    ).eval()
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    ids, pixels = torch.arange(3, 12)[None], torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for _ in range(2):
            assert_same(model.get_text_features(ids), plain.get_text_features(ids))
            assert_same(model.get_image_features(pixels), plain.get_image_features(pixels))
            assert_same(model.vision_model(pixels), plain.vision_model(pixels))
            assert_same(model(ids, pixels), plain(ids, pixels))


def test_an_encoder_called_by_itself_between_forwards() -> None:
    plain = SHAPES["t5"].make(3)
    model = offload_tightly(copy.deepcopy(plain), self_check=True)
    inputs = SHAPES["t5"].inputs()
    with torch.no_grad():
        for _ in range(2):
            encoded = [m.get_encoder()(inputs["input_ids"]) for m in (model, plain)]
            assert_same(*encoded)
            assert_same(model(**inputs), plain(**inputs))


REWRITES = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_weights_that_are_computed_from_others(rewrite: str) -> None:
    """A parametrisation or a mask before the offload: the module's weight is no parameter of it."""
    plain = make_flexible(4)
    for block in plain.blocks:
        REWRITES[rewrite](block.up)
    model = copy.deepcopy(plain) if rewrite != "pruned" else make_flexible(4)
    if rewrite == "pruned":  # torch cannot copy a module whose weight is an activation
        for block in model.blocks:
            REWRITES[rewrite](block.up)
    offload_tightly(model, self_check=True)
    _check(model, plain, X)
