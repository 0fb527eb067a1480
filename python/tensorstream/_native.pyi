"""TensorStream's engine."""

from collections.abc import Callable, Sequence
import enum
from typing import Annotated

import numpy
from numpy.typing import NDArray


version: str = '0.1.0'

def set_leak_warnings(on: bool) -> None:
    """Whether objects alive at the interpreter's end are reported."""

def replace_handled(exception: object) -> None:
    """
    Makes a bare `raise` of the callers raise this exception and not the one they handle.
    """

def restarts_calls(signal: int) -> bool:
    """Whether the system goes on with a call after a handler of that signal."""

def parse_size(text: str, option: str, whole_bytes: int) -> int:
    """
    Bytes of a size given as text; `whole_bytes` is what a percentage is of.
    """

def format_size(size_bytes: int) -> str:
    """A size as text for people."""

def did_you_mean(name: str, known: Sequence[str]) -> str:
    """
    ' (did you mean ...?)' with the nearest of some names, or an empty text.
    """

class FileBacking:
    @property
    def path(self) -> str: ...

    @property
    def offset_bytes(self) -> int: ...

    def is_read_by(self, reader: Reader) -> bool:
        """Whether a reader reads that file, in the state in which it was found."""

def find_file_backing(address: int, size_bytes: int) -> FileBacking | None:
    """The file whose unmodified bytes lie at an address, or None."""

class ResidentSize:
    @property
    def now_bytes(self) -> int: ...

    @property
    def peak_bytes(self) -> int: ...

def resident_size() -> ResidentSize | None:
    """Resident bytes of this process now and at its peak, or None."""

def usable_ram_bytes() -> int:
    """RAM of the machine, or of the cgroup where that is less."""

def available_ram_bytes() -> int:
    """RAM that is free for this process now."""

class LogLevel(enum.IntEnum):
    DEBUG = 0

    INFO = 1

    WARNING = 2

    ERROR = 3

def set_log_sink(sink: Callable) -> None:
    """Hands the engine's messages to sink(level, message)."""

def drop_log_sink() -> None:
    """Drops the engine's messages from now on."""

class HeldFile:
    def __init__(self, path: str) -> None: ...

    def is_read_by(self, reader: Reader) -> bool:
        """Whether a reader reads that file, in the state in which it was before."""

    @property
    def is_leased(self) -> bool:
        """Whether whoever wants to write to it waits."""

    def let_go(self) -> None:
        """Whoever waits to write to it goes on."""

