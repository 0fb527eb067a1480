"""What loading will make in RAM, counted in a plan or weighed against the budget before it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tensorstream import _native
from tensorstream.config import Config
from tensorstream.exceptions import BudgetError
from tensorstream.made_weights import Described
from tensorstream.parts import Parts
from tensorstream.report import size
from tensorstream.walk import Walk, walk


def walk_described(described: Described, keep_resident: Sequence[str]) -> Walk:
    """Walks what a path describes."""
    found = walk(described.model, keep_resident)
    for weight in found.weights:
        if weight.names[0] in described.frame_bytes:
            found.tree.note_frames(weight.tensor, described.frame_bytes[weight.names[0]])
    return found


def note_made(found: Walk, names: Iterable[str], *, on_host: bool) -> None:
    """Says in the tree that weights are in RAM once loaded, where they count and stay if that computes."""
    made = set(names)
    for weight in found.weights:
        if not made.intersection(weight.names):
            continue
        if on_host:
            found.tree.keep_resident(weight.names[0])
        else:
            found.tree.note_in_ram(weight.tensor)


def may_cast(checkpoint: _native.Checkpoint, dtype: Any) -> bool:
    """Whether loading as `dtype` casts any tensor of a checkpoint."""
    wanted = str(dtype).removeprefix("torch.")
    return any("float" in each.dtype and each.dtype != wanted for each in checkpoint.tensors)


def check_room(described: Described, config: Config, dtype: Any) -> None:
    """Refuses a budget that has no room for what loading casts, before it does.

    What a rule of transformers converts may be a view, and is left to be counted when it is there.

    Args:
        described: What is to be loaded.
        config: Options of a model on the CPU, whose budget has to hold what is cast.
        dtype: The type that was asked for, if any.

    Raises:
        BudgetError: The budget is too small; it names one that works.
    """
    if not described.cast:
        return
    found = walk_described(described, config.keep_resident)
    budget_bytes = config.budget_bytes()
    note_made(found, described.cast, on_host=True)
    try:
        config.plan(found.tree, budget_bytes)
    except BudgetError:
        note_made(found, described.made, on_host=True)
    else:
        return
    try:
        config.plan(found.tree, budget_bytes)
    except BudgetError as error:
        refused = BudgetError(f"{error}; {_of_casts(described, dtype)}")
        refused.needed_bytes, refused.budget_bytes = error.needed_bytes, error.budget_bytes
        raise refused from error


def _of_casts(described: Described, dtype: Any) -> str:
    """Which part casts have in that, and how to be without."""
    parts = list(described.model) if isinstance(described.model, Parts) else []
    cast_bytes: dict[str, Counter[str]] = {}  # by the parts of a pipeline, and the types in files
    for name, parameter in described.model.named_parameters():  # of ties the first name
        if name in described.cast:
            of_part = cast_bytes.setdefault(name.split(".")[0] if parts else "", Counter())
            of_part[described.cast[name]] += parameter.nbytes
    taken = sum(of_part.total() for of_part in cast_bytes.values())
    stored = {name: of_part.most_common(1)[0][0] for name, of_part in cast_bytes.items()}
    shown = ", ".join(sorted(set(stored.values())))
    text = (
        f"loading casts weights of {shown}, which take {size(taken)} of RAM "
        "then, and are not streamed"
    )
    asked = dtype if isinstance(dtype, dict) else dict.fromkeys(stored, dtype)
    # Of those asked for as they are, some weights are kept in another type by the library.
    advice = {
        name: each for name, each in stored.items() if str(asked.get(name)) != f"torch.{each}"
    }
    if not advice:
        return text
    if len(set(advice.values())) == 1 and (not parts or len(advice) == len(parts)):
        return f"{text}: give dtype=torch.{next(iter(advice.values()))}, as the files have them"
    types = ", ".join(f"'{name}': torch.{each}" for name, each in advice.items())
    return f"{text}: give dtype={{{types}}}, as the files have them"
