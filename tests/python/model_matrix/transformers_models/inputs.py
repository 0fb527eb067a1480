"""What a model's forward takes, made from its signature and its configuration."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from model_matrix.sources import Arguments
from model_matrix.transformers_models.shrinking import FIRST_SPECIAL_ID, is_config

TOKENS = 8
GRID = 4  # patches in a row, of models that take images as rows of patches


class Maker:
    """Makes the inputs of one model."""

    def __init__(self, model: Any) -> None:
        self._configs = list(_configs(model.config))
        main = model.main_input_name
        self._main = {main} if isinstance(main, str) else set(main)
        self._parameters = {
            name: parameter
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        self._generator = torch.Generator().manual_seed(7)

    def attempts(self) -> Iterator[Arguments]:
        """Sets of arguments to try, in this order: those that say most come first."""
        required = {n for n, p in self._parameters.items() if p.default is inspect.Parameter.empty}
        known = {name for name in self._parameters if name in _MAKERS}
        modes = (
            self._main | {"input_ids", "pixel_values"},
            self._main | {"input_ids"},
            self._main,
            {"input_ids"},
        )
        wanted = [required | mode | _COMPANIONS for mode in modes]
        wanted += [required | mode for mode in modes] + [required, known]
        seen: list[set[str]] = []
        for names in wanted:
            chosen = known & names
            if self.find("is_encoder_decoder", False) or "decoder_input_ids" in required:
                chosen |= known & {"decoder_input_ids"}
            if chosen and chosen not in seen:
                seen.append(chosen)
                yield from self._variants(chosen)

    def _variants(self, names: set[str]) -> Iterator[Arguments]:
        for position in range(max(len(_MAKERS[name]) for name in names)):
            makers = {name: _MAKERS[name] for name in sorted(names)}
            yield {
                name: choices[min(position, len(choices) - 1)](self)
                for name, choices in makers.items()
            }

    def repaired(self, arguments: Arguments, error: Exception) -> Arguments | None:
        """`arguments` with as many tokens for an image, a video or a sound as the model asks for."""
        told = re.search(r"(\w+) features and .*tokens:? (\d+),? features:? (\d+)", str(error))
        ids = arguments.get("input_ids")
        if told is None or ids is None or told[2] != "0":
            return None
        kind = told[1].lower()
        token = self.find(f"{kind}_token_id {kind}_token_index", None)
        if token is None:
            return None
        places = torch.full((1, int(told[3])), token)
        changed = {**arguments, "input_ids": torch.cat([ids[:, :3], places, ids[:, 3:]], 1)}
        if "attention_mask" in changed:
            changed["attention_mask"] = torch.ones_like(changed["input_ids"])
        if "mm_token_type_ids" in changed:
            changed["mm_token_type_ids"] = (changed["input_ids"] == token).long()
        return changed

    def find(self, names: str, default: Any) -> Any:
        """The first of these fields that the configuration, or one inside it, has a value for."""
        for name in names.split():
            for config in self._configs:
                value = vars(config).get(name)
                if value is not None:
                    return value
        return default

    def number(self, names: str, default: int) -> int:
        """The same for a whole number; the first of several."""
        value = self.find(names, default)
        return int(value[0] if isinstance(value, list | tuple) else value)

    def ids(self, count: int = TOKENS) -> torch.Tensor:
        """Token ids (1, count), none of them special."""
        most = min(self.number("vocab_size", FIRST_SPECIAL_ID), FIRST_SPECIAL_ID)
        low = 3 if most > TOKENS else 0
        return torch.randint(low, most, (1, count), generator=self._generator)

    def random(self, *shape: int) -> torch.Tensor:
        """Numbers from a normal distribution."""
        return torch.randn(shape, generator=self._generator)

    def image_size(self) -> tuple[int, int]:
        """Height and width of an image."""
        size = self.find("image_size img_size input_size", 64)
        if isinstance(size, dict):
            size = (size["height"], size["width"])
        pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
        return int(pair[0]), int(pair[-1])

    def image(self) -> torch.Tensor:
        """One image (1, channels, height, width)."""
        channels = self.number("num_channels in_channels in_chans", 3)
        return self.random(1, channels, *self.image_size())

    def video(self) -> torch.Tensor:
        """One video (1, frames, channels, height, width)."""
        return self.image()[:, None].repeat(1, self.number("num_frames", 2), 1, 1, 1)

    def patches(self) -> torch.Tensor:
        """An image's patches in rows (patches, values of one)."""
        size = self.number("patch_size", 14)
        frames = self.number("temporal_patch_size", 1)
        channels = self.number("in_channels in_chans num_channels", 3)
        return self.random(GRID * GRID, channels * frames * size * size)

    def grid(self) -> torch.Tensor:
        """Frames, rows and columns of `patches`."""
        return torch.tensor([[1, GRID, GRID]])

    def mel(self) -> torch.Tensor:
        """A spectrogram (1, bins, frames)."""
        frames = 2 * self.number("max_source_positions", 50)
        return self.random(1, self.bins(), frames)

    def bins(self) -> int:
        """Of a spectrogram."""
        return self.number(
            "num_mel_bins feature_projection_input_dim input_feat_size n_mels feature_size input_dim",
            80,
        )

    def past(self) -> int:
        """Values of a series that a model sees before those that it predicts."""
        return self.number("context_length", 32) + max(self.find("lags_sequence", [0]))

    def wide(self, count: int = TOKENS) -> torch.Tensor:
        """Hidden states (1, count, width)."""
        return self.random(1, count, self.number("hidden_size d_model n_embd", 128))


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if is_config(value):
            yield from _configs(value)


