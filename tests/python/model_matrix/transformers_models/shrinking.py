"""Configurations made small: by the names of their fields, and by tables where these do not do."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

VOCABULARY = 1024
# Ids of special tokens of a small vocabulary begin here; inputs have smaller ones.
FIRST_SPECIAL_ID = 900

# The largest value of a whole number, by its field's name; the first pattern that matches counts.
Rules = tuple[tuple[str, int], ...]
_COUNTS: Rules = (
    (r"num_experts_per_tok(en)?|(moe_)?top_?k|moe_k|topk_group", 2),
    (r"n_group|num_expert_group", 2),
    (r"(.*_)?(n|num|n_routed|num_local|num_routed)_experts", 4),
    (r"(.*_)?vocab_size", VOCABULARY),
    (r"num_queries", 10),
)
_DEPTHS = (
    r"(.*_)?(num_hidden_layers|n_layers?|num_layers|layers|depth|num_blocks|num_hidden_groups)"
)
_HEADS: Rules = (
    (r"(.*_)?(num_key_value_heads|num_kv_heads|n_kv_heads)", 2),
    (r"(.*_)?(attention_heads|n_heads?|num_heads)", 4),
)
_LATENT: Rules = (
    (r"(.*_)?(q|kv|o)_lora_rank", 64),
    (
        r"(.*_)?(intermediate_size|ffn_dim|d_ff|n_inner|feedforward_dim|mlp_dim|ffn_hidden_size)",
        256,
    ),
    (r"dim_feedforward", 256),
)
_HEAD_SIZES: Rules = (
    (r"qk_(rope|nope)_head_dim|index_head_dim|rotary_dim", 16),
    (r"(.*_)?head_dim|d_kv", 32),
    (r"linear_num_value_heads|mamba_n_heads", 8),
    (r"linear_num_key_heads", 2),
)
_WIDTHS = r"(.*_)?(hidden_size|d_model|n_embd|hidden_dim|embed_dim|emb_dim|projection_dim|dim|embedding_size)"
WIDTH = 128


@dataclasses.dataclass(frozen=True)
class Level:
    """How far configurations are cut.

    Attributes:
        depth: Layers that are left; None for all.
        widths: "few" for `WIDTH`, "heads" for four heads of the size that they have, "all" for the widths
            that there are.
    """

    name: str
    depth: int | None
    widths: str

    @property
    def rules(self) -> Rules:
        """The rules of this level."""
        if self.depth is None:
            return ()
        cut = (*_COUNTS, (_DEPTHS, self.depth))
        if self.widths == "few":
            return (*cut, *_HEAD_SIZES, *_HEADS, *_LATENT, (_WIDTHS, WIDTH))
        return (*cut, *_HEADS, *_LATENT) if self.widths == "heads" else cut


# Tried in this order.
LEVELS = (
    Level("narrow", 2, "few"),
    Level("wide heads", 2, "heads"),
    Level("narrow and deep", 8, "few"),
    Level("shallow", 2, "all"),
    Level("as it is", None, "all"),
)

_SPECIAL_ID = re.compile(r".*(token|_id|_index|_idx)s?(_id|_index|_idx)?s?")


class Shrinker:
    """Makes the configurations of one model small."""

    def __init__(self, level: Level, fixed: dict[str, Any] | None = None) -> None:
        """`fixed` has values by dotted names of fields, which go before the rules."""
        self._level = level
        self._rules = [(re.compile(pattern), limit) for pattern, limit in level.rules]
        self._fixed = fixed or {}
        self._ids: dict[str, int] = {}
        self._new_widths: dict[int, int] = {}

    def shrink(self, config: Any) -> Any:
        """A small configuration of the class of `config`, whose values are what it starts from."""
        if self._level.widths == "heads":
            self._choose_widths(config)
        return self._shrink(config, "")

    def _choose_widths(self, config: Any) -> None:
        """Widths of four heads for every width that heads divide, in `config` and what is in it."""
        values = vars(config)
        width, heads = _number_of(values, _WIDTH_NAMES), _number_of(values, _HEAD_NAMES)
        if width and heads:
            each = values.get("head_dim") or width // heads
            self._new_widths[width] = min(width, 4 * each) if isinstance(each, int) else width
        for value in values.values():
            if is_config(value):
                self._choose_widths(value)

    def _shrink(self, config: Any, prefix: str) -> Any:
        given: dict[str, Any] = {}
        values = vars(config)
        for field in dataclasses.fields(config):
            if not field.init or field.name not in values:
                continue
            value = values[field.name]
            small = self._value(field, value, f"{prefix}{field.name}")
            if small is not dataclasses.MISSING:
                given[field.name] = small
        for name, value in self._fixed.items():
            parent, _, last = name.rpartition(".")
            if prefix == (f"{parent}." if parent else ""):
                given[last] = value() if callable(value) else value
        return type(config)(**given)

    def _value(self, field: Any, value: Any, name: str) -> Any:
        """The small value of a field; MISSING where the class is to choose it."""
        if is_config(value):
            return self._shrink(value, f"{name}.")
        if self._level.depth is None:
            return dataclasses.MISSING
        if isinstance(value, int) and not isinstance(value, bool):
            if field.default is None:  # the class derives it from others
                return dataclasses.MISSING
            return self._number(field.name, value)
        if field.name == "depths" and isinstance(value, list | tuple):
            return [min(depth, 1) for depth in value]
        if field.name == "eos_token_id" and isinstance(value, list | tuple):
            return [2 for _ in value]
        return dataclasses.MISSING

    def _number(self, name: str, value: int) -> Any:
        if value in self._new_widths and re.fullmatch(_WIDTHS, name):
            return self._new_widths[value]
        for pattern, limit in self._rules:
            if pattern.fullmatch(name):
                return limit if value > limit else dataclasses.MISSING
        if value >= VOCABULARY and _SPECIAL_ID.fullmatch(name):
            return self._ids.setdefault(name, FIRST_SPECIAL_ID + len(self._ids))
        return dataclasses.MISSING


_WIDTH_NAMES = "hidden_size d_model n_embd embed_dim dim".split()
_HEAD_NAMES = "num_attention_heads n_head n_heads num_heads attention_heads".split()


def _number_of(values: dict[str, Any], names: list[str]) -> int | None:
    found = [values[name] for name in names if isinstance(values.get(name), int)]
    return found[0] if found else None


def is_config(value: Any) -> bool:
    """Whether a value is a configuration inside another."""
    return dataclasses.is_dataclass(value) and hasattr(value, "model_type")
