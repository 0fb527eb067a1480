"""The walk over a model: its modules, its weights, and where their bytes are."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, ModuleType

import torch
from torch import nn

from tensorstream import _native
from tensorstream.compute_device import is_made_of_parts, moves_itself
from tensorstream.exceptions import ConfigError, UnsupportedError
from tensorstream.flattened import inner_tensors, wrapper_of
from tensorstream.forms import form_of, is_dense, line_offset_of
from tensorstream.fused import WHOLE
from tensorstream.inner_tensors import Wrapper, Wrappers
from tensorstream.inner_tensors import reason_to_leave as reason_of_wrapper
from tensorstream.packed import StoredPlace
from tensorstream.parts import Parts, entry_modules, is_container, top_modules
from tensorstream.proxy import ParkedParameter

logger = logging.getLogger("tensorstream")


@dataclasses.dataclass
class FoundWeight:
    """A parameter that can be streamed.

    Attributes:
        parameter: The model's object, or what will stand for an inner tensor of one.
        names: Every dotted name that it has in the model; several where it is tied.
        tensor: Its id in the tree.
        form: Its shape, strides and type, without memory.
        line_offset: The byte of a cache line at which it begins in the model's memory. What multiplies
            matrices on the CPU chooses its code by that, and other code rounds otherwise.
        is_buffer: Whether it is a buffer of a module whose weights are in buffers.
    """

    parameter: torch.Tensor
    names: list[str]
    tensor: int
    form: torch.Tensor
    line_offset: int
    is_buffer: bool = False


@dataclasses.dataclass
class Walk:
    """What a model is made of.

    Attributes:
        tree: The modules and weights, for the engine.
        modules: The modules by their id in the tree.
        entries: Ids of the modules that are called from outside: the root, or the parts of a pipeline.
        parts: Names of the parts of a pipeline; none for a model.
        weights: The weights by their id in the tree.
        wrappers: Parameters whose inner tensors are among the weights.
        left: Names of parameters that cannot be streamed, with the reason.
    """

    tree: _native.ModelTree
    modules: list[nn.Module]
    weights: list[FoundWeight]
    left: dict[str, str]
    entries: list[int] = dataclasses.field(default_factory=list)
    parts: list[str] = dataclasses.field(default_factory=list)
    wrappers: Wrappers = dataclasses.field(default_factory=Wrappers)

    def streamed_ids(self) -> set[int]:
        """The identities of the parameters that are streamed, themselves or by their inner tensors."""
        return {id(each.parameter) for each in self.weights} | {
            id(each.outer) for each in self.wrappers
        }


_NOWHERE: Mapping[int, StoredPlace] = MappingProxyType({})


def walk(
    model: nn.Module,
    keep_resident: Sequence[str] = (),
    stored: Mapping[int, StoredPlace] = _NOWHERE,
    *,
    apart: bool = True,
) -> Walk:
    """Walks `model`, without touching it.

    Args:
        model: A model, or the parts of a pipeline.
        keep_resident: Names of modules whose weights are not to be streamed.
        stored: Where the bytes of parameters are that have none in memory, by their ids.
        apart: Whether parameters that are made of others are streamed by these.
    """
    listed = list(model.named_parameters(remove_duplicate=False))  # kept, for the ids
    names = _names_of_parameters(listed)
    found = Walk(_native.ModelTree(), [], [], {})
    if isinstance(model, Parts):
        found.parts = list(model)
    self_moving = [(name, parameter) for name, parameter in listed if moves_itself(parameter)]
    by_parameter = _add_weights(found, model, names, self_moving, stored, apart=apart)
    _add_buffers(found, model, by_parameter, stored)
    found.tree.add_fixed_bytes(_kept_bytes(model, self_moving))
    _add_modules(found, model, by_parameter)
    seen: set[int] = set()
    for buffer in model.buffers():
        plain = type(buffer) is torch.Tensor and buffer.layout is torch.strided
        key = (plain and buffer.data_ptr()) or id(buffer)
        if key not in seen and id(buffer) not in by_parameter:
            seen.add(key)
            found.tree.add_fixed_bytes(_size_bytes(buffer))
    for name in keep_resident:
        found.tree.keep_resident(name)
    if found.left:
        shown = "; ".join(f"'{name}' ({why})" for name, why in list(found.left.items())[:3])
        logger.warning("%d parameters stay resident as they are: %s", len(found.left), shown)
    return found


def _names_of_parameters(listed: list[tuple[str, nn.Parameter]]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in listed:
        names.setdefault(id(parameter), []).append(name)
    return names


def _add_weights(
    found: Walk,
    model: nn.Module,
    names: dict[int, list[str]],
    self_moving: list[tuple[str, nn.Parameter]],
    stored: Mapping[int, StoredPlace],
    *,
    apart: bool,
) -> dict[int, list[int]]:
    """Adds the parameters of `model` to the tree; their tensor ids by the parameters' identity."""
    by_parameter: dict[int, list[int]] = {}
    shared = _overlapping(model.parameters())
    scripted = [
        name for name, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule)
    ]
    beside = {_module_of(name): type(parameter).__name__ for name, parameter in self_moving}
    for name, parameter in model.named_parameters():
        wrapper = wrapper_of(parameter)
        if isinstance(parameter, ParkedParameter) or (wrapper is not None and wrapper.is_streamed):
            raise ConfigError(
                f"'{name}' is offloaded already; call tensorstream.restore() on that model first"
            )
        if id(parameter) not in names:
            reason: str | None = "its module makes it anew at each look"
        elif _is_within(names[id(parameter)], scripted):  # guard: scripted
            reason = "it is of a ScriptModule, whose code asks no hook"
        elif is_made_of_parts(parameter) and not apart:
            reason = f"it is a {type(parameter).__name__}, which a checkpoint has in parts"
        else:
            reason = _reason_to_leave(parameter, shared)
            reason = reason or _reason_of_neighbours(names[id(parameter)], beside)
        if reason is None:
            by_parameter[id(parameter)] = _add_parameter(
                found, parameter, names[id(parameter)], stored
            )
        if reason is not None:
            found.left[name] = reason
            found.tree.add_fixed_bytes(_size_bytes(parameter))
    return by_parameter


