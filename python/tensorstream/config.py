"""What the user said: options, checked and resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from tensorstream import _native
from tensorstream.exceptions import ConfigError, UnsupportedError

Size = int | str

PREFETCH = {
    "adaptive": _native.Prefetch.ADAPTIVE,
    "aggressive": _native.Prefetch.AHEAD,
    "next": _native.Prefetch.NEXT,
    "none": _native.Prefetch.NONE,
}
BACKENDS = {"auto": _native.FileBackend.PREAD, "mmap": _native.FileBackend.MMAP}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `offload` and `from_pretrained`.

    Attributes:
        device: Where the model computes: "cpu", or None for the default, which is the CPU too.
        vram_budget: Device memory for a GPU, in bytes or as "4GiB", "500MB", "60%". Not for the CPU.
        ram_budget: RAM that weights may take when the device is the CPU, in the same forms. None
            takes what is available less 1 GiB.
        backend: How files are read: "auto" reads them by pread; "mmap" maps them, for files that nobody
            truncates while the model is in use.
        prefetch: "aggressive" loads as far ahead as the budget has room for, "next" one group, "none"
            nothing. "adaptive" is the same as "aggressive" on a GPU; on the CPU, whose cores a copy
            ahead would take from the model, groups are loaded when they are used, by the threads
            that compute, and the disk is asked for the next ones.
        keep_resident: Names of modules or parameters, or their prefixes up to a dot, that stay on
            the device in every plan.
        self_check: Takes the access rights of weights that nobody uses, poisons what is stale and
            delays loads at random: slow, and a fault shows instead of a wrong number.
    """

    device: str | torch.device | None = None
    vram_budget: Size | None = None
    ram_budget: Size | None = None
    backend: str = "auto"
    prefetch: str = "adaptive"
    keep_resident: Sequence[str] = ()
    self_check: bool = False

    def __post_init__(self) -> None:
        """Checks each option by itself."""
        _check_choice("prefetch", self.prefetch, PREFETCH)
        _check_choice("backend", self.backend, BACKENDS)
        names = self.keep_resident
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"keep_resident is {names!r}; give a sequence of names")
        if isinstance(names, str):
            raise ConfigError(f"keep_resident is one text, {names!r}; give ({names!r},)")
        device = self.torch_device
        if device.type != "cpu":
            raise UnsupportedError(
                f"device '{device}' is not supported by this version, which runs on 'cpu'"
            )
        if self.vram_budget is not None:
            raise ConfigError(
                "vram_budget is given, but the device is 'cpu', whose budget is ram_budget"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device that the model computes on."""
        try:
            return torch.device(self.device if self.device is not None else "cpu")
        except RuntimeError as error:
            raise ConfigError(f"device: {error}") from error

    def plan(self, tree: _native.ModelTree, budget_bytes: int) -> _native.ModelPlan:
        """Groups and a plan for a model on this device."""
        on_cpu = self.torch_device.type == "cpu"
        place = _native.ComputePlace.HOST if on_cpu else _native.ComputePlace.ACCELERATOR
        return tree.plan(budget_bytes, PREFETCH[self.prefetch], place)

    def budget_bytes(self) -> int:
        """The budget in bytes, for the device as it is now."""
        budget = self.ram_budget
        if budget is None:
            return _native.default_budget_bytes()
        if isinstance(budget, bool) or not isinstance(budget, int | str):
            raise ConfigError(f"ram_budget is {budget!r}; give bytes or text like '4GiB'")
        return _native.parse_size(str(budget), "ram_budget", _native.usable_ram_bytes())


def make_config(config: Config | None, options: dict[str, Any]) -> Config:
    """The given config, or one made of keyword options, with the options of both merged.

    Raises:
        ConfigError: An option is unknown; the message names the nearest one.
    """
    known = [field.name for field in dataclasses.fields(Config)]
    for name in options:
        if name not in known:
            hint = _native.did_you_mean(name, known)
            raise ConfigError(f"unknown option '{name}'{hint}; the options are {', '.join(known)}")
    if config is None:
        return Config(**options)
    if not isinstance(config, Config):
        raise ConfigError(f"config is {type(config).__name__}, not a tensorstream.Config")
    return dataclasses.replace(config, **options)


def _check_choice(option: str, value: object, choices: dict[str, Any]) -> None:
    if value not in choices:
        hint = _native.did_you_mean(str(value), list(choices))
        raise ConfigError(f"{option} is {value!r}{hint}; it can be {', '.join(choices)}")
