"""What of a model is not streamed: its buffers, and the parameters that stay as they are.

A checkpoint gives them their values once. None is left in memory that is a file's, which others may write to.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from tensorstream import _native
from tensorstream.exceptions import ConfigError, UnsupportedError
from tensorstream.forms import copy_at
from tensorstream.packed import StoredPlace
from tensorstream.walk import FoundWeight, Walk, span_bytes

logger = logging.getLogger("tensorstream")

Held = dict[str, torch.Tensor | None]  # buffers or parameters of a module


@dataclasses.dataclass
class FixedTensor:
    """A buffer, or a parameter that is not streamed.

    Attributes:
        tensor: The model's object.
        of: The type of a module that has it.
        names: Those that a checkpoint has it under: none for a buffer that is not persistent.
        holders: Where modules have it, with its name there.
        model_is_whole: Whether nothing of its model is on the meta device.
    """

    tensor: torch.Tensor
    of: type[nn.Module]
    names: list[str] = dataclasses.field(default_factory=list)
    holders: list[tuple[Held, str]] = dataclasses.field(default_factory=list)
    model_is_whole: bool = True

    @property
    def is_buffer(self) -> bool:
        """Whether it is no parameter."""
        return not isinstance(self.tensor, nn.Parameter)

    @property
    def is_meta(self) -> bool:
        """Whether it has no value."""
        return self.tensor.device.type == "meta"

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are those of a checkpoint's tensor."""
        tensor = self.tensor
        plain = type(tensor) in (torch.Tensor, nn.Parameter) and type(tensor.data) is torch.Tensor
        return plain and tensor.layout is torch.strided

    def is_held_by(self, stored: _native.CheckpointTensor) -> bool:
        """Whether a checkpoint's tensor has its value; not where a model in memory has it in another form.

        Raises:
            ConfigError: It has another shape or type.
        """
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        wanted, has = (dtype, list(self.tensor.shape)), (stored.dtype, list(stored.torch_shape))
        if self.model_is_whole and not (self.is_plain and (self.is_buffer or wanted == has)):
            return False  # quantised, or cast beside what is
        if self.is_plain and wanted != has:  # guard: fixed-form
            raise ConfigError(
                f"{self} is {wanted[0]} of shape {wanted[1]}, and '{stored.name}' of the checkpoint is "
                f"{has[0]} of shape {has[1]}; give the checkpoint of this model, and the model its types"
            )
        return True

    def __str__(self) -> str:
        """How messages call it."""
        if self.is_buffer:
            return f"buffer '{self.holders[0][1]}' of {self.of.__name__}"
        return f"'{self.names[0]}'"


