"""DFloat11's code and kernel, as its own package has them: nothing of it is copied here.

The package (PyPI dfloat11, with dahuffman) is imported without its front, which needs cupy; its kernel is
loaded by the CUDA driver itself. Its encoder is a loop over elements in Python; `pack` puts the same codes
one behind the other for a block of 200 million, and is held against that encoder by the benchmark.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

THREADS = 512
BYTES_PER_THREAD = 8
_CELL_BITS = 8 * BYTES_PER_THREAD  # of a thread
_WORD_BITS = 32  # codes are no longer
_STEP = 1 << 24  # elements packed at a time
_MOST_SHARED_BYTES = 48 * 1024  # that a kernel has without being told
_MAX_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

# Of each symbol, and of the end: how many bits, and which.
Table = dict[Any, tuple[int, int]]
Launch = Callable[[int], None]


class Package:
    """The installed package: its functions and its kernel."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("dfloat11")
        if found is None or not found.submodule_search_locations:
            raise SystemExit(
                "dfloat11 is not installed: pip install --no-deps dfloat11==0.5.0 dahuffman==0.4.2"
            )
        folder = Path(next(iter(found.submodule_search_locations)))
        self.kernel = (folder / "decode.ptx").read_bytes()
        spec = importlib.util.spec_from_file_location(
            "dfloat11_utils", folder / "dfloat11_utils.py"
        )
        assert spec is not None
        assert spec.loader is not None
        self.functions: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.functions)

    def codec(self, weights: torch.Tensor) -> tuple[Any, Table, torch.Tensor]:
        """The codec of bf16 weights, its table, and the tables that the kernel looks codes up in."""
        with contextlib.redirect_stdout(io.StringIO()):
            _, counts = self.functions.get_codec(weights)
            codec, _, table = self.functions.get_32bit_codec(counts)
            return codec, table, self.functions.get_luts(table)

    def encode(self, weights: torch.Tensor, codec: Any) -> Packed:
        """What its own encoder makes of bf16 weights."""
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            codes, rest, positions, gaps, _ = self.functions.encode_weights(
                [weights.flatten()], codec, BYTES_PER_THREAD, THREADS
            )
        return Packed(codes, rest, positions.view(torch.int32), gaps)


@dataclasses.dataclass
class Packed:
    """Encoded weights: exponents as codes, the rest as bytes, and where threads and blocks begin."""

    codes: torch.Tensor
    rest: torch.Tensor
    positions: torch.Tensor
    gaps: torch.Tensor

    @property
    def nbytes(self) -> int:
        """What they take, the tables apart."""
        return sum(part.nbytes for part in self.parts())

    def parts(self) -> tuple[torch.Tensor, ...]:
        """In the order of the kernel's arguments."""
        return self.codes, self.rest, self.positions, self.gaps

    def same(self, other: Packed) -> bool:
        """Whether both are equal to the last bit."""
        return all(
            torch.equal(one.cpu().view(torch.uint8), another.cpu().view(torch.uint8))
            for one, another in zip(self.parts(), other.parts(), strict=True)
        )

    @property
    def shared_bytes(self) -> int:
        """What a block of the kernel needs beside its registers."""
        between = self.positions[1:] - self.positions[:-1]
        return THREADS * 4 + 4 + 2 * int(between.max())

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        return Packed(*(part.to(device) for part in self.parts()))


