#include "codec/frame_encoder.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "codec/chunk_coder.h"
#include "codec/tile_kernels.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kMostPercent = 97;
constexpr std::size_t kMostChunks = kFrameBytes / kChunkElements;
static_assert(kMostChunks >= kFrameBytes / kRawChunkBytes);

/// The most bytes of a frame that pays.
std::uint64_t most_coded_bytes(std::uint64_t raw_bytes) { return raw_bytes * kMostPercent / 100; }

}  // namespace

FrameEncoder::FrameEncoder(Dtype dtype, CompressionLevel level)
    : FrameEncoder(dtype, level, fastest_kernels()) {}

FrameEncoder::FrameEncoder(Dtype dtype, CompressionLevel level, const TileKernels& kernels)
    : level_(level),
      layout_(level.stores_raw() ? std::nullopt : layout_of(dtype)),
      kernels_(kernels),
      scratch_(std::make_unique<ChunkScratch>()) {}

FrameEncoder::~FrameEncoder() = default;

std::uint64_t FrameEncoder::encode(std::span<const std::byte> bytes,
                                   std::span<std::byte> frame) noexcept {
  if (layout_ && bytes.size() % layout_->element_bytes == 0) {
    if (const auto coded = encode_coded(bytes, frame)) return *coded;
  }
  return encode_raw_frame(bytes, frame);
}

RankCode FrameEncoder::code_for(std::span<const std::byte> bytes) noexcept {
  const std::uint64_t tile_bytes = std::uint64_t{kTileElements} * layout_->element_bytes;
  const std::uint64_t step = tile_bytes * level_.tiles_a_sample();
  // Four counters for each symbol: neighbours often have one symbol and would wait for each other.
  std::array<SymbolCounts, 4> counts{};
  std::array<std::byte, kTileElements * sizeof(std::uint32_t)> planes;
  for (std::uint64_t begin = 0; begin + tile_bytes <= bytes.size(); begin += step) {
    kernels_.split(layout_->kind, bytes.data() + begin, planes.data(), kTileElements,
                   scratch_->values);
    const auto& symbols = scratch_->values.symbols;
    for (std::size_t i = 0; i < symbols.size(); i += counts.size()) {
      for (std::size_t j = 0; j < counts.size(); ++j) ++counts[j][symbols[i + j]];
    }
  }
  for (std::size_t symbol = 0; symbol < counts[0].size(); ++symbol) {
    counts[0][symbol] += counts[1][symbol] + counts[2][symbol] + counts[3][symbol];
  }
  return best_code(counts[0], layout_->symbol_bits, level_.widths());
}

std::optional<std::uint64_t> FrameEncoder::encode_coded(std::span<const std::byte> bytes,
                                                        std::span<std::byte> frame) noexcept {
  const std::uint64_t most = most_coded_bytes(bytes.size());
  FrameHeader header;
  header.kind = FrameKind::kCoded;
  header.decoded_bytes = static_cast<std::uint32_t>(bytes.size());
  header.layout = layout_;
  header.chunks = coded_chunks(bytes.size() / layout_->element_bytes);
  header.code = code_for(bytes);
  const std::uint64_t chunk_bytes = std::uint64_t{kChunkElements} * layout_->element_bytes;
  const ChunkCoding coding{kernels_, *layout_, header.code};

  std::array<ChunkEntry, kMostChunks> chunks;
  std::uint64_t end = frame_parts(header.chunks, header.code.widths.count).data;
  for (std::uint32_t index = 0; index < header.chunks; ++index) {
    if (end + kFrameTailBytes > most) return std::nullopt;
    const std::uint64_t begin = index * chunk_bytes;
    const auto elements = bytes.subspan(begin, std::min(chunk_bytes, bytes.size() - begin));
    const auto chunk =
        encode_chunk(coding, elements, *scratch_, frame.subspan(end, most - kFrameTailBytes - end));
    if (!chunk) return std::nullopt;
    chunks[index] = {end, chunk->counts};
    end += chunk->size_bytes;
  }
  std::ranges::fill(frame.subspan(end, kFrameTailBytes), std::byte{0});
  header.frame_bytes = static_cast<std::uint32_t>(end + kFrameTailBytes);
  seal_frame(header, std::span(chunks).first(header.chunks), frame.first(header.frame_bytes));
  return header.frame_bytes;
}

bool pays(std::uint64_t coded_bytes, std::uint64_t raw_bytes) noexcept {
  return coded_bytes <= most_coded_bytes(raw_bytes);
}

std::uint64_t encode_raw_frame(std::span<const std::byte> bytes,
                               std::span<std::byte> frame) noexcept {
  FrameHeader header;
  header.kind = FrameKind::kRaw;
  header.decoded_bytes = static_cast<std::uint32_t>(bytes.size());
  header.chunks = raw_chunks(bytes.size());
  header.frame_bytes = static_cast<std::uint32_t>(frame_bound(bytes.size()));
  const std::uint64_t data = frame_parts(header.chunks, 0).data;
  std::memcpy(frame.data() + data, bytes.data(), bytes.size());
  const std::uint64_t end = data + bytes.size();
  std::ranges::fill(frame.subspan(end, header.frame_bytes - end), std::byte{0});

  std::array<ChunkEntry, kMostChunks> chunks;
  for (std::uint32_t index = 0; index < header.chunks; ++index) {
    chunks[index] = {data + index * kRawChunkBytes, {}};
  }
  seal_frame(header, std::span(chunks).first(header.chunks), frame.first(header.frame_bytes));
  return header.frame_bytes;
}

}  // namespace tensorstream