def _ones(count: int) -> torch.Tensor:
    return torch.ones(1, count, dtype=torch.long)


_MAKERS: dict[str, tuple[Callable[[Maker], Any], ...]] = {
    "input_ids": (lambda m: m.ids(),),
    "qformer_input_ids": (lambda m: m.ids(),),
    "decoder_input_ids": (lambda m: m.ids(5),),
    "input_chars": (lambda m: m.ids(),),
    "bbox": (
        lambda m: torch.zeros(1, TOKENS, 4, dtype=torch.long),
        lambda m: torch.zeros(1, TOKENS, 8),
    ),
    "mm_token_type_ids": (lambda m: torch.zeros(1, TOKENS, dtype=torch.long),),
    "pixel_values": (Maker.patches, Maker.image, Maker.video),
    "image_grid_thw": (Maker.grid, lambda m: None),
    "grid_thw": (Maker.grid,),
    "pixel_values_videos": (Maker.video,),
    "input_values": (
        lambda m: m.random(1, 4000),
        lambda m: m.random(1, 1, 4000),
        lambda m: m.random(1, m.number("max_length", 64), m.bins()),
    ),
    "input_features": (
        Maker.mel,
        lambda m: m.mel().transpose(1, 2).contiguous(),
        lambda m: m.random(1, 64, m.bins()),
        lambda m: m.random(1, 4000),
        lambda m: m.random(1, 1, 1001, 64),
    ),
    "input_features_mask": (
        lambda m: _ones(2 * m.number("max_source_positions", 50)),
        lambda m: _ones(64),
    ),
    "task_inputs": (lambda m: m.ids(m.number("task_seq_len", TOKENS)),),
    "global_input_features": (lambda m: m.wide(6),),
    "image_embeds_position_mask": (lambda m: torch.zeros(1, TOKENS, dtype=torch.bool),),
    "token_type_ids": (lambda m: torch.zeros(1, TOKENS, dtype=torch.long),),
    "input_embeds": (Maker.wide,),
    "spectrogram": (lambda m: m.random(1, 20, m.bins()),),
    "audio_mel": (lambda m: m.random(1, 64, m.bins()),),
    "context": (Maker.wide,),
    "audio_values": (lambda m: m.random(1, 1, 4000),),
    "past_values": (
        lambda m: m.random(1, m.past(), m.number("num_input_channels", 1)),
        lambda m: m.random(1, m.past()),
    ),
    "past_time_features": (lambda m: m.random(1, m.past(), m.number("num_time_features", 1)),),
    "past_observed_mask": (lambda m: torch.ones(1, m.past()),),
    "future_values": (lambda m: m.random(1, m.number("prediction_length", 4)),),
    "future_time_features": (
        lambda m: m.random(1, m.number("prediction_length", 4), m.number("num_time_features", 1)),
    ),
    "image_attention_mask": (lambda m: torch.ones(1, TOKENS, 1, dtype=torch.long),),
    "is_longer": (lambda m: torch.tensor([[True]]),),
    "pixel_position_ids": (
        lambda m: torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID))[None],
    ),
    "aspect_ratio_ids": (lambda m: torch.ones(1, 1, dtype=torch.long),),
    "aspect_ratio_mask": (lambda m: torch.ones(1, 1, 4, dtype=torch.long),),
    "visual_feats": (lambda m: m.random(1, 4, m.number("visual_feat_dim", 64)),),
    "visual_pos": (lambda m: m.random(1, 4, m.number("visual_pos_dim", 4)),),
    "flattened_patches": (
        lambda m: torch.cat(
            [torch.ones(1, 16, 2), m.random(1, 16, m.number("patch_embed_hidden_size", 768))], 2
        ),
    ),
    "inputs_embeds": (Maker.wide,),
    "hidden_states": (Maker.wide, lambda m: m.wide()[0], Maker.patches),
    "query_embeds": (Maker.wide,),
    "encoder_hidden_states": (lambda m: m.wide(6),),
    "hidden_state": (Maker.wide,),
}
# Passed beside others by the models that take them.
_COMPANIONS = {
    "image_grid_thw",
    "bbox",
    "mm_token_type_ids",
    "input_features_mask",
    "visual_feats",
    "visual_pos",
    "past_time_features",
    "past_observed_mask",
    "future_time_features",
    "future_values",
    "is_longer",
    "pixel_position_ids",
    "qformer_input_ids",
    "image_attention_mask",
}
