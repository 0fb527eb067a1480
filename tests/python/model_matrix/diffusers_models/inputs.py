"""What the forward of a model of diffusers takes: its arguments by name, as models mean them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from model_matrix.sources import Arguments

SIDE = 8  # of latents, in pixels
FRAMES = 2
TOKENS = 8
IMAGE = 32  # pixels a side, of what autoencoders code
_MOST_ATTEMPTS = 240

_CHANNELS = "in_channels in_dim io_channels latent_channels input_dims audio_channels".split()
_TEXT = """
    joint_attention_dim cross_attention_dim text_dim caption_channels encoder_hidden_size text_embed_dim
    cap_feat_dim context_in_dim cross_attention_input_dim cond_token_dim caption_dim encoder_hid_dim
    text_embed_2_dim text_hidden_dim source_dim llm_dim embedding_dim clip_embed_dim
""".split()
_POOLED = """
    pooled_projection_dim pooled_projection_size text_embed_dim cond_embed_dim global_cond_dim
    global_states_input_dim time_embed_dim embedding_dim
""".split()


class Maker:
    """Makes the inputs of one model."""

    def __init__(self, model: Any, fixed: Mapping[str, Any]) -> None:
        """`fixed` has arguments by name, which go before the rules; what can be called is called."""
        self._config = dict(model.config)
        self._fixed = fixed
        self._parameters = inspect.signature(model.forward).parameters
        self._generator = torch.Generator().manual_seed(7)
        self._audio = any(word in type(model).__name__ for word in ("Audio", "Oobleck", "Vocoder"))

    def attempts(self) -> Iterator[Arguments]:
        """Every way to mean the arguments, of those that the forward asks for and of some more."""
        named = [name for name in self._parameters if self._is_wanted(name)]
        if not named or any(name not in _MAKERS and name not in self._fixed for name in named):
            return
        ways = [[(name, way) for way in self._ways(name)] for name in named]
        for chosen in itertools.islice(_by_distance(ways), _MOST_ATTEMPTS):
            self._generator.manual_seed(7)
            yield {name: way() for name, way in chosen}

    def repaired(self, arguments: Arguments, error: Exception) -> Arguments | None:
        return None

    def _is_wanted(self, name: str) -> bool:
        parameter = self._parameters[name]
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            return False
        if name in self._fixed or parameter.default is inspect.Parameter.empty:
            return True
        embeds = self._config.get("guidance_embeds") or self._config.get("guidance_embed")
        return name in _WELCOME or (name == "guidance" and bool(embeds))

    def _ways(self, name: str) -> Sequence[Callable[[], Any]]:
        if name in self._fixed:
            value = self._fixed[name]
            return [value if callable(value) else lambda: value]
        return list(_MAKERS[name](self))

    def numbers(self, names: Sequence[str]) -> list[int]:
        """What the configuration has for these, without repetitions."""
        found = [self._config.get(name) for name in names]
        flat = [each[0] if isinstance(each, list | tuple) else each for each in found if each]
        return list(dict.fromkeys(each for each in flat if isinstance(each, int))) or [4]

    def number(self, name: str, default: int) -> int:
        """One of them."""
        value = self._config.get(name, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def random(self, *shape: int) -> Callable[[], torch.Tensor]:
        """Makes numbers from a normal distribution."""
        return lambda: torch.randn(shape, generator=self._generator)

    def latents(self) -> Iterator[Callable[[], Any]]:
        """Images, videos by channels or by frames, and rows of patches."""
        for channels in self.numbers(_CHANNELS):
            yield self.random(1, channels, SIDE, SIDE)
            yield self.random(1, channels, FRAMES, SIDE, SIDE)
            yield self.random(1, FRAMES, channels, SIDE, SIDE)
            yield self.random(1, SIDE * SIDE, channels)
            yield self.random(1, channels, SIDE * SIDE)

    def samples(self) -> Iterator[Callable[[], Any]]:
        """What UNets and autoencoders take: latents or images, videos, sounds."""
        channels = self.number("in_channels", self.number("audio_channels", 3))
        if self._audio:
            yield self.random(1, channels, 4096)
            yield self.random(1, 1, 9600)
            yield self.random(1, channels, 64, 64)
        for side in (IMAGE, 64):
            yield self.random(1, channels, side, side)
            yield self.random(1, channels, 5, side, side)
            yield self.random(1, channels, 1, side, side)
            yield self.random(1, FRAMES, channels, side, side)
        yield self.random(1, channels, 256)

    def text(self) -> Iterator[Callable[[], Any]]:
        """Hidden states of a text encoder."""
        for width in self.numbers(_TEXT):
            yield self.random(1, TOKENS, width)

    def pooled(self) -> Iterator[Callable[[], Any]]:
        """A text encoder's pooled output."""
        for width in self.numbers(_POOLED):
            yield self.random(1, width)

    def ids(self, count: int) -> Iterator[Callable[[], Any]]:
        """Places of tokens, one number for each axis."""
        axes = self._config.get("axes_dims_rope") or self._config.get("axes_dim") or (1, 1, 1)
        yield lambda: torch.zeros(count, len(axes))
        yield lambda: torch.zeros(1, count, len(axes))

    def control(self) -> Iterator[Callable[[], Any]]:
        """What a control net follows: an image, or latents."""
        yield self.random(1, self.number("conditioning_channels", 3), 8 * SIDE, 8 * SIDE)
        yield self.random(1, 3, 8 * IMAGE, 8 * IMAGE)
        yield from self.latents()


