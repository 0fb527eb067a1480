// The frame: its parts, and the checks by which damaged or foreign bytes are told. See FORMAT.md.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <variant>

#include "base/units.h"
#include "codec/element_layout.h"
#include "codec/rank_code.h"

namespace tensorstream {

static_assert(std::endian::native == std::endian::little, "frames are little-endian");

/// What a frame decodes to at most, and each but the last of a tensor exactly.
inline constexpr std::uint64_t kFrameBytes = 2_MiB;

/// What 32 lanes of 32 elements hold.
inline constexpr std::uint32_t kTileElements = 1024;
inline constexpr std::uint32_t kLanes = 32;
inline constexpr std::uint32_t kTilesOfChunk = 8;
inline constexpr std::uint32_t kChunkElements = kTileElements * kTilesOfChunk;
/// A bit plane of a tile: a 32-bit word a lane.
inline constexpr std::uint32_t kBitPlaneBytes = kLanes * 4;
/// What a chunk of a raw frame holds.
inline constexpr std::uint64_t kRawChunkBytes = 16_KiB;

inline constexpr std::uint64_t kFrameHeaderBytes = 64;
inline constexpr std::uint64_t kFrameAlignment = 16;
/// Zeros at a frame's end, so that whole words can be read at any bit of the planes.
inline constexpr std::uint64_t kFrameTailBytes = 16;

enum class FrameKind : std::uint8_t { kRaw = 0, kCoded = 1 };

/// The rule that a frame breaks. FORMAT.md has the list.
enum class FrameRule : std::uint8_t {
  kFrameLength,
  kMagic,
  kVersion,
  kHeaderChecksum,
  kHeader,
  kIndex,
  kChunkChecksum,
  kCodes,
  kDecodedSize,
};

/// What is wrong with a frame, and in which of its chunks where the rule is one of chunks.
struct FrameFault {
  FrameRule rule;
  std::optional<std::uint32_t> chunk;
};

/// The rule's name in FORMAT.md.
std::string_view rule_name(FrameRule rule) noexcept;

/// The fixed part of a frame. A raw frame has no layout and no code.
struct FrameHeader {
  FrameKind kind = FrameKind::kRaw;
  std::uint32_t frame_bytes = 0;
  std::uint32_t decoded_bytes = 0;
  std::uint32_t chunks = 0;
  std::optional<ElementLayout> layout;
  RankCode code;
};

/// Where the arrays of an index begin, from the frame's start, and where the chunks do.
struct FrameParts {
  std::uint64_t offsets = 0;
  std::uint64_t checksums = 0;
  std::uint64_t counts = 0;
  std::uint64_t data = 0;
};

FrameParts frame_parts(std::uint32_t chunks, std::uint32_t levels) noexcept;

/// Chunks of a coded frame of so many elements, and of a raw frame of so many bytes.
std::uint32_t coded_chunks(std::uint64_t elements) noexcept;
std::uint32_t raw_chunks(std::uint64_t decoded_bytes) noexcept;

/// The most that a frame of `decoded_bytes` takes: what a raw frame does.
std::uint64_t frame_bound(std::uint64_t decoded_bytes) noexcept;

/// How many elements reach each level but the first, and how many are literals; in this order.
using ChunkCounts = std::array<std::uint16_t, kMostLevels>;

/// Where the parts of a coded chunk begin, from its start, by its tiles and counts.
struct ChunkParts {
  std::uint32_t tiles = 0;
  std::uint32_t tile_planes = 0;
  std::array<std::uint32_t, kMostLowerPlanes> planes{};
  std::uint32_t literals = 0;
  std::uint32_t size_bytes = 0;  // a multiple of kFrameAlignment
};

ChunkParts chunk_parts(const ElementLayout& layout, const LevelWidths& widths, std::uint32_t tiles,
                       const ChunkCounts& counts) noexcept;

/// A frame whose header and index are sound: every chunk lies in it, and in a coded one the parts
/// of each chunk are as long as its counts say. What the chunks hold is not looked at. The bytes
/// outlive the view and do not change meanwhile. Thread-safe.
class FrameView {
 public:
  /// How long the frame says it is that `bytes`, kFrameHeaderBytes or more, begin with. Nothing of
  /// it is checked.
  static std::uint64_t stated_bytes(std::span<const std::byte> bytes) noexcept;
  /// The same of its checksum: of header and index, which hold the checksums of the chunks.
  static std::uint64_t stated_checksum(std::span<const std::byte> bytes) noexcept;
  /// The same of where its index ends: what parse() looks at is before that.
  static std::uint64_t stated_index_end(std::span<const std::byte> bytes) noexcept;
  /// The frame that `bytes` begin with.
  static std::variant<FrameView, FrameFault> parse(std::span<const std::byte> bytes) noexcept;

  const FrameHeader& header() const noexcept { return header_; }
  std::uint64_t elements() const noexcept;
  std::span<const std::byte> chunk(std::uint32_t index) const noexcept;
  std::uint32_t chunk_checksum(std::uint32_t index) const noexcept;
  /// Of a coded frame.
  std::uint32_t chunk_tiles(std::uint32_t index) const noexcept;
  ChunkCounts chunk_counts(std::uint32_t index) const noexcept;
  /// The first byte that a chunk decodes to, and how many these are.
  std::uint64_t decoded_offset(std::uint32_t index) const noexcept;
  std::uint64_t decoded_bytes(std::uint32_t index) const noexcept;

 private:
  FrameView(std::span<const std::byte> bytes, const FrameHeader& header) noexcept
      : bytes_(bytes),
        header_(header),
        parts_(frame_parts(header.chunks, header.code.widths.count)) {}

  std::uint64_t chunk_offset(std::uint32_t index) const noexcept;
  bool index_is_sound() const noexcept;
  /// How long a chunk is by what it decodes to and its counts, the frame's tail apart.
  std::uint64_t chunk_length(std::uint32_t index) const noexcept;

  std::span<const std::byte> bytes_;
  FrameHeader header_;
  FrameParts parts_;
};

/// One row of an index.
struct ChunkEntry {
  std::uint64_t offset = 0;
  ChunkCounts counts{};
};

/// Writes header, index and checksums of a frame whose chunks are in place. `frame` is the whole of
/// it; `header.frame_bytes` is its size.
void seal_frame(const FrameHeader& header, std::span<const ChunkEntry> chunks,
                std::span<std::byte> frame) noexcept;

}  // namespace tensorstream