def fixed_tensors(found: Walk) -> list[FixedTensor]:
    """Those of a model that was walked over."""
    model, weights, streamed = found.modules[0], found.weights, found.streamed_ids()
    fixed: dict[int, FixedTensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        unsaved = module._non_persistent_buffers_set
        for held in (module._buffers, module._parameters):
            for key, tensor in held.items():
                if tensor is None or id(tensor) in streamed:
                    continue
                one = fixed.setdefault(id(tensor), FixedTensor(tensor, type(module)))
                one.holders.append((held, key))
                if held is not module._buffers or key not in unsaved:
                    one.names.append(f"{path}.{key}" if path else key)
    lacking = any(weight.parameter.device.type == "meta" for weight in weights)
    lacking = lacking or any(one.is_meta and one.tensor.numel() for one in fixed.values())
    for one in fixed.values():
        one.model_is_whole = not lacking
    return list(fixed.values())


class StoredNames:
    """Under which names a checkpoint has what is beside the weights that were matched to it."""

    def __init__(self, checkpoint: _native.Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._tensors = {stored.name: stored for stored in checkpoint.tensors}
        self._changes: set[tuple[str, str]] = set()  # a prefix that goes, and one that comes
        self._of_module: dict[str, set[tuple[str, str]]] = {}

    def note(self, names: list[str], stored: str) -> None:
        """The weight with these names was found as `stored`."""
        for name in names:
            if stored.endswith(name):
                change = ("", stored.removesuffix(name))
            elif name.endswith(stored):
                change = (name.removesuffix(stored), "")
            else:
                continue
            self._changes.add(change)
            self._of_module.setdefault(name.rpartition(".")[0], set()).add(change)

    def find(self, names: list[str]) -> list[_native.CheckpointTensor]:
        """The tensors that may be the one with these names."""
        found: dict[str, _native.CheckpointTensor] = {}
        for name in names:
            near = self._of_module.get(name.rpartition(".")[0], set())
            of_name = self._under(name, near) or self._under(name, self._changes or {("", "")})
            found.update({stored.name: stored for stored in of_name})
        return list(found.values())

    def _under(self, name: str, changes: set[tuple[str, str]]) -> list[_native.CheckpointTensor]:
        named = [come + name.removeprefix(go) for go, come in changes if name.startswith(go)]
        return [self._tensors[each] for each in named if each in self._tensors]


class Completion:
    """What offloading gives a model beside the weights that it streams, and how that is undone."""

    def __init__(self) -> None:
        self._undoing: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Has the model be as it was."""
        for undo in reversed(self._undoing):
            undo()
        self._undoing.clear()

    def put(self, holders: list[tuple[Held, str]], tensor: torch.Tensor) -> None:
        """Has modules hold another tensor."""
        for held, key in holders:
            self._undoing.append(lambda held=held, key=key, old=held[key]: held.update({key: old}))  # type: ignore[misc]
            held[key] = tensor

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Writes to a tensor where it lies, so that whatever shares its memory sees it."""
        old = tensor.detach().clone()
        self._undoing.append(lambda: _copy(tensor, old))
        _copy(tensor, value)


def _copy(tensor: torch.Tensor, value: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)


def complete(
    found: Walk,
    places: Mapping[int, list[StoredPlace]],
    device: torch.device,
    *,
    given: bool,
) -> Completion:
    """Gives fixed tensors their values, and weights on the meta device forms on `device` without memory.

    Args:
        found: The walk over the model, whose weights have sources.
        places: Where a checkpoint has the bytes of fixed tensors, by their ids.
        device: Where the model computes.
        given: Whether a checkpoint was given for the model as it is. Else who made the model has
            given it the buffers that it is to have.

    Raises:
        ConfigError: No checkpoint tells a value, or it tells another than memory has. Nothing is changed.
    """
    model = found.modules[0]
    fixed = fixed_tensors(found)
    made = Completion()
    with torch.inference_mode(False):
        kept: list[str] = []
        values = list(_values(fixed, places, kept))
        if kept and given:
            logger.warning(
                "%d buffers are not in the checkpoint, and keep the values that the model has: '%s'",
                len(kept),
                "', '".join(kept[:3]),
            )
        for one, value in values:
            if one.is_meta:
                made.put(one.holders, value)
            else:
                made.write(one.tensor, value)  # guard: buffers-of-checkpoint
        _put_forms(model, found.weights, made, device)
        _leave_files(fixed, made)
    return made


def _values(
    fixed: list[FixedTensor], places: Mapping[int, list[StoredPlace]], kept: list[str]
) -> Iterator[tuple[FixedTensor, torch.Tensor]]:
    """The fixed tensors that are to have other values, and those values; `kept` gets the names of the rest.

    A model that is on the meta device, if only in part, gets the buffers of the checkpoint, as
    load_state_dict would give them. Else it has all values, which must be the checkpoint's.
    """
    for one in fixed:
        value = _stored_value(one, places.get(id(one.tensor), []))
        if one.is_meta:
            yield one, _made_parameter(one.tensor, _given(one, value))
        elif value is None:
            kept += [] if one.model_is_whole or not one.is_buffer else one.names[:1]
        elif not _same_bytes(one.tensor, value):
            if one.model_is_whole or not one.is_buffer:  # guard: fixed-equal
                raise ConfigError(
                    f"{one} of the model differs from the checkpoint's; offload the model without "
                    "checkpoint=, or load it from that checkpoint"
                )
            yield one, value


def _stored_value(one: FixedTensor, places: list[StoredPlace]) -> torch.Tensor | None:
    """What the checkpoint has of a tensor; None where it has nothing."""
    if not places:
        return None
    if not one.is_plain:
        raise UnsupportedError(
            f"{one} is a {type(one.tensor).__name__}, whose value checkpoint= cannot give; offload the model "
            "once it is loaded, without checkpoint="
        )
    values = [place.read(one.tensor) for place in places]
    if not all(_same_bytes(values[0], value) for value in values[1:]):
        names = "', '".join(one.names)
        raise ConfigError(f"the checkpoint has several values for {one}, which differ: '{names}'")
    return values[0]


def _given(one: FixedTensor, value: torch.Tensor | None) -> torch.Tensor:
    """The value of a tensor on the meta device."""
    if value is not None:
        return value
    if one.is_plain and one.tensor.numel() == 0:
        return torch.empty(one.tensor.shape, dtype=one.tensor.dtype, device="cpu")
    lacks = ", nor has the checkpoint one" if one.names else ", and is not saved in checkpoints"
    raise ConfigError(
        f"{one} is on the meta device and has no value{lacks}; build it on the CPU, or use "
        "tensorstream.from_pretrained"
    )


def _made_parameter(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A tensor of that value in the place of `old`: a parameter, with its attributes, where that is one."""
    if not isinstance(old, nn.Parameter):
        return value
    made = nn.Parameter(value, old.requires_grad)
    made.__dict__.update(old.__dict__)
    return made


def _same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(
        *(each.detach().cpu().reshape(-1).view(torch.uint8) for each in (left, right))
    )


def _put_forms(
    model: nn.Module, weights: list[FoundWeight], made: Completion, device: torch.device
) -> None:
    """Puts parameters on `device` that take no memory in place of those on the meta device."""
    forms: dict[
        int, torch.Tensor
    ] = {}  # by the ids of those on the meta device, which `made` keeps
    for weight in weights:
        bare = weight.parameter
        if bare.device.type != "meta":
            continue
        # Lent or parked next; and no view, whose base would count as a holder of its memory.
        element = torch.empty(1, dtype=bare.dtype, device=device).untyped_storage()
        value = torch.empty(0, dtype=bare.dtype, device=device)
        value.set_(element, 0, bare.shape, (0,) * bare.dim())
        forms[id(bare)] = weight.parameter = _made_parameter(bare, value)
    for module in model.modules():
        all_held: list[Held] = [module._parameters, module._buffers]  # type: ignore[list-item]
        for held in all_held:
            for key, old in list(held.items()):
                if id(old) in forms:
                    made.put([(held, key)], forms[id(old)])


def _leave_files(fixed: list[FixedTensor], made: Completion) -> None:
    """Copies to RAM what lies in memory that is a file's: another may write to the file, or cut it off."""
    mapped = [one for one in fixed if one.is_plain and one.tensor.device.type == "cpu"]
    mapped = [one for one in mapped if one.tensor.numel() and _is_of_file(one.tensor)]
    for group in _sharing(mapped):
        start = group[0].tensor.data_ptr()
        size_bytes = max(_end(one.tensor) for one in group) - start
        line_offset = start % _native.CACHE_LINE_BYTES
        raw = copy_at(torch.empty(size_bytes, dtype=torch.uint8, device="cpu"), line_offset)
        for one in group:
            value = _copied(one.tensor.detach(), raw, one.tensor.data_ptr() - start)
            if one.tensor.is_inference():  # takes no other memory
                made.put(one.holders, _made_parameter(one.tensor, value))
            else:
                one.tensor.data = value  # guard: out-of-files


def _is_of_file(tensor: torch.Tensor) -> bool:
    """Whether memory is mapped from a file, and not to be shared with other processes."""
    if tensor.is_shared():
        return False
    # The whole has no file where one of its pages was written.
    ends = (tensor.data_ptr(), _end(tensor) - 1)
    return any(_native.find_file_backing(address, 1) is not None for address in ends)


def _end(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() + span_bytes(tensor)


def _sharing(fixed: list[FixedTensor]) -> Iterator[list[FixedTensor]]:
    """Groups of tensors whose bytes overlap, each in the order of their addresses."""
    group: list[FixedTensor] = []
    end = 0
    for one in sorted(fixed, key=lambda one: one.tensor.data_ptr()):
        if group and one.tensor.data_ptr() >= end:
            yield group
            group, end = [], 0
        group.append(one)
        end = max(end, _end(one.tensor))
    if group:
        yield group


def _copied(tensor: torch.Tensor, raw: torch.Tensor, offset: int) -> torch.Tensor:
    """Copies a tensor into the bytes of `raw`, `offset` from their beginning, and is it there."""
    element = tensor.element_size()
    begins = raw.storage_offset() + offset
    if begins % element or tensor.is_conj() or tensor.is_neg():  # its memory alone is not its value
        return tensor.clone()
    as_bytes = torch.empty(0, dtype=torch.uint8, device="cpu").set_(
        tensor.untyped_storage(), tensor.storage_offset() * element, (span_bytes(tensor),), (1,)
    )
    raw[offset : offset + len(as_bytes)].copy_(as_bytes)
    there = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return there.set_(raw.untyped_storage(), begins // element, tensor.shape, tensor.stride())