class CheckpointTensor:
    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> list[int]: ...

    @property
    def torch_shape(self) -> list[int]: ...

    @property
    def offset_bytes(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def file(self) -> int: ...

class WantedTensor:
    pass

def wanted_tensor(names: Sequence[str], dtype: str, shape: Sequence[int]) -> WantedTensor:
    """What a model says of one of its tensors."""

class Checkpoint:
    @staticmethod
    def open(path: str) -> Checkpoint:
        """Opens and checks a safetensors file, index or folder."""

    @property
    def files(self) -> list[str]: ...

    def is_read_by(self, file: int, reader: Reader) -> bool:
        """
        Whether a reader reads the file of that number, in the state in which its header was read.
        """

    @property
    def packed(self) -> bool: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def tensors(self) -> list[CheckpointTensor]: ...

    def match(self, wanted: Sequence[WantedTensor]) -> list[CheckpointTensor]:
        """
        The checkpoint's tensor for each wanted one, prefixes and ties resolved.
        """

CACHE_LINE_BYTES: int = 64

LARGEST_BUDGET_BYTES: int = 1152921504606846976

def default_budget_bytes(available_bytes: int) -> int:
    """The budget where the user gives none."""

def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements fill their bytes exactly once."""

class Placement(enum.Enum):
    RESIDENT = 0

    RESIDENT_CODED = 1

    STREAMED = 2

    ON_DEMAND = 3

class Group:
    @property
    def name(self) -> str: ...

    @property
    def tensors(self) -> list[int]: ...

class HookedModule:
    @property
    def module(self) -> int: ...

    @property
    def groups(self) -> list[int]: ...

class Grouping:
    @property
    def groups(self) -> list[Group]: ...

    @property
    def hooks(self) -> list[HookedModule]: ...

class Plan:
    @property
    def placements(self) -> list[Placement]: ...

    @property
    def from_disk(self) -> list[bool]: ...

    @property
    def homeless_groups(self) -> int: ...

    @property
    def disk_bytes(self) -> int: ...

    @property
    def home_bytes(self) -> int: ...

    @property
    def budget_bytes(self) -> int: ...

    @property
    def resident_bytes(self) -> int: ...

    @property
    def kept_bytes(self) -> int: ...

    @property
    def kept_weights_bytes(self) -> int: ...

    @property
    def arena_bytes(self) -> int: ...

    @property
    def streamed_bytes(self) -> int: ...

    @property
    def link_bytes(self) -> int: ...

    @property
    def ring_bytes(self) -> int: ...

    @property
    def on_demand_bytes(self) -> int: ...

    @property
    def smallest_budget_bytes(self) -> int: ...

    @property
    def everything_fits_bytes(self) -> int: ...

    @property
    def exposed_loads(self) -> int: ...

    @property
    def predicted_seconds(self) -> float: ...

    @property
    def bound(self) -> str: ...

class ModelPlan:
    @property
    def grouping(self) -> Grouping: ...

    @property
    def plan(self) -> Plan: ...

class KnownRates:
    def __init__(self, link_bytes_per_second: float | None = None, disk_bytes_per_second: float | None = None, host_call_seconds: float | None = None) -> None: ...

class BackendChoice:
    @property
    def backend(self) -> FileBackend: ...

    @property
    def reason(self) -> str: ...

class RamRoom:
    def __init__(self, available_bytes: int, file_bytes: int) -> None: ...

    @property
    def available_bytes(self) -> int: ...

    @property
    def file_bytes(self) -> int: ...

def ram_room() -> RamRoom:
    """RAM that is free for this process, and the page cache in it."""

class CachedFiles:
    def __init__(self, file_bytes: int, cached_bytes: int) -> None: ...

    @property
    def file_bytes(self) -> int: ...

    @property
    def cached_bytes(self) -> int: ...

def cached_files(paths: Sequence[str]) -> CachedFiles:
    """What the page cache has of files."""

def choose_backend(plan: Plan, place: ComputePlace, room: RamRoom, files: CachedFiles, gpudirect: ProbeResult) -> BackendChoice:
    """How files are read where nobody says it."""

def measure_disk(path: str) -> float | None:
    """
    Bytes a second that a file is read at past the page cache; None where that is not to be had.
    """

class ModelTree:
    def __init__(self) -> None: ...

    def add_module(self, name: str, type: int, parent: int, container: bool, looks_up_rows: bool) -> int:
        """Adds a module, parents first; the first is the root. Returns its id."""

    def add_tensor(self, name: str, dtype: str, size_bytes: int, line_offset_bytes: int) -> int:
        """
        Adds a tensor, which begins there within a cache line in the model's memory. Returns its id.
        """

    def hold(self, module: int, tensor: int) -> None:
        """Says that a module holds a tensor itself."""

    def add_extent(self, tensor: int, source: int, offset_bytes: int, size_bytes: int) -> None:
        """Appends a piece of a source to a tensor's bytes."""

    def keep_resident(self, name: str) -> None:
        """Keeps a module or tensor resident in every plan."""

    def add_fixed_bytes(self, size_bytes: int) -> None:
        """Bytes that stay on the device whatever the plan."""

    def size_bytes(self, tensors: Sequence[int]) -> int:
        """Bytes of some tensors."""

    def dtypes(self, tensors: Sequence[int]) -> list[str]:
        """Element types of some tensors, as torch has them."""

    @property
    def weights_bytes(self) -> int: ...

    @property
    def fixed_bytes(self) -> int: ...

    def group(self) -> Grouping:
        """The model's groups by structure alone."""

    def note_frames(self, tensor: int, size_bytes: int) -> None:
        """
        Says about what a tensor's frames take in its file; 0 where it lies there as it is.
        """

    def note_in_ram(self, tensor: int) -> None:
        """Says that a tensor's bytes are in RAM, and in no file."""

    @property
    def pinned_sources(self) -> list[int]:
        """Which sources are files in RAM that the device copies from by itself."""

    @pinned_sources.setter
    def pinned_sources(self, arg: Sequence[int], /) -> None: ...

    def plan(self, budget_bytes: int, prefetch: Prefetch, place: ComputePlace, known: KnownRates = ..., compression: int | None = 0, ram_budget_bytes: int | None = None) -> ModelPlan:
        """Groups and plans the model for a budget."""

class Device:
    @property
    def name(self) -> str: ...

    @property
    def total_bytes(self) -> int: ...

    @property
    def free_bytes(self) -> int: ...

    def measure_link(self) -> float:
        """
        Bytes a second from pinned host memory to the device; what plans assume for a host.
        """

    def synchronize(self) -> None:
        """Waits for the work of the default stream."""

class CufilePlaces:
    def __init__(self) -> None: ...

    @property
    def library(self) -> str: ...

    @library.setter
    def library(self, arg: str, /) -> None: ...

    @property
    def folders(self) -> list[str]: ...

    @folders.setter
    def folders(self, arg: Sequence[str], /) -> None: ...

    @property
    def nvidia_fs(self) -> str: ...

    @nvidia_fs.setter
    def nvidia_fs(self, arg: str, /) -> None: ...

class Checking(enum.Enum):
    OFF = 0

    ON = 1

def host_device(checking: Checking, seed: int) -> Device:
    """The host as a device."""

def cuda_device(index: int, checking: Checking, seed: int, driver_library: str = 'libcuda.so.1', compiler_library: str = '', compiler_folders: Sequence[str] = [], cufile: CufilePlaces = ...) -> Device:
    """
    A GPU, by its driver's number; tests give another driver, compiler of kernels and cuFile.
    """

class ArrayDevice(enum.Enum):
    HOST = 0

    CUDA = 1

class Budget:
    @property
    def limit_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int: ...

    @property
    def peak_bytes(self) -> int: ...

def create_budget(limit_bytes: int) -> Budget:
    """A ceiling that engines share."""

class FileBackend(enum.Enum):
    MMAP = 0

    PREAD = 1

    DIRECT = 2

    IO_URING = 3

    CACHED = 4

    CUDA = 5

    GPUDIRECT = 6

class ProbeResult:
    def __init__(self, is_usable: bool, is_peer_to_peer: bool, reason: str) -> None: ...

    @property
    def is_usable(self) -> bool: ...

    @property
    def is_peer_to_peer(self) -> bool: ...

    @property
    def reason(self) -> str: ...

def probe(backend: FileBackend, device: Device | None) -> ProbeResult:
    """
    Whether files can be read so for a model on the device, and how or why not.
    """

def probe_peer_to_peer(device: Device) -> ProbeResult:
    """
    The same of gpudirect, for a choice that takes it where the disk writes to device memory itself.
    """

class Reader:
    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def is_pinned(self) -> bool:
        """Whether it is a file in RAM that the device copies from by itself."""

    def frame_bytes(self, offset_bytes: int, size_bytes: int) -> int:
        """
        About what frames take that the source has of a range; 0 where it has its bytes as they are.
        """

    def is_of_file_of(self, other: Reader) -> bool:
        """Whether both read one file, in one state."""

    def read(self, offset_bytes: int, address: int, size_bytes: int) -> None:
        """Fills the memory at `address` with the source's bytes."""

def open_packed_reader(path: str) -> Reader:
    """A source that is a packed file; offsets are those of the file it was."""

class FileOpener:
    def __init__(self, backend: FileBackend, device: Device | None = None) -> None: ...

    @property
    def about(self) -> str: ...

    @property
    def device_memory_bytes(self) -> int: ...

    def open(self, path: str) -> Reader:
        """A source that is a file."""

    def open_packed(self, path: str) -> Reader:
        """A source that is a packed file; offsets are those of the file it was."""

def create_memory_reader(name: str, address: int, size_bytes: int, owner: object) -> Reader:
    """A source that is memory which `owner` keeps alive."""

class Prefetch(enum.Enum):
    NONE = 0

    NEXT = 1

    AHEAD = 2

    READ_AHEAD = 3

    ADAPTIVE = 4

class ComputePlace(enum.Enum):
    HOST = 0

    ACCELERATOR = 1

def prefetch_for(prefetch: Prefetch, backend: FileBackend) -> Prefetch:
    """What a prefetch means for files that are read so."""

ACTIVATION_SHARE: float = 0.125

class ResidentUse(enum.Enum):
    SETTLED = 0

    LEASED = 1

class EngineOptions:
    def __init__(self) -> None: ...

    @property
    def residents(self) -> ResidentUse: ...

    @residents.setter
    def residents(self, arg: ResidentUse, /) -> None: ...

    @property
    def reserved_share(self) -> float: ...

    @reserved_share.setter
    def reserved_share(self, arg: float, /) -> None: ...

    @property
    def link_bytes_per_second(self) -> float: ...

    @link_bytes_per_second.setter
    def link_bytes_per_second(self, arg: float, /) -> None: ...

    @property
    def host_call_seconds(self) -> float: ...

    @host_call_seconds.setter
    def host_call_seconds(self, arg: float, /) -> None: ...

    @property
    def disk_bytes_per_second(self) -> float: ...

    @disk_bytes_per_second.setter
    def disk_bytes_per_second(self, arg: float, /) -> None: ...

    @property
    def prefetch(self) -> Prefetch: ...

    @prefetch.setter
    def prefetch(self, arg: Prefetch, /) -> None: ...

    @property
    def ram_budget(self) -> Budget: ...

    @ram_budget.setter
    def ram_budget(self, arg: Budget, /) -> None: ...

    @property
    def compression(self) -> int | None:
        """A level from 1 to 9, 0 for not at all, None for what pays."""

    @compression.setter
    def compression(self, arg: int | None, /) -> None: ...

class CompressionStatistics:
    @property
    def level(self) -> int: ...

    @property
    def coded_bytes(self) -> int: ...

    @property
    def decoded_bytes(self) -> int: ...

    @property
    def reason(self) -> str: ...

    @property
    def ratio(self) -> float: ...

class Statistics:
    @property
    def budget_bytes(self) -> int: ...

    @property
    def held_bytes(self) -> int: ...

    @property
    def peak_held_bytes(self) -> int: ...

    @property
    def kept_bytes(self) -> int: ...

    @property
    def source_ram_bytes(self) -> int: ...

    @property
    def pinned_bytes(self) -> int: ...

    @property
    def staging_bytes(self) -> int: ...

    @property
    def ram_budget_bytes(self) -> int: ...

    @property
    def ram_held_bytes(self) -> int: ...

    @property
    def peak_ram_held_bytes(self) -> int: ...

    @property
    def read_ahead_bytes(self) -> int: ...

    @property
    def compression(self) -> CompressionStatistics: ...

    @property
    def given_way_bytes(self) -> int: ...

    @property
    def gave_way(self) -> int: ...

    @property
    def acquires(self) -> int: ...

    @property
    def hits(self) -> int: ...

    @property
    def partial_hits(self) -> int: ...

    @property
    def misses(self) -> int: ...

    @property
    def surprises(self) -> int: ...

    @property
    def loads(self) -> int: ...

    @property
    def streamed_bytes(self) -> int: ...

    @property
    def streamed_ram_bytes(self) -> int: ...

    @property
    def streamed_disk_bytes(self) -> int: ...

    @property
    def decoded_bytes(self) -> int: ...

    @property
    def kept_decoded_bytes(self) -> int: ...

    @property
    def on_demand_bytes(self) -> int: ...

    @property
    def load_seconds(self) -> float: ...

    @property
    def stalled_seconds(self) -> float: ...

    @property
    def active_seconds(self) -> float: ...

    @property
    def host_seconds(self) -> float: ...

    @property
    def predicted_seconds(self) -> float: ...

    @property
    def streamed_bytes_per_second(self) -> float: ...

    @property
    def stalled_share(self) -> float: ...

class Engine:
    def __init__(self, device: Device, budget: Budget, tree: ModelTree, grouping: Grouping, sources: Sequence[Reader], options: EngineOptions) -> None: ...

    def places(self, group: int, on: tuple[ArrayDevice, int]) -> list[Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C')]]:
        """
        One uint8 array a tensor of a group: its device memory, valid while the group is leased or resident.
        """

    def acquire(self, group: int, stream: int = 0) -> int:
        """
        Takes a lease for work of a stream, and gives the number of the group's place; 0, and no lease, where it has none now.
        """

    def release(self, group: int, stream: int = 0) -> None: ...

    def on_lease(self, group: int, stream: int, call: Callable) -> object:
        """
        What call() gives while a lease of the group is held for a stream, whatever it raises; None, and no call, where the group has no place now.
        """

    def place_number(self, group: int) -> int:
        """Another one each time that the group's place moves."""

    def has_own_place(self, group: int) -> bool:
        """Whether no other group shares the group's place."""

    @property
    def place_moves(self) -> int: ...

    def release_all(self, stream: int = 0) -> None: ...

    def settled(self, group: int) -> bool:
        """Whether a group is resident and used without leases."""

    def settled_under(self, limit_bytes: int) -> list[bool]:
        """Which groups set_budget() would settle."""

    def set_budget(self, limit_bytes: int, check: Callable) -> None:
        """
        Moves the ceiling and the groups with it; nobody uses the engine meanwhile, but leases that others have are waited for. `check` is called often then, and may raise.
        """

    def give_way(self, wanted_bytes: int) -> int:
        """Frees bytes of leased residents; returns how many."""

    def take_back(self, spared_bytes: int) -> int:
        """
        Makes residents that gave way resident again where so much stays free; returns how many bytes.
        """

    def ceiling(self, pressure: Pressure, device_index: int) -> Ceiling:
        """The ceiling over what torch allocates in this engine's forwards."""

    def bring_home(self, group: int) -> None:
        """
        Moves a group's bytes into pinned host memory, from which it is loaded.
        """

    def groups_to_bring_home(self) -> list[int]:
        """
        The groups to bring home, as far as host memory has room, the most useful first.
        """

    def plan_anew(self) -> bool:
        """
        Plans anew by what homes turned out to take; False where nothing was changed.
        """

    def home(self, tensor: int, size_bytes: int, on: tuple[ArrayDevice, int]) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C')] | None:
        """A tensor's bytes in its group's home, as kernels see them, or None."""

    def note_write(self, tensor: int, stream: int) -> None:
        """Says that work of a stream writes to a tensor's home."""

    def read_tensor(self, tensor: int, address: int, size_bytes: int) -> None:
        """Writes a tensor's true bytes to host memory."""

    def read_rows(self, tensor: int, indices: int, count: int, row_bytes: int, address: int) -> None:
        """
        Writes rows of a tensor, given as int64 indices by address, to host memory.
        """

    def holds(self, tensor: int, address: int, size_bytes: int) -> bool:
        """Whether host memory equals a tensor's true bytes."""

    def replace_tensor(self, tensor: int, address: int, size_bytes: int, owner: object) -> None:
        """Makes host memory a tensor's bytes."""

    @property
    def plan(self) -> Plan: ...

    def statistics(self) -> Statistics: ...

class Pressure(enum.Enum):
    STRICT = 0

    ADAPTIVE = 1

    LENIENT = 2

class Refusal:
    @property
    def message(self) -> str: ...

    @property
    def needed_bytes(self) -> int: ...

    @property
    def budget_bytes(self) -> int: ...

class CeilingStatistics:
    @property
    def torch_bytes(self) -> int: ...

    @property
    def peak_torch_bytes(self) -> int: ...

    @property
    def beyond_bytes(self) -> int: ...

    @property
    def refusals(self) -> int: ...

class Ceiling:
    def enter(self) -> None:
        """From here on torch's requests of this thread are charged here."""

    def leave(self) -> None: ...

    def keep_for_small_segments(self) -> None:
        """
        Leaves room for what torch gives no large block back for: it splits none from here on.
        """

    def take_refusal(self) -> Refusal | None:
        """Why a request was refused since this was asked, or None."""

    def forward_ended(self) -> bool:
        """
        Lets residents come back where it is time; whether torch is to give memory back.
        """

    def statistics(self) -> CeilingStatistics: ...

def encode_tensor(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], dtype: str, level: int, threads: int = 1) -> bytes:
    """The frames of a tensor's bytes at a compression level of 0 to 9."""

def decode_tensor(frames: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], size_bytes: int, threads: int = 1, path: str = 'memory', tensor: str = '') -> bytes:
    """
    A tensor's bytes from its frames; a FormatError names path, tensor, frame and chunk.
    """