def _add_parameter(
    found: Walk, parameter: nn.Parameter, names: list[str], stored: Mapping[int, StoredPlace]
) -> list[int]:
    """Adds a parameter, or its inner tensors, to the tree: the tensors' ids."""
    if not is_made_of_parts(parameter):
        return [_add_tensor(found, parameter, names, stored)]
    wrapper = Wrapper(parameter, names)
    found.wrappers.append(wrapper)
    return [
        _add_tensor(found, part, [f"{name}.{path}" for name in names], stored)
        for path, part in wrapper.parts.items()
    ]


def _add_tensor(
    found: Walk, parameter: torch.Tensor, names: list[str], stored: Mapping[int, StoredPlace]
) -> int:
    line_offset = _line_offset(parameter, stored)
    tensor = found.tree.add_tensor(names[0], _dtype_of(parameter), parameter.nbytes, line_offset)
    found.weights.append(FoundWeight(parameter, names, tensor, form_of(parameter), line_offset))
    return tensor


def _dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


_LEAST_BYTES = 1 << 16  # of a buffer that is taken for a matrix


def _add_buffers(
    found: Walk,
    model: nn.Module,
    by_parameter: dict[int, list[int]],
    stored: Mapping[int, StoredPlace],
) -> None:
    """Adds the buffers that are weights to the tree, as layers of GPTQ and AWQ have them."""
    names: dict[int, list[str]] = {}
    buffers: dict[int, torch.Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not _has_coded_buffers(module):
            continue
        for name, buffer in module._buffers.items():
            is_saved = buffer is not None and name not in module._non_persistent_buffers_set
            if is_saved and buffer.numel() > 1:  # or it counts, and `module.count += 1` assigns it
                names.setdefault(id(buffer), []).append(f"{path}.{name}" if path else name)
                buffers[id(buffer)] = buffer
    if not buffers:
        return
    shared = _overlapping([*model.parameters(), *model.buffers()])
    for key, buffer in buffers.items():
        plain = type(buffer) is torch.Tensor
        if plain and key not in shared and _reason_of_memory(buffer) is None:
            tensor = _add_tensor(found, buffer, names[key], stored)
            found.weights[tensor].is_buffer = True
            by_parameter[key] = [tensor]


def _has_coded_buffers(module: nn.Module) -> bool:
    """Whether a module's weights are codes in buffers: large ones of whole numbers, and no matrix beside."""
    coded = any(
        buffer is not None
        and name not in module._non_persistent_buffers_set
        and buffer.layout is torch.strided
        and buffer.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32)
        and buffer.nbytes >= _LEAST_BYTES
        for name, buffer in module._buffers.items()
    )
    if not coded or isinstance(module, torch.jit.ScriptModule):
        return False
    return all(each is None or each.dim() < 2 for each in module._parameters.values())  # noqa: PLR2004


