"""Models of transformers from packed checkpoints: only what transformers changes is decoded."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from tensorstream import _native
from tensorstream.exceptions import ConfigError, UnsupportedError
from tensorstream.forms import copy_at, empty_at
from tensorstream.hub import (
    brings_adapter,
    check_same_file,
    hub_options,
    model_folder,
    type_in_index,
)
from tensorstream.model_class import read_config

# Options that from_pretrained of transformers takes by name from those that it does not know.
_OF_LOADING = frozenset(
    "adapter_kwargs adapter_name allow_all_kernels attn_implementation device_map device_mesh "
    "distributed_config dtype experts_implementation from_flax from_tf generation_config gguf_file "
    "kernel_config key_mapping low_cpu_mem_usage max_memory mirror offload_buffers offload_folder "
    "offload_state_dict output_loading_info proxies quantization_config state_dict subfolder torch_dtype "
    "tp_plan tp_size tqdm_class trust_remote_code use_kernels variant".split()
)


@dataclasses.dataclass
class StoredPlace:
    """Where the bytes of a weight are: a range of a reader.

    Attributes:
        reader: Of its file.
        offset_bytes: Of its first byte, in a packed file in the coordinates of the one that was packed.
        size_bytes: Of all.
        line_offset: The byte of a cache line at which the plain model's memory has it.
    """

    reader: _native.Reader
    offset_bytes: int
    size_bytes: int
    line_offset: int = 0

    def read(self, form: torch.Tensor) -> torch.Tensor:
        """Its value in RAM, with the shape and type of `form`, at its byte of a cache line."""
        value = empty_at(form, self.line_offset)
        if value.numel():
            self.reader.read(self.offset_bytes, value.data_ptr(), value.nbytes)
        return value


class StoredTensor(torch.Tensor):
    """A tensor of a packed file, with its type and shape, that takes no memory.

    Any operation on it runs on its true value, decoded for that operation. One that writes to it, or gives
    a view of it, keeps the value from there on. What is detached from it is the same tensor again.
    """

    life: _Life

    @staticmethod
    def __new__(cls, life: _Life) -> StoredTensor:
        """A tensor of that life."""
        made: StoredTensor = torch.Tensor._make_wrapper_subclass(
            cls, life.shape, dtype=life.dtype, device=torch.device("cpu")
        )
        made.life = life
        return made

    # torch calls __torch_dispatch__ for all that reaches a kernel; nothing above that is of use here.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    _SAME: ClassVar = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in cls._SAME and isinstance(args[0], cls):
            return cls(args[0].life)
        aliased = any(argument.alias_info is not None for argument in func._schema.arguments)
        keep = False
        if aliased:  # guard: stored-alias
            keep = True
        args, kwargs = tree_map_only(
            StoredTensor, lambda tensor: tensor.life.value(keep=keep), (args, kwargs or {})
        )
        return func(*args, **kwargs)

    @property
    def place(self) -> StoredPlace | None:
        """Where its bytes are; None once it has a value of its own."""
        return self.life.place if self.life.kept is None else None


@dataclasses.dataclass
class _Life:
    """What a stored tensor and all that is detached from it share."""

    place: StoredPlace
    dtype: torch.dtype
    shape: tuple[int, ...]
    kept: torch.Tensor | None = None

    def value(self, *, keep: bool) -> torch.Tensor:
        if self.kept is not None:
            return self.kept
        value = self.place.read(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        if keep:
            self.kept = value
        return value

    def copy(self) -> torch.Tensor:
        """The value in memory of its own."""
        if self.kept is None:
            return self.value(keep=False)
        return copy_at(self.kept, self.place.line_offset)


def stored_tensors(checkpoint: _native.Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of a packed checkpoint by name, none of them in memory, in the order of its files.

    The plain model maps the files that were packed: a value begins in a cache line where its file has it.
    """
    readers = [_native.open_packed_reader(path) for path in checkpoint.files]
    for file, reader in enumerate(readers):
        check_same_file(checkpoint.is_read_by(file, reader), reader)
    tensors: dict[str, torch.Tensor] = {}
    for stored in sorted(checkpoint.tensors, key=lambda tensor: (tensor.file, tensor.name)):
        dtype = getattr(torch, stored.dtype)
        line_offset = stored.offset_bytes % _native.CACHE_LINE_BYTES
        place = StoredPlace(
            readers[stored.file], stored.offset_bytes, stored.size_bytes, line_offset
        )
        tensors[stored.name] = StoredTensor(_Life(place, dtype, tuple(stored.torch_shape)))
    return tensors


def load_packed(
    loader: Any, path: str, checkpoint: _native.Checkpoint, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[int, StoredPlace]]:
    """Has transformers make a model of a packed checkpoint.

    Args:
        loader: A class of transformers with from_pretrained.
        path: The folder or hub id, with its config.
        checkpoint: The same, opened.
        kwargs: For transformers.

    Returns:
        The model, whose parameters are on the meta device where they are as the files have them; what
        transformers says of the loading; and where the bytes of those parameters are, by their ids.

    Raises:
        UnsupportedError: The checkpoint is quantised, or brings an adapter, or code or files for which a
            plain one is needed.
    """
    _check_options(path, kwargs)
    of_auto, loader = hasattr(loader, "_model_mapping"), concrete_class(loader, path, kwargs)
    generation_config = kwargs.pop("generation_config", None)
    if generation_config is None:
        generation_config = _generation_config(loader, path, kwargs, of_auto)
    _take_type_of_index(path, checkpoint, kwargs)
    given = kwargs.pop("config", None)
    model, info = loader.from_pretrained(
        None,
        config=path if given is None else given,
        state_dict=stored_tensors(checkpoint),
        generation_config=generation_config,
        output_loading_info=True,
        **kwargs,
    )
    model.name_or_path = model.config.name_or_path = path
    return model, info, take_out(model)