class CheckpointSummary:
    @property
    def files(self) -> int: ...

    @property
    def tensors(self) -> int: ...

    @property
    def encoded_tensors(self) -> int: ...

    @property
    def original_bytes(self) -> int: ...

    @property
    def stored_bytes(self) -> int: ...

def pack_checkpoint(source: str, target: str, level: int, threads: int, progress: Callable[[int, int], None]) -> CheckpointSummary:
    """Packs a checkpoint into a new folder; 0 threads are one a processor."""

def unpack_checkpoint(source: str, target: str, threads: int, progress: Callable[[int, int], None]) -> CheckpointSummary:
    """Gives back the files of a packed checkpoint in a new folder."""

def verify_checkpoint(path: str, threads: int, progress: Callable[[int, int], None]) -> CheckpointSummary:
    """Checks a checkpoint, packed or not."""

class Uncompiled:
    def __init__(self, function: object, set_eval_frame: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> object: ...

def keep_waiting_threads() -> None:
    """As Python ends: has threads that wait for a model wait for good."""

class Session:
    def __init__(self, reclaim: object, waits_for_caller: object) -> None: ...

    def enter(self, frame: object) -> bool:
        """
        Waits until no other thread runs the model, and takes it for the forward of `frame`; whether that is in no other.
        """

    def enter_alone(self, frame: object) -> bool:
        """
        The same, for what cannot be done in the midst of a forward: False, and nothing is done, where this thread runs one, or runs for one.
        """

    def end_abandoned(self) -> None:
        """Ends a forward that will never run its post-hooks, if there is one."""

    def is_outermost(self, frame: object) -> bool:
        """
        Whether this thread runs the model, and the forward of `frame` is in no other.
        """

    def leave(self, frame: object) -> bool:
        """Ends the forward of `frame`. False where it was given up before."""

def calls_of_threads(names: tuple, file: str, marked: object) -> list:
    """
    Of each thread that runs Python its number, and the innermost first `self` of each call of a function of that file and one of those names, and the code `marked` where it runs.
    """

class SavedStack:
    def __init__(self, pack: object, unpack: object, takes: object, push: object, pop: object, top: object) -> None: ...

    def push(self, lent: object) -> bool:
        """
        Makes autograd of this thread use the hooks for `lent` too; False where it takes none.
        """

    def pop(self, lent: object, pushed: bool) -> None:
        """Ends the last push() of `lent`."""

    @property
    def outer(self) -> object:
        """The pair that autograd would use here without ours, or None."""

    @property
    def lent(self) -> list:
        """What is lent, the last lent last."""

class ParameterTypes:
    def __init__(self, lent: type, parked: type, data: object, version: object, mark: str, use_count: object, plainly: object, address: object) -> None: ...

class LentParameters:
    def __init__(self, types: ParameterTypes, group: int, parameters: list, weights: list, poisons: list, wrappers: list) -> None: ...

    @property
    def group(self) -> int: ...

    @property
    def place_number(self) -> int:
        """Of the place that the views are on; 0 for none."""

    @property
    def stays(self) -> bool:
        """Whether it is on its place between uses."""

    @property
    def addresses(self) -> dict: ...

    @property
    def depth(self) -> int:
        """Of leases, which nest."""

    @depth.setter
    def depth(self, arg: int, /) -> None: ...

    @property
    def hooked(self) -> bool: ...

    def set_place(self, place_number: int, stays: bool, views: list, storages: list, handles: list, addresses: dict, lie_apart: bool) -> None:
        """Takes views on a place."""

    def lend(self) -> int:
        """
        Puts parked parameters on the views; how many, up to the first that is not parked.
        """

    def note_exchanged(self, position: int, is_exchanged: bool) -> None:
        """Whether a lent parameter lies elsewhere than on its view."""

    def changed(self) -> list[int]:
        """
        Positions of lent parameters that are of another version or weight, or lie elsewhere.
        """

    def park(self, changed: Sequence[int]) -> None:
        """Parks lent parameters."""

    def leave_place(self) -> None:
        """Takes the bytes away from parked parameters that stay on a place."""

    def forget_place(self) -> None: ...

    def escaped(self) -> list[int]:
        """
        Positions of parked weights of whose bytes on the place somebody else holds a view.
        """

    def other_holders(self, position: int) -> int:
        """How many others hold the storage of a view."""

class LeaseFunctions:
    def __init__(self) -> None: ...

    @property
    def stream(self) -> object: ...

    @stream.setter
    def stream(self, arg: object, /) -> None: ...

    @property
    def prepare(self) -> object: ...

    @prepare.setter
    def prepare(self, arg: object | None, /) -> None: ...

    @property
    def settle(self) -> object: ...

    @settle.setter
    def settle(self, arg: object | None, /) -> None: ...

    @property
    def loans(self) -> object: ...

    @loans.setter
    def loans(self, arg: object, /) -> None: ...

    @property
    def autocasts(self) -> object: ...

    @autocasts.setter
    def autocasts(self, arg: object, /) -> None: ...

    @property
    def clear_casts(self) -> object: ...

    @clear_casts.setter
    def clear_casts(self, arg: object, /) -> None: ...

    @property
    def held_back(self) -> object: ...

    @held_back.setter
    def held_back(self, arg: object, /) -> None: ...

class Leases:
    def __init__(self, owner: object, engine: object, session: object, saved: object, functions: LeaseFunctions) -> None: ...

    def abandon(self, groups: list) -> None:
        """
        Parks groups that an abandoned forward had lent, gives back all leases, and keeps what it wrote.
        """

    def renew(self, session: object) -> None:
        """Takes another session, in a forked child."""

    def let_go(self) -> None:
        """Lets the engine go; nothing is leased any more."""

    @property
    def last_stream(self) -> int | None:
        """The stream of the last lease, or None."""

class Unit:
    def __init__(self, leases: object, groups: list, module_code: str, refuse_tracing: object, set_eval_frame: object) -> None: ...

    @property
    def groups(self) -> list: ...

    @groups.setter
    def groups(self, arg: list, /) -> None: ...

    @property
    def attached(self) -> bool:
        """False once its hooks are taken off."""

    @attached.setter
    def attached(self, arg: bool, /) -> None: ...

    def before(self, module: object, args: object) -> None:
        """The pre-hook: leases the groups."""

    def begin(self, module: object, args: object) -> None:
        """
        The same for a call that may not have seen the pre-hook; once for each.
        """

    def after(self, module: object, args: object, output: object | None) -> object:
        """
        The post-hook: gives them back; the output without views of their places, or None.
        """

    def forget(self) -> None:
        """Drops what an abandoned forward left."""