def _is_within(names: list[str], modules: list[str]) -> bool:
    return any(not module or name.startswith(f"{module}.") for module in modules for name in names)


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _reason_of_neighbours(names: list[str], beside: dict[str, str]) -> str | None:
    """Why a parameter with these names cannot be streamed beside what its modules hold; None where it can.

    A layer of bitsandbytes puts another type in the place of its bias as it computes. `beside` has the types
    of weights that move themselves, by the names of their modules.
    """
    for name in names:
        neighbour = beside.get(_module_of(name))
        if neighbour is not None:
            return f"it is beside a {neighbour}, whose module may cast it"
    return None


def _line_offset(parameter: torch.Tensor, stored: Mapping[int, StoredPlace]) -> int:
    """Where a parameter begins within a cache line; 0, as torch allocates, for one with no memory at all."""
    if id(parameter) in stored:  # guard: stored-alignment
        return stored[id(parameter)].line_offset
    if parameter.device.type != "cpu":
        return 0
    return line_offset_of(parameter)


def _reason_to_leave(parameter: nn.Parameter, shared: set[int]) -> str | None:
    """Why a parameter cannot be streamed; None where it can."""
    tensors: list[torch.Tensor] = [parameter]
    if is_made_of_parts(parameter):
        reason = reason_of_wrapper(parameter)
        tensors = [] if reason else [inner.tensor for inner in inner_tensors(parameter)]
    elif type(parameter) is not nn.Parameter:
        reason = f"it is a {type(parameter).__name__}"
    elif type(parameter.data) is not torch.Tensor:
        reason = f"its data is a {type(parameter.data).__name__}"
    else:
        reason = None
    for tensor in tensors:
        reason = reason or _reason_of_memory(tensor)
    if reason is None and id(parameter) in shared:
        return "it shares memory with another parameter"
    return reason


def _reason_of_memory(tensor: torch.Tensor) -> str | None:
    """Why nothing in a tensor's memory can be streamed."""
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}"
    if tensor.device.type not in ("cpu", "meta"):
        return f"it is on {tensor.device}"
    if tensor.is_inference():  # guard: inference-parameter
        return (
            "it was made in torch.inference_mode(), and does not say when it is written to (make or load "
            "the model outside of that)"
        )
    if tensor.numel() == 0:
        return "it is empty"
    if not is_dense(tensor):
        return "its elements are not dense"
    return _reason_of_type(_dtype_of(tensor))


@functools.cache
def _reason_of_type(dtype: str) -> str | None:
    try:
        _native.ModelTree().add_tensor("", dtype, 0, 0)
    except UnsupportedError as error:
        return str(error)
    return None


