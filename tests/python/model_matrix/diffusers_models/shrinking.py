"""Arguments of constructors made small, by their names."""

from __future__ import annotations

import inspect
import re
from typing import Any

LAYERS = 2
HEADS = 2
TEXT_WIDTH = 64
_GROUPED = 32  # channels are multiples of the groups that most norms have

_LAYERS = re.compile(
    r"(num|n|vace)_(.*_)?(layers|blocks)|(.*_)?depth|num_layers|layers_per_block|n_layers?"
)
_HEADS = re.compile(
    r"num_(attention_|kv_|key_value_)?heads|num_key_value_attention_heads|n_(kv_)?heads?"
)
_INNER_HEADS = re.compile(r"(text|block)_num_(attention_)?heads")
_HEAD_SIZE = ("attention_head_dim", "head_dim", "d_kv")
_WIDTHS = re.compile(
    r"(.*_)?(dim|hidden_size|d_model|embed_dim|inner_dim|channels|embd|width|features)"
)
_WIDE = 200  # what has fewer is left as it is: latents, patches, axes
_FORWARDS = re.compile(
    r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|ffn_hidden_size|.*inner_dim)"
)
_CHANNELS = re.compile(r"(.*_)?(block_out_channels|channels_list|channels)")

# The most that a whole number may be, by its name; the first pattern that matches counts.
_LIMITS = (
    (_LAYERS, LAYERS),
    (_HEADS, HEADS),
    (_INNER_HEADS, HEADS),
    (re.compile(r"(.*_)?vocab_size"), 1024),
)


def small_arguments(model_class: Any, fixed: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor that differ from its defaults; `fixed` goes before the rules."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model_class.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    renamed = _new_widths(defaults)
    small = {name: _small(name, value, renamed) for name, value in defaults.items()}
    changed = {name: value for name, value in small.items() if value != defaults[name]}
    return {**changed, **fixed}


def _new_widths(defaults: dict[str, Any]) -> dict[int, int]:
    """The small width of a transformer for its width: that of `HEADS` heads of the size that they have."""
    heads = next((defaults[name] for name in defaults if _is_count_of_heads(name, defaults)), None)
    if heads is None:
        return {}
    size = next((defaults[n] for n in _HEAD_SIZE if isinstance(defaults.get(n), int)), None)
    widths = (defaults.get(name) for name in ("dim", "hidden_size", "embed_dim", "d_model"))
    width = next((width for width in widths if isinstance(width, int)), None)
    if width is None and size is None:
        return {}
    each = size or width // heads
    return {heads * each: HEADS * each, width or heads * each: HEADS * each}


def _is_count_of_heads(name: str, defaults: dict[str, Any]) -> bool:
    return isinstance(defaults[name], int) and _HEADS.fullmatch(name) is not None


def _small(name: str, value: Any, renamed: dict[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return _small_sequence(name, value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    limit = next((most for pattern, most in _LIMITS if pattern.fullmatch(name)), None)
    if limit is not None:
        return min(value, limit)
    if name in _HEAD_SIZE:
        return value
    if value in renamed:
        return renamed[value]
    if _FORWARDS.fullmatch(name):
        return min(value, 256)
    return TEXT_WIDTH if _WIDTHS.fullmatch(name) and value > _WIDE else value


def _small_sequence(name: str, value: Any) -> Any:
    """Channels in their order, as few as the groups of norms allow; layers of blocks, `LAYERS` at most."""
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        return value
    if _CHANNELS.fullmatch(name):
        known = sorted(set(value))
        few = {each: min(each, _GROUPED * (1 + known.index(each))) for each in known}
        return type(value)(few[each] for each in value)
    if "layers" in name and "vace" not in name:
        return type(value)(min(each, LAYERS) for each in value)
    return value
