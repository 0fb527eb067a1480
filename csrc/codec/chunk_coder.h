// One chunk of a coded frame. Private to codec.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "codec/element_layout.h"
#include "codec/frame_format.h"
#include "codec/rank_code.h"
#include "codec/tile_kernels.h"

namespace tensorstream {

/// What the chunks of a frame are coded with.
struct ChunkCoding {
  const TileKernels& kernels;
  ElementLayout layout;
  RankCode code;
};

/// What an encoder works in, one chunk after the other. One thread at a time.
struct ChunkScratch {
  TileValues values;
  std::array<std::byte, kTileElements * sizeof(std::uint32_t)> tile;
  // A plane is written in whole words.
  std::array<std::array<std::byte, kChunkElements / 8 + 8>, kMostLowerPlanes> planes;
  std::array<std::uint8_t, kChunkElements> literals;
};

struct EncodedChunk {
  std::uint32_t size_bytes;
  ChunkCounts counts;
};

/// Writes the chunk of `elements`, 1 to kChunkElements of them, to the beginning of `out`; nothing
/// where it does not fit there.
std::optional<EncodedChunk> encode_chunk(const ChunkCoding& coding,
                                         std::span<const std::byte> elements, ChunkScratch& scratch,
                                         std::span<std::byte> out) noexcept;

/// Fills `out` with a chunk's elements. `chunk` has the parts that `counts` gives it, and
/// kFrameTailBytes follow it. False where its codes are not as many as `counts` says.
bool decode_chunk(const ChunkCoding& coding, const std::byte* chunk, const ChunkCounts& counts,
                  std::span<std::byte> out) noexcept;

/// Whether its codes are as many as `counts` says, for who decodes it without looking; of a chunk
/// of `size_bytes` of elements.
bool codes_fit(const ChunkCoding& coding, const std::byte* chunk, const ChunkCounts& counts,
               std::uint64_t size_bytes) noexcept;

}  // namespace tensorstream