def _check_options(path: str, kwargs: dict[str, Any]) -> None:
    advice = "make a plain one of it with tensorstream.unpack(source, target), and load that"
    for name in ("trust_remote_code", "variant", "adapter_kwargs"):
        if kwargs.get(name):
            raise UnsupportedError(
                f"{name} cannot be used with '{path}', which is packed; {advice}"
            )
    language = kwargs.get("target_lang")
    if (
        language is not None
    ):  # transformers looks for its adapter by a path that it is not given here
        raise UnsupportedError(
            f"target_lang cannot be used with '{path}', which is packed; load it without, and call "
            f"model.load_adapter({language!r}) then"
        )
    config = read_config(path, kwargs)
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedError(f"'{path}' is packed, and its model is quantised; {advice}")
    if brings_adapter(path, model_folder(path, kwargs)):  # guard: packed-adapter
        raise UnsupportedError(
            f"'{path}' is packed, and holds an adapter beside its model (adapter_config.json); {advice}"
        )


def _take_type_of_index(path: str, checkpoint: _native.Checkpoint, kwargs: dict[str, Any]) -> None:
    """Where neither an option nor the config says which, transformers takes the type that an index names."""
    given = [kwargs.get(name) for name in ("dtype", "torch_dtype")]
    if any(each not in (None, "auto") for each in given):
        return
    if getattr(read_config(path, kwargs), "dtype", None) is None:
        found = type_in_index(model_folder(path, kwargs), checkpoint)
        kwargs.update({} if found is None else {"dtype": found, "torch_dtype": None})


def _generation_config(loader: Any, path: str, kwargs: dict[str, Any], of_auto: bool) -> Any:
    """What transformers itself would read beside the weights; None for a model that generates nothing.

    Options that its from_pretrained does not know are fields of it, as they are of the model's config; its
    Auto classes keep those to themselves that are fields of the latter.
    """
    can_generate: Callable[[], bool] | None = getattr(loader, "can_generate", None)
    if can_generate is None or not can_generate():
        return None
    import transformers

    known = inspect.signature(transformers.PreTrainedModel.from_pretrained).parameters
    fields = {
        name: value
        for name, value in kwargs.items()
        if name not in known and name not in _OF_LOADING
    }
    if of_auto:
        config = read_config(path, kwargs)
        fields = {name: value for name, value in fields.items() if not hasattr(config, name)}
    options = hub_options(kwargs) | fields
    try:
        return transformers.GenerationConfig.from_pretrained(path, **options)
    except OSError:
        return transformers.GenerationConfig.from_pretrained(
            path, config_file_name="config.json", _from_model_config=True, **options
        )


def concrete_class(loader: Any, path: str, kwargs: dict[str, Any]) -> Any:
    """The class that an Auto class of transformers stands for; any other as it is."""
    mapping = getattr(loader, "_model_mapping", None)
    if mapping is None:
        return loader
    config = read_config(path, kwargs)
    if type(config) not in mapping:
        raise ConfigError(f"{loader.__name__} knows no model for the config of '{path}'")
    found = mapping[type(config)]
    if not isinstance(found, (list, tuple)):
        return found
    named = {each.__name__: each for each in found}
    for name in getattr(config, "architectures", None) or ():
        if name in named:
            return named[name]
    return found[0]


def take_out(model: nn.Module) -> dict[int, StoredPlace]:
    """Puts a plain parameter in the place of each stored one, and a value in that of stored buffers."""
    stored: dict[int, StoredTensor] = {}  # by the parameter's id: ties are one
    for parameter in model.parameters():
        if isinstance(_any(parameter), StoredTensor):
            stored[id(parameter)] = _any(parameter)
    uses = Counter(id(each.life) for each in stored.values())
    for each in stored.values():
        if uses[id(each.life)] > 1:  # what is written to one shows in the others
            each.life.value(keep=True)
    places: dict[int, StoredPlace] = {}
    made = {key: _plain(each, places) for key, each in stored.items()}
    for module in model.modules():
        for name, held in module._parameters.items():
            if id(held) in made:
                module._parameters[name] = made[id(held)]
        for name, buffer in module._buffers.items():
            if isinstance(_any(buffer), StoredTensor):
                module._buffers[name] = _any(buffer).life.copy()
    return places


def _any(value: Any) -> Any:
    """Any object: mypy holds that no tensor of a module's is a stored one."""
    return value


def _plain(stored: StoredTensor, places: dict[int, StoredPlace]) -> nn.Parameter:
    place = stored.place
    if place is None:
        value = stored.life.value(keep=True)
    else:
        value = torch.empty(stored.shape, dtype=stored.dtype, device="meta")
    parameter = nn.Parameter(value, stored.requires_grad)
    if place is not None:
        places[id(parameter)] = place
    for name, attribute in vars(stored).items():
        if name not in ("life", "_is_param"):
            setattr(parameter, name, attribute)
    return parameter
