"""Modules of torch that compute by one function, where torch sees no hook and no weight that is not plain."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same, hooks_of, offload_tightly, same_bytes, smallest_budget
from fake_gpu import use_fake_gpu

WIDTH, HEADS, WIDE = 256, 4, 512
X = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(4))
PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])


def _encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, WIDE, batch_first=True)


def _encoder() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(_encoder_layer(), 4)


class Attentions(nn.Module):
    """Attention modules by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = x + part(x, x, x, need_weights=False)[0]
        return x


class Both(nn.Module):
    """An encoder and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(WIDTH, HEADS, 3, 3, WIDE, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.transformer(x, x[:, :3])
        return output


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "encoder": _encoder,
    "layers": lambda: nn.Sequential(*(_encoder_layer() for _ in range(4))),
    "attentions": Attentions,
    "encoder and decoder": Both,
}


def _make(name: str) -> nn.Module:
    torch.manual_seed(5)
    return MAKERS[name]().eval()


@pytest.fixture
def slowly() -> Iterator[Callable[[nn.Module], torch.Tensor]]:
    """What a model gives step by step."""

    def run(model: nn.Module) -> torch.Tensor:
        torch.backends.mha.set_fastpath_enabled(False)
        output: torch.Tensor = model(X)
        torch.backends.mha.set_fastpath_enabled(True)
        return output

    yield run
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("room", [1.0, 1.5, 2.5])
@pytest.mark.parametrize("name", MAKERS)
def test_outputs_are_bit_identical(
    name: str,
    room: float,
    device: str,
    slowly: Callable[[nn.Module], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = _make(name)
    model = copy.deepcopy(plain)
    budget = int(smallest_budget(model) * room)
    if device == "gpu":
        use_fake_gpu(monkeypatch, homes=True)
        ts.offload(model, ram_budget=budget + (2 << 20))
    else:
        ts.offload(model, ram_budget=budget, self_check=True)
    assert hooks_of(model)
    with torch.no_grad():
        assert not same_bytes(plain(X), slowly(plain)), "both ways round alike: nothing is shown"
        for _ in range(2):
            assert_same(model(X), plain(X))
            assert_same(slowly(model), slowly(plain), "step by step")
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(model(X), plain(X), "autocast")
    assert_same(model(X), plain(X), "with gradients")


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each layer that is computed by one function."""
    calls: list[int] = []
    function = torch._transformer_encoder_layer_fwd

    def call(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", call)
    return calls


def test_hooks_of_the_user_count_as_ever_and_ours_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other code may round otherwise, as some GPU's does."""
    calls = _counted(monkeypatch)
    plain = _make("encoder")
    model = offload_tightly(copy.deepcopy(plain))
    seen: list[int] = []

    def check(fused: int, what: str) -> None:
        for either in (model, plain):
            calls.clear()
            either(X)
            assert len(calls) == fused, what
        assert_same(model(X), plain(X), what)

    with torch.no_grad():
        check(4, "without hooks of the user's")
        handles = [
            m.layers[1].register_forward_hook(lambda *_: seen.append(1)) for m in (model, plain)
        ]
        check(3, "with one")
        assert len(seen) == 4
        for handle in handles:
            handle.remove()
        check(4, "without it")
        copied = copy.deepcopy(model)
        calls.clear()
        copied(X)
        assert len(calls) == 4, "a copy"


def test_a_copy_and_a_restored_model_are_plain() -> None:
    plain = _make("encoder")
    model = offload_tightly(copy.deepcopy(plain))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        assert_same(copied(X), plain(X), "the copy")
        ts.restore(model)
        assert_same(model(X), plain(X), "restored")
    for layer in model.layers:
        assert type(layer._forward_hooks) is type(layer._forward_pre_hooks) is OrderedDict


def test_a_hook_of_the_user_outlives_the_offload() -> None:
    model = offload_tightly(_make("encoder"))
    seen: list[int] = []
    handle = model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    ts.restore(model)
    with torch.no_grad():
        model(X)
        handle.remove()
        model(X)
    assert seen == [1]


def test_padding_is_computed_alike_or_refused() -> None:
    plain = _make("encoder")
    model = offload_tightly(copy.deepcopy(plain))
    with torch.no_grad():
        with pytest.raises(ts.UnsupportedError, match="use_nested_tensor = False"):
            model(X, src_key_padding_mask=PADDING)
        with pytest.raises(ts.UnsupportedError, match="use_nested_tensor = False"):
            model(X, None, PADDING)
        assert_same(model(X), plain(X), "without padding")
        for either in (model, plain):
            either.use_nested_tensor = False
        assert_same(model(X, src_key_padding_mask=PADDING), plain(X, src_key_padding_mask=PADDING))
    for either in (model, plain):
        either.use_nested_tensor = True
    ours, theirs = (either(X, src_key_padding_mask=PADDING) for either in (model, plain))
    assert_same(ours, theirs, "with gradients nothing is packed")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_resident_first_layer_packs_padding_as_the_plain_one() -> None:
    plain = _make("encoder")
    model = copy.deepcopy(plain)
    room = smallest_budget(model) * 2
    ts.offload(model, ram_budget=room, keep_resident=("layers.0",), self_check=True)
    assert hooks_of(model)
    with torch.no_grad():
        for _ in range(2):
            assert_same(
                model(X, src_key_padding_mask=PADDING), plain(X, src_key_padding_mask=PADDING)
            )


class Holder(nn.Module):
    """Weights of its own, beside a module that others hold, too."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.shared(x + self.linear(x))
        return output


class Attention(nn.MultiheadAttention):
    """Of one input, with what comes in added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        output: torch.Tensor = x + super().forward(x, x, x, need_weights=False)[0]
        return output


@pytest.mark.parametrize(
    "make", [_encoder_layer, lambda: Attention(WIDTH, HEADS, batch_first=True)]
)
def test_a_whole_module_that_finds_no_place_is_refused_where_torch_would_round_otherwise(
    make: Callable[[], nn.Module],
) -> None:
    shared = make()
    others = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    plain = nn.Sequential(shared, Holder(shared), *others).eval()
    model = copy.deepcopy(plain)
    offload_tightly(model)
    assert_same(model(X), plain(X), "gradients are asked for, and torch computes step by step")
    with torch.no_grad(), pytest.raises(ts.UnsupportedError, match="keep_resident"):
        model(X)
    assert_same(model(X), plain(X), "after it was refused")
    ts.restore(model)
    ts.offload(model, ram_budget=smallest_budget(model) + (320 << 10), keep_resident=("0",))
    assert hooks_of(model)
    with torch.no_grad():
        assert_same(model(X), plain(X), "resident")
