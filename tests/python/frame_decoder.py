"""Decodes frames as csrc/codec/FORMAT.md says, and by nothing else: what proves that page whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import xxhash

TILE = 1024
CHUNK = 8192
RAW_CHUNK = 16384


@dataclasses.dataclass(frozen=True)
class Header:
    """The fields of a frame, and its index."""

    frame_bytes: int
    decoded_bytes: int
    coded: bool
    element_bytes: int
    symbol_bits: int
    widths: list[int]
    symbols: np.ndarray
    offsets: list[int]
    counts: np.ndarray


def number(data: bytes, offset: int, size: int = 4) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def read_header(frame: bytes) -> Header:
    assert frame[:4] == b"TSFR"
    assert number(frame, 4) == 1
    chunks, levels = number(frame, 24), frame[31]
    checksums_at = 64 + 4 * chunks + 4
    counts_at = checksums_at + 4 * chunks
    counts_end = counts_at + 2 * chunks * levels
    index_end = (counts_end + 15) // 16 * 16
    assert number(frame, 8, 8) == xxhash.xxh3_64_intdigest(frame[16:index_end])
    offsets = [16 * number(frame, 64 + 4 * chunk) for chunk in range(chunks + 1)]
    assert offsets[0] == index_end
    assert offsets[-1] == number(frame, 16)
    for chunk in range(chunks):
        digest = xxhash.xxh3_64_intdigest(frame[offsets[chunk] : offsets[chunk + 1]])
        assert number(frame, checksums_at + 4 * chunk) == digest % 2**32
    return Header(
        frame_bytes=number(frame, 16),
        decoded_bytes=number(frame, 20),
        coded=frame[28] == 1,
        element_bytes=frame[29],
        symbol_bits=frame[30],
        widths=list(frame[32 : 32 + levels]),
        symbols=np.frombuffer(frame, np.uint8, 16, 48),
        offsets=offsets,
        counts=np.frombuffer(frame, "<u2", chunks * levels, counts_at).reshape(chunks, levels),
    )


def bits_of(data: np.ndarray) -> np.ndarray:
    return np.unpackbits(data, bitorder="little")


def in_order_of_elements(words: np.ndarray) -> np.ndarray:
    """Bits of tiles, lanes and their words, as those of the elements."""
    bits = words.reshape(-1, 32, 8, 4)  # tile, lane, j, g: the bit is 4 j + g
    return bits.transpose(0, 3, 1, 2).reshape(-1)  # the element is 256 g + 8 lane + j


def ranks_of(header: Header, planes: list[np.ndarray], counts: np.ndarray, lower: np.ndarray):
    """Each element's rank in the order of the words, and where the lower planes end."""
    rank = planes[0].astype(np.int64) + 2 * planes[1]
    here = np.flatnonzero(rank == 3)
    at = 0
    for width, count in zip(header.widths[1:], counts[:-1], strict=True):
        assert len(here) == count
        plane_bytes = (count + 7) // 8
        code = np.zeros(count, np.int64)
        for bit in range(width):
            plane = bits_of(lower[at : at + plane_bytes])[:count]
            code += plane.astype(np.int64) << bit
            at += plane_bytes
        rank[here] += code
        here = here[code == 2**width - 1]
    assert len(here) == counts[-1]
    return rank, here, at


def decode_chunk(header: Header, chunk: np.ndarray, counts: np.ndarray, elements: int):
    tiles = (elements + TILE - 1) // TILE
    size = TILE * tiles
    kept_bits = 8 * header.element_bytes - header.symbol_bits
    byte_planes, bit_planes = divmod(kept_bits, 8)
    value = np.zeros(size, np.uint64)
    for plane in range(byte_planes):
        part = chunk[plane * size : (plane + 1) * size]
        value |= part.astype(np.uint64) << np.uint64(8 * plane)
    at = byte_planes * size
    end = at + 128 * (bit_planes + 2) * tiles
    of_tiles = bits_of(chunk[at:end]).reshape(tiles, bit_planes + 2, 1024)
    for plane in range(bit_planes):
        part = in_order_of_elements(of_tiles[:, plane])
        value |= part.astype(np.uint64) << np.uint64(8 * byte_planes + plane)

    first = [of_tiles[:, bit_planes + bit].reshape(-1) for bit in range(2)]
    rank, literals, literals_at = ranks_of(header, first, counts, chunk[end:])
    symbol = header.symbols[np.minimum(rank, 15)]
    literals_at += end
    symbol[literals] = chunk[literals_at : literals_at + counts[-1]]
    value |= in_order_of_elements(symbol).astype(np.uint64) << np.uint64(kept_bits)

    # Rotated right by one bit.
    top = np.uint64(8 * header.element_bytes - 1)
    value = (value >> np.uint64(1)) | ((value & np.uint64(1)) << top)
    return value.astype(f"<u{header.element_bytes}")[:elements].tobytes()


def decode_frame(frame: bytes) -> tuple[bytes, int]:
    """What a frame decodes to, and its size."""
    header = read_header(frame)
    parts = []
    for chunk, begin in enumerate(header.offsets[:-1]):
        if header.coded:
            left = header.decoded_bytes // header.element_bytes - chunk * CHUNK
            data = np.frombuffer(frame, np.uint8, header.offsets[chunk + 1] - begin, begin)
            parts.append(decode_chunk(header, data, header.counts[chunk], min(left, CHUNK)))
        else:
            left = header.decoded_bytes - chunk * RAW_CHUNK
            parts.append(frame[begin : begin + min(left, RAW_CHUNK)])
    return b"".join(parts), header.frame_bytes


def decode(encoded: bytes) -> bytes:
    parts = []
    while encoded:
        part, size = decode_frame(encoded)
        parts.append(part)
        encoded = encoded[size:]
    return b"".join(parts)
