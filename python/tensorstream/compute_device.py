"""The device that a model computes on: the engine's and torch's, and what they hand each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tensorstream import _native
from tensorstream.exceptions import UnsupportedError
from tensorstream.host_rate import seconds_of_a_call
from tensorstream.interrupts import HeldBack
from tensorstream.nvidia_packages import compiler_folders, cufile_folders
from tensorstream.torch_pool import Memory, TorchMemory


class ComputeDevice:
    """A device of the engine and the torch device that is the same.

    Attributes:
        native: The engine's.
        torch_device: Torch's.
        is_host: Whether the model computes in host RAM: then weights that are in RAM are where they
            are needed.
    """

    def __init__(
        self, native: _native.Device, torch_device: torch.device, array_device: _native.ArrayDevice
    ) -> None:
        """`array_device` is what torch is told of the engine's memory."""
        self.native = native
        self.torch_device = torch_device
        self.is_host = array_device == _native.ArrayDevice.HOST
        self._on = (array_device, torch_device.index or 0)
        # The handle of the stream that the calling code computes on.
        self.stream: Callable[[], int] = _no_stream
        if torch_device.type == "cuda":
            self.stream = functools.partial(torch._C._cuda_getCurrentRawStream, self.index)
        # Called once a group is acquired, before anything computes with it.
        self.settle: Callable[[], object] | None = None

    def torch_memory(self) -> Memory | None:
        """Torch's allocator for the device; None where its allocations are not the engine's business."""
        return TorchMemory() if self.torch_device.type == "cuda" else None

    @functools.cached_property
    def link_bytes_per_second(self) -> float:
        """How fast host memory gets to the device: measured once, as plans predict by it."""
        if self.is_host:
            return self.native.measure_link()
        return _measured_link(self.native, self.index)

    @functools.cached_property
    def host_call_seconds(self) -> float | None:
        """What an operation of next to no work on a GPU, and some Python, take of this thread, once."""
        if self.torch_device.type != "cuda":
            return None
        return seconds_of_a_call(self.torch_device)

    def lease_functions(self, loans: object) -> _native.LeaseFunctions:
        """What a lease calls; `loans` is true where somebody may hold a weight's true value."""
        functions = _native.LeaseFunctions()
        functions.stream = self.stream
        if self.torch_device.type == "cpu":
            functions.prepare = torch.get_num_threads  # tells OpenMP its number for this thread
        else:
            functions.prepare = None
        functions.settle = self.settle
        functions.loans = loans
        functions.autocasts = torch.is_autocast_enabled  # of CUDA, unless another type is named
        if self.torch_device.type != "cuda":
            functions.autocasts = functools.partial(
                torch.is_autocast_enabled, self.torch_device.type
            )
        functions.clear_casts = torch.clear_autocast_cache
        functions.held_back = HeldBack
        return functions

    @property
    def compute_place(self) -> _native.ComputePlace:
        """Whose cores compute, for plans."""
        return _native.ComputePlace.HOST if self.is_host else _native.ComputePlace.ACCELERATOR

    @property
    def index(self) -> int:
        """The device's number."""
        return self.torch_device.index or 0

    def follow(self, stream: int | None) -> None:
        """Has later work of the calling code wait for what the stream of that handle holds now."""
        if stream is None or self.torch_device.type == "cpu" or stream == self.stream():
            return
        default = torch.cuda.default_stream(self.torch_device)
        other = torch.cuda.ExternalStream(stream, self.torch_device) if stream else default
        torch.cuda.current_stream(self.torch_device).wait_stream(other)

    def finish(self) -> None:
        """Waits for all work of the device."""
        if self.torch_device.type != "cpu":
            torch.cuda.synchronize(self.torch_device)

    def places(self, engine: _native.Engine, group: int) -> Iterator[torch.Tensor]:
        """The places of a group's tensors: uint8 (size_bytes,) on the device."""
        return (torch.from_dlpack(place) for place in engine.places(group, self._on))

    def place(self, engine: _native.Engine, group: int, position: int) -> torch.Tensor:
        """The place of one of them."""
        return torch.from_dlpack(engine.places(group, self._on)[position])

    def home(self, engine: _native.Engine, tensor: int, size_bytes: int) -> torch.Tensor | None:
        """A tensor's bytes in host memory, as the device sees them: uint8 (size_bytes,)."""
        array: Any = engine.home(tensor, size_bytes, self._on)
        return None if array is None else torch.from_dlpack(array)


def _no_stream() -> int:
    return 0


_links: dict[int, float] = {}


def _measured_link(native: _native.Device, index: int) -> float:
    if index not in _links:
        _links[index] = native.measure_link()
    return _links[index]


def is_made_of_parts(value: object) -> bool:
    """Whether it is a tensor of a class of its own that comes apart into others, by torch's protocol."""
    return type(value) not in (nn.Parameter, torch.Tensor) and is_traceable_wrapper_subclass(value)


def moves_itself(tensor: torch.Tensor) -> bool:
    """Whether its class moves more than its bytes, as bitsandbytes' weights do, and makes another object."""
    return not is_made_of_parts(tensor) and type(tensor).to is not torch.Tensor.to


def move(tensor: Any, device: torch.device) -> None:
    """Puts a tensor of a model, of any class, on `device`, its gradient too; it stays that object.

    Raises:
        UnsupportedError: It moves itself.
    """
    if is_made_of_parts(tensor):
        if tensor.device != device:  # it moves only where it is made anew
            moved = tensor.detach().to(device)
            if isinstance(tensor, nn.Parameter):
                moved = nn.Parameter(moved, tensor.requires_grad)
            torch.utils.swap_tensors(tensor, moved)
    elif tensor.device != device and moves_itself(tensor):  # guard: own-move
        raise UnsupportedError(
            f"a {type(tensor).__name__} moves in a way of its own, with what it keeps beside its bytes; have "
            f"the modules with such weights on {device}, where they stay, and the others in RAM, before you "
            "offload it"
        )
    else:
        tensor.data = tensor.data.to(device)
    move_gradient(tensor, device)


def move_gradient(tensor: torch.Tensor, device: torch.device) -> None:
    """Puts the gradient of a tensor, if it has one, on `device`."""
    if tensor.is_leaf and tensor.grad is not None and tensor.grad.device != device:
        tensor.grad.data = tensor.grad.data.to(device)


def check_available(device: torch.device) -> None:
    """Raises UnsupportedError where `device` is a GPU and torch sees none."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"device '{device}' is asked for, and this torch ({torch.__version__}) sees no GPU: install "
            "a CUDA build of torch and a driver, or use device='cpu'"
        )


def open_device(device: torch.device, self_check: bool) -> ComputeDevice:
    """The engine's device for `device`.

    Raises:
        UnsupportedError: Torch or the driver has no such device here.
        ConfigError: There are fewer GPUs.
    """
    checking = _native.Checking.ON if self_check else _native.Checking.OFF
    if device.type == "cpu":
        native = _native.host_device(checking, 0)
        return ComputeDevice(native, torch.device("cpu"), _native.ArrayDevice.HOST)
    check_available(device)
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    cufile = _native.CufilePlaces()
    cufile.folders = cufile_folders()
    native = _native.cuda_device(
        index, checking, 0, compiler_folders=compiler_folders(), cufile=cufile
    )
    return ComputeDevice(native, torch.device("cuda", index), _native.ArrayDevice.CUDA)