def _size_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor of any class and layout; for one that does not say, those of its shape."""
    if is_made_of_parts(tensor):  # quantised: shape and type are those of what it stands for
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return sum(_size_bytes(getattr(tensor, name)) for name in names)
    if tensor.layout is torch.strided:
        return tensor.nbytes
    if tensor.layout is torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    return tensor.numel() * tensor.element_size()


_DEPTH = 2  # a state in an attribute, and one within it


def _kept_bytes(model: nn.Module, self_moving: list[tuple[str, nn.Parameter]]) -> int:
    """Bytes of what weights that move themselves have beside their own: scales, tables of codes.

    These tensors are attributes of the weight, of its module, which may take them over, or of a state there.
    """
    counted = {_address(parameter) for _, parameter in self_moving}
    looked: set[int] = set()

    def bytes_in(holder: object, depth: int) -> int:
        if id(holder) in looked or isinstance(holder, type | ModuleType):
            return 0
        looked.add(id(holder))
        total = 0
        for value in list(getattr(holder, "__dict__", {}).values()):
            if isinstance(value, nn.Module | nn.Parameter):
                continue
            if not isinstance(value, torch.Tensor):
                total += bytes_in(value, depth - 1) if depth > 0 else 0
            elif _address(value) not in counted:
                counted.add(_address(value))
                total += _size_bytes(value)
        return total

    modules = [model.get_submodule(_module_of(name)) for name, _ in self_moving]
    holders = [*(parameter for _, parameter in self_moving), *modules]
    return sum(bytes_in(holder, _DEPTH) for holder in holders)


def _address(tensor: torch.Tensor) -> int:
    """Where a tensor's bytes are; its identity, where that cannot be told."""
    told = tensor.layout is torch.strided and not is_made_of_parts(tensor)
    return (told and tensor.data_ptr()) or id(tensor)


def _overlapping(tensors: Iterable[torch.Tensor]) -> set[int]:
    """Identities of distinct parameters or buffers whose bytes overlap those of another."""
    spans = sorted(
        (memory.data_ptr(), memory.data_ptr() + span_bytes(memory), id(tensor))
        for tensor in tensors
        for memory in _memory_of(tensor)
        if memory.layout is torch.strided and memory.device.type == "cpu" and memory.numel() > 0
    )
    overlapping: set[int] = set()
    furthest_end, furthest = 0, 0  # of the spans that start before this one
    for start, end, one in spans:
        if start < furthest_end:
            overlapping.update((one, furthest))
        if end > furthest_end:
            furthest_end, furthest = end, one
    return overlapping


def _memory_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a tensor's bytes are in, where these may be streamed."""
    if is_made_of_parts(tensor) and reason_of_wrapper(tensor) is None:
        return [inner.tensor for inner in inner_tensors(tensor)]
    return [tensor] if type(tensor) in (torch.Tensor, nn.Parameter) else []


def span_bytes(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last, whatever its strides."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (last + 1) * tensor.element_size()


def _looks_up_rows(module: nn.Module) -> bool:
    if not isinstance(module, nn.Embedding) or is_made_of_parts(module.weight):
        return False
    return module.max_norm is None


def _add_modules(found: Walk, model: nn.Module, by_parameter: dict[int, list[int]]) -> None:
    ids: dict[int, int] = {}
    _add_module(found, model, ("", 0), (by_parameter, {}, ids), {id(m) for m in top_modules(model)})
    found.entries = [ids[id(module)] for module in entry_modules(model) if id(module) in ids]


def _add_module(
    found: Walk,
    module: nn.Module,
    place: tuple[str, int],
    known: tuple[dict[int, list[int]], dict[type, int], dict[int, int]],
    top: set[int],
) -> None:
    """Adds a module and those below it: at `place`, its name and its parent.

    `known` are tensors by parameter, numbers of types, and what was added, by identity. A function within
    another, which refers to itself, would keep all of it until it is collected.
    """
    (name, parent), (by_parameter, types, ids) = place, known
    if id(module) in ids:
        return
    node = found.tree.add_module(
        name,
        types.setdefault(type(module), len(types)),
        parent,
        is_container(module, top=id(module) in top),
        _looks_up_rows(module),
    )
    ids[id(module)] = node
    found.modules.append(module)
    whole = False
    if isinstance(module, WHOLE):  # guard: one-group
        whole = True
    for held in (*module.parameters(recurse=whole), *module.buffers(recurse=whole)):
        for tensor in by_parameter.get(id(held), ()):
            found.tree.hold(node, tensor)
    if whole:
        return
    for child_name, child in module.named_children():
        below = f"{name}.{child_name}" if name else child_name
        _add_module(found, child, (below, node), known, top)
