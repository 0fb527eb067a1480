// Frames made and taken apart in tests.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "codec/checksum.h"
#include "codec/frame_encoder.h"
#include "codec/frame_format.h"
#include "codec/tensor_encoder.h"
#include "codec/tile_kernels.h"
#include "made_bytes/weights.h"

namespace tensorstream {

inline constexpr std::array kFloats = {Dtype::kBf16, Dtype::kF16, Dtype::kF32, Dtype::kF8E4M3,
                                       Dtype::kF8E5M2};

inline std::vector<const TileKernels*> all_kernels() {
  std::vector<const TileKernels*> kernels = {&portable_kernels()};
  if (avx2_kernels() != nullptr) kernels.push_back(avx2_kernels());
  return kernels;
}

/// A deviation that the type's range suits.
inline double usual_sigma(Dtype dtype) { return dtype_bits(dtype) == 8 ? 1.0 : 0.02; }

inline Bytes encode_frame(FrameEncoder& encoder, std::span<const std::byte> bytes) {
  Bytes frame(frame_bound(bytes.size()), std::byte{0xa5});
  frame.resize(encoder.encode(bytes, frame));
  return frame;
}

inline Bytes encode_frame(Dtype dtype, std::span<const std::byte> bytes,
                          std::uint32_t level = CompressionLevel::kSmallest) {
  FrameEncoder encoder(dtype, CompressionLevel(level));
  return encode_frame(encoder, bytes);
}

inline Bytes encoded_tensor(Dtype dtype, std::span<const std::byte> bytes, std::uint32_t level,
                            unsigned threads = 1) {
  Bytes out(encoded_bound(bytes.size()), std::byte{0xa5});
  out.resize(encode_tensor({dtype, CompressionLevel(level), threads}, bytes, out));
  return out;
}

inline FrameView parsed(std::span<const std::byte> frame) {
  const auto result = FrameView::parse(frame);
  if (const auto* fault = std::get_if<FrameFault>(&result)) {
    throw std::logic_error("a frame breaks '" + std::string(rule_name(fault->rule)) + "'");
  }
  return std::get<FrameView>(result);
}

template <typename Number>
Number number_at(const Bytes& frame, std::uint64_t offset) {
  Number number;
  std::memcpy(&number, frame.data() + offset, sizeof number);
  return number;
}

template <typename Number>
void put(Bytes& frame, std::uint64_t offset, Number number) {
  std::memcpy(frame.data() + offset, &number, sizeof number);
}

/// The offsets of FORMAT.md.
inline constexpr std::uint64_t kChecksumAt = 8;
inline constexpr std::uint64_t kFrameBytesAt = 16;
inline constexpr std::uint64_t kDecodedBytesAt = 20;
inline constexpr std::uint64_t kChunksAt = 24;
inline constexpr std::uint64_t kKindAt = 28;
inline constexpr std::uint64_t kElementBytesAt = 29;
inline constexpr std::uint64_t kSymbolBitsAt = 30;
inline constexpr std::uint64_t kLevelsAt = 31;
inline constexpr std::uint64_t kWidthsAt = 32;
inline constexpr std::uint64_t kSymbolsAt = 48;
inline constexpr std::uint64_t kIndexAt = 64;

/// Gives a frame that was tampered with the checksums of what it holds now, as an attacker would.
inline void reseal(Bytes& frame) {
  const auto chunks = number_at<std::uint32_t>(frame, kChunksAt);
  const auto levels = number_at<std::uint8_t>(frame, kLevelsAt);
  const FrameParts parts = frame_parts(chunks, levels);
  const auto offset = [&](std::uint32_t i) {
    return std::uint64_t{number_at<std::uint32_t>(frame, kIndexAt + 4ULL * i)} * kFrameAlignment;
  };
  for (std::uint32_t i = 0; i < chunks && parts.data <= frame.size(); ++i) {
    if (offset(i) > offset(i + 1) || offset(i + 1) > frame.size()) continue;
    const auto chunk = std::span(frame).subspan(offset(i), offset(i + 1) - offset(i));
    put(frame, parts.checksums + 4ULL * i, static_cast<std::uint32_t>(checksum_of(chunk)));
  }
  const std::uint64_t end = std::min<std::uint64_t>(parts.data, frame.size());
  put(frame, kChecksumAt,
      checksum_of(std::span(frame).subspan(kFrameBytesAt, end - kFrameBytesAt)));
}

}  // namespace tensorstream