def _by_distance(ways: list[list[Any]]) -> Iterator[list[Any]]:
    """One way for each argument: those first that are near the first ways of all."""
    most = sum(len(each) - 1 for each in ways)
    for distance in range(most + 1):
        for places in itertools.product(*(range(min(len(each), distance + 1)) for each in ways)):
            if sum(places) == distance:
                yield [each[place] for each, place in zip(ways, places, strict=True)]


Way = Callable[[], Any]


def _times(maker: Maker) -> Iterator[Way]:
    yield lambda: torch.tensor([3.0])
    yield lambda: torch.tensor([3])
    yield lambda: torch.full((1, FRAMES), 3.0)
    yield lambda: torch.tensor(3)


def _ones(*shape: int) -> Callable[[Maker], Iterator[Way]]:
    def make(maker: Maker) -> Iterator[Way]:
        yield lambda: torch.ones(shape, dtype=torch.long)
        yield lambda: torch.ones(shape, dtype=torch.bool)
        yield lambda: torch.ones(shape)

    return make


def _always(value: Any) -> Callable[[Maker], Iterator[Way]]:
    def make(maker: Maker) -> Iterator[Way]:
        yield lambda: value

    return make


def _image_text(maker: Maker) -> Iterator[Way]:
    for width in maker.numbers(["image_dim", "image_embed_dim", "siglip_feat_dim"]):
        yield maker.random(1, 257, width)


_MAKERS: dict[str, Callable[[Maker], Iterator[Way]]] = {
    "hidden_states": Maker.latents,
    "sample": Maker.samples,
    "x": Maker.samples,
    "latents": Maker.latents,
    "encoder_hidden_states": Maker.text,
    "encoder_hidden_states_image": _image_text,
    "text_hidden_states": Maker.text,
    "timestep": _times,
    "timestep_r": _times,
    "r_timestep": _times,
    "timesteps": _times,
    "t": _times,
    "guidance": lambda maker: iter([lambda: torch.tensor([3.0])]),
    "pooled_projections": Maker.pooled,
    "pooled_text_emb": Maker.pooled,
    "global_hidden_states": lambda maker: iter(
        [maker.random(1, 1, maker.numbers(_POOLED)[0]), maker.random(1, maker.numbers(_POOLED)[0])]
    ),
    "encoder_attention_mask": _ones(1, TOKENS),
    "encoder_hidden_states_mask": _ones(1, TOKENS),
    "prompt_attention_mask": _ones(1, TOKENS),
    "attention_mask": _ones(1, TOKENS),
    "img_ids": lambda maker: maker.ids(SIDE * SIDE),
    "txt_ids": lambda maker: maker.ids(TOKENS),
    "img_shapes": _always([[(1, SIDE, SIDE)]]),
    "txt_seq_lens": _always([TOKENS]),
    "num_frames": _always(FRAMES),
    "height": _always(SIDE),
    "width": _always(SIDE),
    "fps": _always(8),
    "frame_rate": _always(8),
    "controlnet_cond": Maker.control,
    "cap_feats": Maker.text,
    "seconds": _always([5.0]),
    "added_cond_kwargs": lambda maker: iter(
        [
            lambda: None,
            lambda: {"resolution": torch.ones(1, 2), "aspect_ratio": torch.ones(1, 1)},
            lambda: {"resolution": None, "aspect_ratio": None},
        ]
    ),
    "proj_embedding": Maker.pooled,
    "class_labels": lambda maker: iter([lambda: torch.tensor([1]), lambda: None]),
    "added_time_ids": lambda maker: iter([lambda: torch.ones(1, 3)]),
    "original_size": _always(torch.tensor([[64.0, 64.0]])),
    "target_size": _always(torch.tensor([[64.0, 64.0]])),
    "crop_coords": _always(torch.tensor([[0.0, 0.0]])),
    "conditioning_scale": _always(1.0),
}
# Given though the forward has a default, which few models do with.
_WELCOME = set(
    """
    encoder_hidden_states timestep pooled_projections img_ids txt_ids img_shapes added_cond_kwargs
    class_labels encoder_attention_mask
    encoder_hidden_states_mask global_hidden_states num_frames height width
    """.split()
)
