#include "codec/frame_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "codec/checksum.h"

namespace tensorstream {
namespace {

constexpr std::uint32_t kMagic = 0x52465354;  // "TSFR"
constexpr std::uint32_t kVersion = 1;
/// The checksum is of what follows it, to the end of the index.
constexpr std::uint64_t kChecksumOffset = 8;
constexpr std::uint64_t kCheckedOffset = 16;

/// The header as it stands in a frame.
struct StoredHeader {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t checksum;
  std::uint32_t frame_bytes;
  std::uint32_t decoded_bytes;
  std::uint32_t chunks;
  std::uint8_t kind;
  std::uint8_t element_bytes;
  std::uint8_t symbol_bits;
  std::uint8_t levels;
  std::array<std::uint8_t, 16> widths;
  std::array<std::uint8_t, kMostRankedSymbols> symbols;
};
static_assert(sizeof(StoredHeader) == kFrameHeaderBytes);
static_assert(offsetof(StoredHeader, checksum) == kChecksumOffset);
static_assert(offsetof(StoredHeader, frame_bytes) == kCheckedOffset);

template <typename Number>
Number load(std::span<const std::byte> bytes, std::uint64_t offset) noexcept {
  Number number;
  std::memcpy(&number, bytes.data() + offset, sizeof number);
  return number;
}

template <typename Number>
void store(std::span<std::byte> bytes, std::uint64_t offset, Number number) noexcept {
  std::memcpy(bytes.data() + offset, &number, sizeof number);
}

bool all_zero(std::span<const std::uint8_t> bytes) noexcept {
  return std::ranges::all_of(bytes, [](std::uint8_t byte) { return byte == 0; });
}

/// The widths that a header gives; nothing where they break a limit.
std::optional<LevelWidths> sound_widths(const StoredHeader& stored) noexcept {
  if (stored.levels < 1 || stored.levels > kMostLevels) return std::nullopt;
  LevelWidths widths;
  widths.count = stored.levels;
  for (std::uint32_t level = 0; level < widths.count; ++level) {
    const std::uint8_t width = stored.widths[level];
    if (width < 1 || width > kMostWidth) return std::nullopt;
    widths.bits[level] = width;
  }
  const bool fits = widths.bits[0] == kFirstWidth && widths.ranked_symbols() <= kMostRankedSymbols;
  if (!fits || !all_zero(std::span(stored.widths).subspan(widths.count))) return std::nullopt;
  return widths;
}

/// Fills in what a coded frame's header holds more than a raw one's.
bool read_code(const StoredHeader& stored, FrameHeader& header) noexcept {
  header.layout = layout_with(stored.element_bytes, stored.symbol_bits);
  const auto widths = sound_widths(stored);
  if (!header.layout || !widths) return false;
  header.code.widths = *widths;
  header.code.symbols = stored.symbols;
  const std::uint32_t ranked = widths->ranked_symbols();
  if (!all_zero(std::span(stored.symbols).subspan(ranked))) return false;
  for (std::uint32_t rank = 0; rank < ranked; ++rank) {
    if (stored.symbols[rank] >> stored.symbol_bits != 0) return false;
  }
  if (stored.decoded_bytes % stored.element_bytes != 0) return false;
  return header.chunks == coded_chunks(stored.decoded_bytes / stored.element_bytes);
}

/// The header in its own terms; nothing where a field is out of its range.
std::optional<FrameHeader> read_header(const StoredHeader& stored) noexcept {
  FrameHeader header;
  header.frame_bytes = stored.frame_bytes;
  header.decoded_bytes = stored.decoded_bytes;
  header.chunks = stored.chunks;
  if (stored.decoded_bytes == 0 || stored.decoded_bytes > kFrameBytes) return std::nullopt;
  if (stored.kind == static_cast<std::uint8_t>(FrameKind::kCoded)) {
    header.kind = FrameKind::kCoded;
    if (!read_code(stored, header)) return std::nullopt;
    return header;
  }
  const bool raw = stored.kind == static_cast<std::uint8_t>(FrameKind::kRaw) &&
                   stored.element_bytes == 0 && stored.symbol_bits == 0 && stored.levels == 0 &&
                   all_zero(stored.widths) && all_zero(stored.symbols);
  if (!raw || header.chunks != raw_chunks(stored.decoded_bytes)) return std::nullopt;
  return header;
}

}  // namespace

std::string_view rule_name(FrameRule rule) noexcept {
  switch (rule) {
    case FrameRule::kFrameLength:
      return "frame length";
    case FrameRule::kMagic:
      return "magic";
    case FrameRule::kVersion:
      return "version";
    case FrameRule::kHeaderChecksum:
      return "header checksum";
    case FrameRule::kHeader:
      return "header";
    case FrameRule::kIndex:
      return "index";
    case FrameRule::kChunkChecksum:
      return "chunk checksum";
    case FrameRule::kCodes:
      return "codes";
    case FrameRule::kDecodedSize:
      return "decoded size";
  }
  return "frame";
}

FrameParts frame_parts(std::uint32_t chunks, std::uint32_t levels) noexcept {
  const std::uint64_t count = chunks;
  FrameParts parts;
  parts.offsets = kFrameHeaderBytes;
  parts.checksums = parts.offsets + (count + 1) * sizeof(std::uint32_t);
  parts.counts = parts.checksums + count * sizeof(std::uint32_t);
  const std::uint64_t end = parts.counts + count * levels * sizeof(std::uint16_t);
  parts.data = align_up(end, kFrameAlignment);
  return parts;
}

std::uint32_t coded_chunks(std::uint64_t elements) noexcept {
  return static_cast<std::uint32_t>(divide_up(elements, kChunkElements));
}

std::uint32_t raw_chunks(std::uint64_t decoded_bytes) noexcept {
  return static_cast<std::uint32_t>(divide_up(decoded_bytes, kRawChunkBytes));
}

std::uint64_t frame_bound(std::uint64_t decoded_bytes) noexcept {
  return frame_parts(raw_chunks(decoded_bytes), 0).data + align_up(decoded_bytes, kFrameAlignment) +
         kFrameTailBytes;
}

ChunkParts chunk_parts(const ElementLayout& layout, const LevelWidths& widths, std::uint32_t tiles,
                       const ChunkCounts& counts) noexcept {
  ChunkParts parts;
  parts.tiles = tiles;
  parts.tile_planes = layout.byte_planes() * tiles * kTileElements;
  std::uint32_t at =
      parts.tile_planes + tiles * (layout.bit_planes() + kFirstWidth) * kBitPlaneBytes;
  std::size_t plane = 0;
  for (std::uint32_t level = 1; level < widths.count; ++level) {
    const std::uint32_t plane_bytes = (counts[level - 1] + 7U) / 8;
    for (std::uint32_t bit = 0; bit < widths.bits[level]; ++bit) {
      parts.planes[plane++] = at;
      at += plane_bytes;
    }
  }
  parts.literals = at;
  at += counts[widths.count - 1];
  parts.size_bytes = static_cast<std::uint32_t>(align_up(at, kFrameAlignment));
  return parts;
}

std::uint64_t FrameView::stated_bytes(std::span<const std::byte> bytes) noexcept {
  return load<StoredHeader>(bytes, 0).frame_bytes;
}

std::uint64_t FrameView::stated_checksum(std::span<const std::byte> bytes) noexcept {
  return load<StoredHeader>(bytes, 0).checksum;
}

std::uint64_t FrameView::stated_index_end(std::span<const std::byte> bytes) noexcept {
  const auto stored = load<StoredHeader>(bytes, 0);
  // Neither product overflows: the counts are at most 2^32 and 2^8.
  return frame_parts(stored.chunks, stored.levels).data;
}

std::variant<FrameView, FrameFault> FrameView::parse(std::span<const std::byte> bytes) noexcept {
  const auto broken = [](FrameRule rule) { return FrameFault{rule, std::nullopt}; };
  if (bytes.size() < kFrameHeaderBytes) return broken(FrameRule::kFrameLength);
  const auto stored = load<StoredHeader>(bytes, 0);
  if (stored.magic != kMagic) return broken(FrameRule::kMagic);
  if (stored.version != kVersion) return broken(FrameRule::kVersion);
  if (stored.frame_bytes > bytes.size()) return broken(FrameRule::kFrameLength);
  const std::span<const std::byte> frame = bytes.first(stored.frame_bytes);
  const std::uint64_t data = stated_index_end(bytes);
  if (data > frame.size()) {  // guard: index-in-frame
    return broken(FrameRule::kHeader);
  }
  const auto checked = frame.subspan(kCheckedOffset, data - kCheckedOffset);
  if (checksum_of(checked) != stored.checksum) {  // guard: header-checksum
    return broken(FrameRule::kHeaderChecksum);
  }
  const auto header = read_header(stored);
  if (!header) return broken(FrameRule::kHeader);
  const FrameView view(frame, *header);
  if (!view.index_is_sound()) return broken(FrameRule::kIndex);
  return view;
}

std::uint64_t FrameView::elements() const noexcept {
  return header_.layout ? header_.decoded_bytes / header_.layout->element_bytes : 0;
}

std::uint64_t FrameView::chunk_offset(std::uint32_t index) const noexcept {
  const std::uint64_t at = parts_.offsets + std::uint64_t{index} * sizeof(std::uint32_t);
  return load<std::uint32_t>(bytes_, at) * kFrameAlignment;
}

std::span<const std::byte> FrameView::chunk(std::uint32_t index) const noexcept {
  const std::uint64_t begin = chunk_offset(index);
  return bytes_.subspan(begin, chunk_offset(index + 1) - begin);
}

std::uint32_t FrameView::chunk_checksum(std::uint32_t index) const noexcept {
  return load<std::uint32_t>(bytes_,
                             parts_.checksums + std::uint64_t{index} * sizeof(std::uint32_t));
}

std::uint32_t FrameView::chunk_tiles(std::uint32_t index) const noexcept {
  const std::uint64_t left = elements() - std::uint64_t{index} * kChunkElements;
  return static_cast<std::uint32_t>(
      divide_up(std::min<std::uint64_t>(left, kChunkElements), kTileElements));
}

ChunkCounts FrameView::chunk_counts(std::uint32_t index) const noexcept {
  ChunkCounts counts{};
  const std::uint64_t row_bytes = header_.code.widths.count * sizeof(std::uint16_t);
  std::memcpy(counts.data(), bytes_.data() + parts_.counts + index * row_bytes, row_bytes);
  return counts;
}

std::uint64_t FrameView::decoded_offset(std::uint32_t index) const noexcept {
  const std::uint64_t chunk_bytes =
      header_.layout ? std::uint64_t{kChunkElements} * header_.layout->element_bytes
                     : kRawChunkBytes;
  return std::min<std::uint64_t>(index * chunk_bytes, header_.decoded_bytes);
}

std::uint64_t FrameView::decoded_bytes(std::uint32_t index) const noexcept {
  return decoded_offset(index + 1) - decoded_offset(index);
}

bool FrameView::index_is_sound() const noexcept {
  if (chunk_offset(0) != parts_.data) return false;  // guard: first-chunk
  for (std::uint32_t index = 0; index < header_.chunks; ++index) {
    // The last chunk's bytes go on to the frame's end. A wrong index may wrap around here, to a
    // length that no chunk has.
    const std::uint64_t tail = index + 1 == header_.chunks ? kFrameTailBytes : 0;
    const std::uint64_t length = chunk_offset(index + 1) - chunk_offset(index) - tail;
    if (length != chunk_length(index)) return false;  // guard: chunk-length
  }
  return chunk_offset(header_.chunks) == header_.frame_bytes;
}

std::uint64_t FrameView::chunk_length(std::uint32_t index) const noexcept {
  if (header_.kind == FrameKind::kRaw) return align_up(decoded_bytes(index), kFrameAlignment);
  return chunk_parts(*header_.layout, header_.code.widths, chunk_tiles(index), chunk_counts(index))
      .size_bytes;
}

void seal_frame(const FrameHeader& header, std::span<const ChunkEntry> chunks,
                std::span<std::byte> frame) noexcept {
  StoredHeader stored{};
  stored.magic = kMagic;
  stored.version = kVersion;
  stored.frame_bytes = header.frame_bytes;
  stored.decoded_bytes = header.decoded_bytes;
  stored.chunks = header.chunks;
  stored.kind = static_cast<std::uint8_t>(header.kind);
  const std::uint32_t levels = header.code.widths.count;
  if (header.layout) {
    stored.element_bytes = header.layout->element_bytes;
    stored.symbol_bits = header.layout->symbol_bits;
    stored.levels = static_cast<std::uint8_t>(levels);
    std::ranges::copy(header.code.widths.bits, stored.widths.begin());
    stored.symbols = header.code.symbols;
  }
  const FrameParts parts = frame_parts(header.chunks, levels);
  std::ranges::fill(frame.subspan(kFrameHeaderBytes, parts.data - kFrameHeaderBytes), std::byte{0});
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const std::uint64_t begin = chunks[i].offset;
    const std::uint64_t end = i + 1 < chunks.size() ? chunks[i + 1].offset : header.frame_bytes;
    const auto checksum =
        static_cast<std::uint32_t>(checksum_of(frame.subspan(begin, end - begin)));
    store(frame, parts.offsets + i * sizeof(std::uint32_t),
          static_cast<std::uint32_t>(begin / kFrameAlignment));
    store(frame, parts.checksums + i * sizeof checksum, checksum);
    std::memcpy(frame.data() + parts.counts + i * levels * sizeof(std::uint16_t),
                chunks[i].counts.data(), levels * sizeof(std::uint16_t));
  }
  store(frame, parts.offsets + chunks.size() * sizeof(std::uint32_t),
        static_cast<std::uint32_t>(header.frame_bytes / kFrameAlignment));
  store(frame, 0, stored);
  stored.checksum = checksum_of(frame.subspan(kCheckedOffset, parts.data - kCheckedOffset));
  store(frame, 0, stored);
}

}  // namespace tensorstream
