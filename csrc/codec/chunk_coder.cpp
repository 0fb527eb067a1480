#include "codec/chunk_coder.h"

#include <algorithm>
#include <cstring>

namespace tensorstream {
namespace {

std::uint32_t tiles_of(std::uint64_t size_bytes, const ElementLayout& layout) {
  const std::uint64_t tile_bytes = std::uint64_t{kTileElements} * layout.element_bytes;
  return static_cast<std::uint32_t>((size_bytes + tile_bytes - 1) / tile_bytes);
}

/// Where the tiles of a chunk go to or come from.
struct TilePlace {
  std::size_t byte_planes;
  std::size_t plane_stride;
  std::size_t bit_planes;
  std::size_t first_level;
};

TilePlace tile_place(const ElementLayout& layout, std::uint32_t tiles, std::uint32_t tile) {
  const std::size_t stride = std::size_t{tiles} * kTileElements;
  const std::size_t planes = layout.byte_planes() * stride;
  const std::size_t tile_bytes = (layout.bit_planes() + kFirstWidth) * std::size_t{kBitPlaneBytes};
  const std::size_t bit_planes = planes + tile * tile_bytes;
  return {tile * std::size_t{kTileElements}, stride, bit_planes,
          bit_planes + layout.bit_planes() * std::size_t{kBitPlaneBytes}};
}

/// The elements of a tile; where fewer are left than it holds, the last of them fills it up.
const std::byte* whole_tile(const ElementLayout& layout, std::span<const std::byte> elements,
                            std::uint32_t tile, ChunkScratch& scratch) {
  const std::size_t element_bytes = layout.element_bytes;
  const std::size_t tile_bytes = kTileElements * element_bytes;
  const std::span<const std::byte> rest = elements.subspan(tile * tile_bytes);
  if (rest.size() >= tile_bytes) return rest.data();
  std::byte* at = std::ranges::copy(rest, scratch.tile.data()).out;
  const std::span<const std::byte> last = rest.last(element_bytes);
  while (at < scratch.tile.data() + tile_bytes) at = std::ranges::copy(last, at).out;
  return scratch.tile.data();
}

void encode_tile(const ChunkCoding& coding, const TilePlace& place, const std::byte* elements,
                 ChunkScratch& scratch, LowerLevelsWriter& lower, std::byte* chunk) {
  coding.kernels.split(coding.layout.kind, elements, chunk + place.byte_planes, place.plane_stride,
                       scratch.values);
  coding.kernels.write_bits(scratch.values, coding.layout.bit_planes(), chunk + place.bit_planes);
  coding.kernels.encode_symbols(coding.code, scratch.values, chunk + place.first_level, lower);
}

LowerLevelsWriter begin_lower(ChunkScratch& scratch) {
  LowerLevelsWriter lower;
  for (std::size_t plane = 0; plane < kMostLowerPlanes; ++plane) {
    lower.planes[plane].begin(scratch.planes[plane].data());
  }
  lower.counts = {};
  lower.literals = scratch.literals.data();
  return lower;
}

std::uint32_t lower_planes(const LevelWidths& widths) {
  std::uint32_t planes = 0;
  for (std::uint32_t level = 1; level < widths.count; ++level) planes += widths.bits[level];
  return planes;
}

/// Lays what was gathered apart behind the tiles.
void place_lower(const ChunkCoding& coding, const ChunkParts& parts, LowerLevelsWriter& lower,
                 ChunkScratch& scratch, std::byte* chunk) {
  const std::uint32_t planes = lower_planes(coding.code.widths);
  for (std::uint32_t plane = 0; plane < planes; ++plane) {
    lower.planes[plane].end();
    const std::uint32_t end = plane + 1 < planes ? parts.planes[plane + 1] : parts.literals;
    std::memcpy(chunk + parts.planes[plane], scratch.planes[plane].data(),
                end - parts.planes[plane]);
  }
  const std::uint32_t literals = lower.counts[coding.code.widths.count - 1];
  std::memcpy(chunk + parts.literals, scratch.literals.data(), literals);
  const std::uint32_t end = parts.literals + literals;
  std::memset(chunk + end, 0, parts.size_bytes - end);
}

}  // namespace

std::optional<EncodedChunk> encode_chunk(const ChunkCoding& coding,
                                         std::span<const std::byte> elements, ChunkScratch& scratch,
                                         std::span<std::byte> out) noexcept {
  const std::uint32_t tiles = tiles_of(elements.size(), coding.layout);
  if (out.size() < chunk_parts(coding.layout, coding.code.widths, tiles, {}).size_bytes) {
    return std::nullopt;
  }
  LowerLevelsWriter lower = begin_lower(scratch);
  for (std::uint32_t tile = 0; tile < tiles; ++tile) {
    encode_tile(coding, tile_place(coding.layout, tiles, tile),
                whole_tile(coding.layout, elements, tile, scratch), scratch, lower, out.data());
  }
  const ChunkParts parts = chunk_parts(coding.layout, coding.code.widths, tiles, lower.counts);
  if (out.size() < parts.size_bytes) return std::nullopt;
  place_lower(coding, parts, lower, scratch, out.data());
  return EncodedChunk{parts.size_bytes, lower.counts};
}

bool decode_chunk(const ChunkCoding& coding, const std::byte* chunk, const ChunkCounts& counts,
                  std::span<std::byte> out) noexcept {
  const std::uint32_t tiles = tiles_of(out.size(), coding.layout);
  const ChunkParts parts = chunk_parts(coding.layout, coding.code.widths, tiles, counts);
  LowerLevelsReader lower{{}, counts, {}, chunk + parts.literals};
  for (std::size_t plane = 0; plane < kMostLowerPlanes; ++plane) {
    lower.planes[plane] = chunk + parts.planes[plane];
  }
  const std::size_t tile_bytes = std::size_t{kTileElements} * coding.layout.element_bytes;
  TileValues values;
  std::array<std::byte, kTileElements * sizeof(std::uint32_t)> last;
  for (std::uint32_t tile = 0; tile < tiles; ++tile) {
    const TilePlace place = tile_place(coding.layout, tiles, tile);
    coding.kernels.read_bit_planes(chunk + place.bit_planes, coding.layout.bit_planes(), values);
    if (!coding.kernels.decode_symbols(coding.code, chunk + place.first_level, lower, values)) {
      return false;
    }
    const std::span<std::byte> rest = out.subspan(tile * tile_bytes);
    std::byte* const target = rest.size() < tile_bytes ? last.data() : rest.data();
    coding.kernels.merge(coding.layout.kind, chunk + place.byte_planes, place.plane_stride, values,
                         target);
    if (rest.size() < tile_bytes) std::memcpy(rest.data(), last.data(), rest.size());
  }
  if (lower.used != counts) return false;  // guard: codes-used-up
  return true;
}

bool codes_fit(const ChunkCoding& coding, const std::byte* chunk, const ChunkCounts& counts,
               std::uint64_t size_bytes) noexcept {
  const LevelWidths& widths = coding.code.widths;
  const std::uint32_t tiles = tiles_of(size_bytes, coding.layout);
  const ChunkParts parts = chunk_parts(coding.layout, widths, tiles, counts);
  std::uint32_t reached = 0;
  for (std::uint32_t tile = 0; tile < tiles; ++tile) {
    const std::byte* const codes = chunk + tile_place(coding.layout, tiles, tile).first_level;
    reached += coding.kernels.count_escapes(codes, kFirstWidth, kTileElements);
  }
  std::size_t plane = 0;
  for (std::uint32_t level = 1; level < widths.count; ++level) {
    if (reached != counts[level - 1]) return false;
    reached =
        coding.kernels.count_escapes(chunk + parts.planes[plane], widths.bits[level], reached);
    plane += widths.bits[level];
  }
  return reached == counts[widths.count - 1];
}

}  // namespace tensorstream
