// Frames from bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "codec/compression_level.h"
#include "codec/element_layout.h"
#include "codec/frame_format.h"

namespace tensorstream {

struct ChunkScratch;
class TileKernels;

/// Encodes frames of one type at one level, one after the other. One thread at a time.
class FrameEncoder {
 public:
  /// Uses the fastest kernels of the processor, or those given, which outlive the encoder.
  FrameEncoder(Dtype dtype, CompressionLevel level);
  FrameEncoder(Dtype dtype, CompressionLevel level, const TileKernels& kernels);
  ~FrameEncoder();
  FrameEncoder(const FrameEncoder&) = delete;
  FrameEncoder& operator=(const FrameEncoder&) = delete;

  /// Writes the frame of `bytes`, 1 to kFrameBytes of them, to the beginning of `frame`, which
  /// has frame_bound() of their size, and returns the frame's size. What is not whole elements, or
  /// would not lose 3 in 100 of its bytes, becomes a raw frame. Never raises.
  std::uint64_t encode(std::span<const std::byte> bytes, std::span<std::byte> frame) noexcept;

 private:
  std::optional<std::uint64_t> encode_coded(std::span<const std::byte> bytes,
                                            std::span<std::byte> frame) noexcept;
  /// The code for a frame of whole elements.
  RankCode code_for(std::span<const std::byte> bytes) noexcept;

  const CompressionLevel level_;
  const std::optional<ElementLayout> layout_;
  const TileKernels& kernels_;
  const std::unique_ptr<ChunkScratch> scratch_;
};

/// Whether so many coded bytes are few enough to be worth their decoding: 3 in 100 less than raw.
bool pays(std::uint64_t coded_bytes, std::uint64_t raw_bytes) noexcept;

/// Writes a raw frame of `bytes` and returns its size; as FrameEncoder::encode().
std::uint64_t encode_raw_frame(std::span<const std::byte> bytes,
                               std::span<std::byte> frame) noexcept;

}  // namespace tensorstream