def pack(weights: torch.Tensor, table: Table) -> Packed:
    """What Package.encode() makes of bf16 weights, on the device that they are on."""
    bits = weights.flatten().view(torch.int16)
    exponents = (bits >> 7) & 0xFF
    rest = ((bits >> 8) & 0x80 | (bits & 0x7F)).to(torch.uint8)
    lengths = torch.zeros(256, dtype=torch.int64)
    codes = torch.zeros(256, dtype=torch.int64)
    for symbol, (length, code) in table.items():
        if isinstance(symbol, int):
            lengths[symbol], codes[symbol] = length, code
    lengths, codes = lengths.to(bits.device), codes.to(bits.device)
    counts = torch.bincount(exponents.to(torch.int64), minlength=256)
    total = int((counts * lengths).sum())
    words = torch.zeros(total // _WORD_BITS + 3, dtype=torch.int64, device=bits.device)
    gaps: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    begin = 0
    cell = block = -1
    for first in range(0, exponents.numel(), _STEP):
        symbols = exponents[first : first + _STEP].to(torch.int64)
        ends = torch.cumsum(lengths[symbols], 0) + begin
        starts = ends - lengths[symbols]
        _put(words, starts, lengths[symbols], codes[symbols])
        opens = _firsts(starts // _CELL_BITS, cell)
        gaps.append(starts[opens] % _CELL_BITS)
        opens = _firsts(starts // (_CELL_BITS * THREADS), block)
        positions.append(opens.nonzero().flatten() + first)
        begin = int(ends[-1])
        cell = int(starts[-1]) // _CELL_BITS
        block = int(starts[-1]) // (_CELL_BITS * THREADS)
    assert begin == total
    if total % 8:  # the end's first bits fill up the last byte
        room = 8 - total % 8
        length, code = next(table[symbol] for symbol in table if not isinstance(symbol, int))
        code = code >> (length - room) if length >= room else code << (room - length)
        at = torch.tensor([total], device=bits.device)
        _put(words, at, torch.full_like(at, room), torch.full_like(at, code))
        if total // _CELL_BITS > cell:
            gaps.append(at % _CELL_BITS)
        if total // (_CELL_BITS * THREADS) > block:
            positions.append(torch.full_like(at, exponents.numel()))
    positions.append(torch.tensor([exponents.numel()], device=bits.device))
    size = (total + 7) // 8
    encoded = torch.stack([(words >> shift) & 0xFF for shift in (24, 16, 8, 0)], dim=1)
    return Packed(
        encoded.to(torch.uint8).flatten()[:size].contiguous(),
        rest,
        torch.cat(positions).to(torch.int32).cpu(),
        _gap_bytes(torch.cat(gaps).cpu().numpy(), size),
    )


def _put(
    words: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, codes: torch.Tensor
) -> None:
    """Adds codes to words of 32 bits, from the highest on: no two share a bit, so sums are unions."""
    word, offset = starts // _WORD_BITS, starts % _WORD_BITS
    both = codes << (2 * _WORD_BITS - offset - lengths)
    mask = (1 << _WORD_BITS) - 1
    words.index_add_(0, word, (both >> _WORD_BITS) & mask)
    words.index_add_(0, word + 1, both & mask)


def _firsts(cells: torch.Tensor, before: int) -> torch.Tensor:
    """Where a cell begins that the element before was not in."""
    shifted = torch.cat([torch.tensor([before], device=cells.device), cells[:-1]])
    return cells != shifted


def _gap_bytes(gaps: Any, size_bytes: int) -> torch.Tensor:
    """Five bits a thread, from the highest on, for all threads of all blocks."""
    blocks = -(-size_bytes // (THREADS * BYTES_PER_THREAD))
    padded = numpy.zeros(THREADS * blocks, numpy.uint8)
    padded[: len(gaps)] = gaps
    bits = (padded[:, None] >> numpy.arange(4, -1, -1, dtype=numpy.uint8)) & 1
    return torch.from_numpy(numpy.packbits(bits.reshape(-1)))


class Kernel:
    """The package's kernel, loaded and launched through the CUDA driver, in torch's context."""

    def __init__(self, source: bytes, library: Any = None) -> None:
        """`source` is PTX. A context is current: torch has used the device."""
        self._library = ctypes.CDLL("libcuda.so.1") if library is None else library
        self._source = ctypes.create_string_buffer(source)  # a zero at its end
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(self._module), self._source)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), self._module, b"decode")

    def prepare(self, packed: Packed, tables: torch.Tensor, out: torch.Tensor) -> Launch:
        """What enqueues the decoding to `out`, given a stream; all tensors are on the device."""
        shared = packed.shared_bytes
        if shared > _MOST_SHARED_BYTES:
            attribute = ctypes.c_int(_MAX_DYNAMIC_SHARED_SIZE)
            self._call("cuFuncSetAttribute", self._function, attribute, ctypes.c_int(shared))
        values: list[Any] = [
            ctypes.c_void_p(part.data_ptr()) for part in (tables, *packed.parts(), out)
        ]
        sizes = (tables.shape[0], packed.codes.numel(), packed.rest.numel())
        values += [ctypes.c_int(size) for size in sizes]
        arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        blocks = -(-packed.codes.numel() // (THREADS * BYTES_PER_THREAD))
        grid = [ctypes.c_uint(size) for size in (blocks, 1, 1, THREADS, 1, 1, shared)]

        def enqueue(stream: int) -> None:
            assert len(values) == len(arguments)  # kept: the arguments point to them
            self._call(
                "cuLaunchKernel", self._function, *grid, ctypes.c_void_p(stream), arguments, None
            )

        return enqueue

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            raise SystemExit(f"{name} of the CUDA driver failed: error {result}")
