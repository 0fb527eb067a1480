"""What the user said: options, checked and resolved."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tensorstream import _native
from tensorstream.compute_device import ComputeDevice, check_available, open_device
from tensorstream.exceptions import ConfigError, UnsupportedError

Size = int | str

PREFETCH = {
    "adaptive": _native.Prefetch.ADAPTIVE,
    "aggressive": _native.Prefetch.AHEAD,
    "next": _native.Prefetch.NEXT,
    "none": _native.Prefetch.NONE,
}
PRESSURE = {
    "adaptive": _native.Pressure.ADAPTIVE,
    "strict": _native.Pressure.STRICT,
    "lenient": _native.Pressure.LENIENT,
}
_TYPES_OF_MODELS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
COMPRESSION: dict[str, int | None] = {
    "auto": None,
    "none": 0,
    **{str(level): level for level in range(1, 10)},
}
BACKENDS = {
    "auto": _native.FileBackend.PREAD,
    "mmap": _native.FileBackend.MMAP,
    "direct": _native.FileBackend.DIRECT,
    "io_uring": _native.FileBackend.IO_URING,
    "cached": _native.FileBackend.CACHED,
    "cuda": _native.FileBackend.CUDA,
    "gpudirect": _native.FileBackend.GPUDIRECT,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `offload` and `from_pretrained`.

    Attributes:
        device: Where the model computes: "cpu", "cuda" or "cuda:N". None is the GPU where vram_budget
            is given, the CPU where only ram_budget is, and the GPU, if there is one, where neither is.
        vram_budget: Device memory that weights, and what torch allocates in forwards, may take on a GPU, in
            bytes or as "4GiB", "500MB", "60%". None takes what is free less 1 GiB, or half of it
            where that is more. "4GB" is 4 * 10**9 bytes, "4G" is "4GiB". Not for the CPU.
        ram_budget: RAM that weights may take, in the same forms: the budget of a model on the CPU, where
            None takes what is available less 1 GiB, and the ceiling of pinned host memory beside a GPU:
            what of the streamed weights finds no room there is read from its files at each use, spread
            evenly through the pass.
        backend: How files are read. "auto" is "direct" where each pass over the model reads more from files
            than the page cache has room for, and the file system takes it, or "cached" where the page cache
            has them even so, charged to others; else it reads them by pread, and
            on the CPU uses large weights in the page cache, without a copy, where it has them in large
            pages. The statistics say what was chosen and why. "mmap" uses them however the page cache has
            them, and maps what it copies, for files that nobody truncates meanwhile.
            "direct" reads past the page cache, by io_uring or, where that is forbidden, by threads: for
            models that are larger than RAM, and where the page cache is others'. "io_uring" is the same
            without the threads. "cached" uses what the page cache has at each use, and reads the rest past
            it. All three take 8 MiB of RAM beside the budgets, up to 65 MiB more for packed files, and are
            an UnsupportedError with the reason where a file system or the kernel refuses. "cuda" is
            "direct" for a GPU alone: into pinned memory, from which the GPU copies. "gpudirect" has cuFile
            read straight to the GPU's memory what has no home in host memory: from peer to peer, or
            through host memory of cuFile's in its compatibility mode, which the statistics say; not for
            packed files. What cuFile may take of the GPU, 128 MiB where it is not told otherwise, is in
            vram_budget. "auto" is "gpudirect" in place of "direct" where it is proven that the disk writes
            to the GPU's memory itself. `probe_backends` says what can be had.
        prefetch: "aggressive" loads as far ahead as the budget has room for, "next" one group, "none"
            nothing. "adaptive" is the same as "aggressive" on a GPU; on the CPU, whose cores a copy
            ahead would take from the model, groups are loaded when they are used, by the threads
            that compute, and the disk is asked for the next ones; but with backend "direct", where a
            disk makes the copies, it is "aggressive" too.
        compression: Whether streamed weights are kept in host memory, and cross the link, coded without loss,
            for a GPU to decode: "none", or a level from "1", the quickest to decode, to "9", the
            smallest. "auto" codes where the plan's model of time says that a pass gets shorter by
            it; the statistics say what was chosen and why. Not for the CPU, where a level is a
            ConfigError.
        keep_resident: Names of modules or parameters, or their prefixes up to a dot, that stay on
            the device in every plan.
        pressure: What happens when torch asks, in a forward on a GPU, for memory that the budget has no room
            for. "adaptive": resident weights give way and are streamed, and come back when torch has not
            needed their memory for some forwards; what does not fit even so is a BudgetError. "strict": it
            is a BudgetError at once, and residents never give way. "lenient": as "adaptive", and then the
            budget is passed while the GPU has free memory, with one warning, counted in the statistics.
            Nothing on the CPU, where torch's allocations are outside the budget.
        self_check: Takes the access rights of weights that nobody uses, poisons what is stale and
            delays loads at random: slow, and a fault shows instead of a wrong number.
    """

    device: str | torch.device | None = None
    vram_budget: Size | None = None
    ram_budget: Size | None = None
    backend: str = "auto"
    prefetch: str = "adaptive"
    compression: str | int = "auto"
    keep_resident: Sequence[str] = ()
    pressure: str = "adaptive"
    self_check: bool = False

    def __post_init__(self) -> None:
        """Checks each option by itself."""
        _check_choice("prefetch", self.prefetch, PREFETCH)
        _check_choice("backend", self.backend, BACKENDS)
        _check_choice("pressure", self.pressure, PRESSURE)
        _check_choice("compression", _as_text(self.compression), COMPRESSION)
        names = self.keep_resident
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"keep_resident is {names!r}; give a sequence of names")
        if isinstance(names, str):
            raise ConfigError(f"keep_resident is one text, {names!r}; give ({names!r},)")
        if not isinstance(self.self_check, bool):
            raise ConfigError(f"self_check is {self.self_check!r}; give True or False")
        if self.torch_device.type not in ("cpu", "cuda"):
            raise UnsupportedError(
                f"device '{self.torch_device}' is not supported; use 'cuda', 'cuda:N' or 'cpu'"
            )
        check_available(self.torch_device)
        if self.torch_device.type == "cpu" and self.vram_budget is not None:
            raise ConfigError(
                "vram_budget is given, but the device is 'cpu', whose budget is ram_budget"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device that the model computes on."""
        chosen = self.device
        if chosen is None:
            on_gpu = self.vram_budget is not None or (
                self.ram_budget is None and torch.cuda.is_available()
            )
            chosen = "cuda" if on_gpu else "cpu"
        try:
            return torch.device(chosen)
        except (RuntimeError, TypeError) as error:
            why = f": {error}" if isinstance(error, RuntimeError) else ""
            raise ConfigError(
                f"device is {chosen!r}{why}; give 'cuda', 'cuda:N' or 'cpu'"
            ) from error

    @property
    def compression_level(self) -> int | None:
        """The level, 0 for none, None where the engine chooses."""
        return COMPRESSION[str(_as_text(self.compression))]

    def plan(
        self,
        tree: _native.ModelTree,
        budget_bytes: int,
        device: ComputeDevice | None = None,
        *,
        ram_bytes: int | None = None,
        disk_rate: float | None = None,
    ) -> _native.ModelPlan:
        """Groups and a plan for a model on this device, by the rate of its link where it is given.

        Beside a GPU, `ram_bytes` is the ceiling of host memory, None for none, and `disk_rate` what a file
        is read at, in bytes a second.
        """
        on_host = self.torch_device.type == "cpu" if device is None else device.is_host
        place = _native.ComputePlace.HOST if on_host else _native.ComputePlace.ACCELERATOR
        link_rate = None if device is None else device.link_bytes_per_second
        call = None if device is None else device.host_call_seconds
        known = _native.KnownRates(link_rate, disk_rate, call)
        level = self.compression_level
        return tree.plan(budget_bytes, self._prefetch, place, known, level, ram_bytes)

    @property
    def file_backend(self) -> _native.FileBackend:
        """How files are read."""
        return BACKENDS[self.backend]

    @property
    def _prefetch(self) -> _native.Prefetch:
        return _native.prefetch_for(PREFETCH[self.prefetch], self.file_backend)

    def engine_options(
        self, device: ComputeDevice, disk_rate: float | None = None
    ) -> _native.EngineOptions:
        """What the engine is told of these options, for a device, and a disk of that rate."""
        options = _native.EngineOptions()
        options.prefetch = self._prefetch
        options.link_bytes_per_second = device.link_bytes_per_second
        options.host_call_seconds = device.host_call_seconds or 0
        if disk_rate is not None:
            options.disk_bytes_per_second = disk_rate
        options.compression = self.compression_level
        if device.torch_memory() is not None:
            options.reserved_share = _native.ACTIVATION_SHARE
            if self.pressure != "strict":
                options.residents = _native.ResidentUse.LEASED
        return options

    def budget_bytes(self, device: _native.Device | None = None) -> int:
        """The budget in bytes, for the device as it is now; a GPU's needs its `device`."""
        if self.torch_device.type == "cpu":
            return self.ram_budget_bytes()
        if device is None:
            device = open_device(self.torch_device, self_check=False).native
        if self.vram_budget is None:
            return _native.default_budget_bytes(device.free_bytes)
        budget = _size_bytes("vram_budget", self.vram_budget, device.total_bytes)
        if budget > device.total_bytes:
            raise ConfigError(
                f"vram_budget is {_native.format_size(budget)}, and {device.name} has "
                f"{_native.format_size(device.total_bytes)}"
            )
        return budget

    def moved_budget(self, given: dict[str, Size | None], device: _native.Device) -> int:
        """The budget in bytes that set_budget() was given.

        Raises:
            ConfigError: It is not the one that this device has.
        """
        wanted = "ram_budget" if self.torch_device.type == "cpu" else "vram_budget"
        named = [name for name, size in given.items() if size is not None]
        if named != [wanted]:
            shown = f"{' and '.join(named) or 'nothing'} {'are' if named[1:] else 'is'} given"
            raise ConfigError(
                f"the budget of a model on '{self.torch_device}' is {wanted}, and "
                f"{shown}; call set_budget(model, {wanted}=...)"
            )
        changed: dict[str, Any] = {wanted: given[wanted]}
        return dataclasses.replace(self, **changed).budget_bytes(device)

    def ram_budget_bytes(self) -> int:
        """The budget of host RAM in bytes."""
        if self.ram_budget is None:
            return _native.default_budget_bytes(_native.available_ram_bytes())
        return _size_bytes("ram_budget", self.ram_budget, _native.usable_ram_bytes())


def _with_suggestions(init: Callable[..., None]) -> Callable[..., None]:
    """The same __init__, which names the nearest option where one is unknown."""
    known = [field.name for field in dataclasses.fields(Config)]

    @functools.wraps(init)
    def checked(self: Config, *args: Any, **options: Any) -> None:
        for name in options:
            if name not in known:
                hint = _native.did_you_mean(name, known)
                raise ConfigError(
                    f"unknown option '{name}'{hint}; the options are {', '.join(known)}"
                )
        init(self, *args, **options)

    return checked


Config.__init__ = _with_suggestions(Config.__init__)  # type: ignore[method-assign]


def _size_bytes(option: str, size: Size, whole_bytes: int) -> int:
    text = size if isinstance(size, str) else whole_number(size)
    if text is None:
        raise ConfigError(f"{option} is {size!r}; give bytes or text like '4GiB'")
    return _native.parse_size(str(text), option, whole_bytes)


def whole_number(value: Any) -> int | None:
    """A number of any integral type, NumPy's too, as an int; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def is_left_out(option: Any) -> bool:
    """Whether an option of from_pretrained is as where nobody gives it."""
    return option is None or option is False


def chosen_dtype(dtype: Any) -> Any:
    """The type that from_pretrained was given in any of its forms; None where the checkpoint says it.

    Of a dictionary, which has types by parts of a pipeline, another one.

    Raises:
        ConfigError: It is no type that weights can have.
    """
    if isinstance(dtype, dict):
        return {name: _one_dtype(each) for name, each in dtype.items()}
    return _one_dtype(dtype)


def _one_dtype(dtype: Any) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            f"dtype is {dtype!r}; give a floating-point type of torch, as torch.bfloat16 or 'bfloat16', or "
            "'auto' for the checkpoint's own"
        )
    if found not in _TYPES_OF_MODELS:
        raise ConfigError(
            f"dtype is {dtype!r}, in which torch builds no model: give bfloat16, float16, float32 or float64"
        )
    return found


def check_one_type(dtype: Any) -> None:
    """Raises ConfigError where types by parts are given for a path that holds one model."""
    if isinstance(dtype, dict):
        raise ConfigError("dtype has types by parts, and the path holds one model: give one type")


def make_config(config: Config | None, options: dict[str, Any]) -> Config:
    """The given config, or one made of keyword options, with the options of both merged.

    Raises:
        ConfigError: An option is unknown; the message names the nearest one.
    """
    if config is None:
        return Config(**options)
    if not isinstance(config, Config):
        raise ConfigError(f"config is {type(config).__name__}, not a tensorstream.Config")
    return dataclasses.replace(config, **options)


def _as_text(compression: object) -> object:
    number = whole_number(compression)
    return compression if number is None else str(number)


def _check_choice(option: str, value: object, choices: dict[str, Any]) -> None:
    if not isinstance(value, str) or value not in choices:
        hint = _native.did_you_mean(str(value), list(choices))
        raise ConfigError(f"{option} is {value!r}{hint}; it can be {', '.join(choices)}")
