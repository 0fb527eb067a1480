#include "codec/frame_decoder.h"

#include <cstring>

#include "codec/checksum.h"
#include "codec/chunk_coder.h"
#include "codec/tile_kernels.h"

namespace tensorstream {
namespace {

std::optional<FrameFault> decode_chunk(const FrameView& frame, std::uint32_t chunk,
                                       std::span<std::byte> out,
                                       const TileKernels& kernels) noexcept {
  if (out.size() != frame.decoded_bytes(chunk)) {  // guard: chunk-size
    return FrameFault{FrameRule::kDecodedSize, chunk};
  }
  if (const auto fault = verify_chunk(frame, chunk)) return fault;
  const std::byte* const bytes = frame.chunk(chunk).data();
  if (frame.header().kind == FrameKind::kRaw) {
    std::memcpy(out.data(), bytes, out.size());
    return std::nullopt;
  }
  const ChunkCoding coding{kernels, *frame.header().layout, frame.header().code};
  if (decode_chunk(coding, bytes, frame.chunk_counts(chunk), out)) return std::nullopt;
  return FrameFault{FrameRule::kCodes, chunk};
}

bool codes_are_sound(const FrameView& frame, std::uint32_t chunk,
                     const TileKernels& kernels) noexcept {
  if (frame.header().kind == FrameKind::kRaw) return true;
  const ChunkCoding coding{kernels, *frame.header().layout, frame.header().code};
  return codes_fit(coding, frame.chunk(chunk).data(), frame.chunk_counts(chunk),
                   frame.decoded_bytes(chunk));
}

}  // namespace

std::optional<FrameFault> verify_chunk(const FrameView& frame, std::uint32_t chunk) noexcept {
  const auto checksum = static_cast<std::uint32_t>(checksum_of(frame.chunk(chunk)));
  if (checksum != frame.chunk_checksum(chunk)) {  // guard: chunk-checksum
    return FrameFault{FrameRule::kChunkChecksum, chunk};
  }
  return std::nullopt;
}

std::optional<FrameFault> verify_frame(const FrameView& frame) noexcept {
  return verify_frame(frame, fastest_kernels());
}

std::optional<FrameFault> verify_frame(const FrameView& frame,
                                       const TileKernels& kernels) noexcept {
  for (std::uint32_t chunk = 0; chunk < frame.header().chunks; ++chunk) {
    if (const auto fault = verify_chunk(frame, chunk)) return fault;
    if (!codes_are_sound(frame, chunk, kernels)) {  // guard: codes-verified
      return FrameFault{FrameRule::kCodes, chunk};
    }
  }
  return std::nullopt;
}

std::optional<FrameFault> decode_chunk(const FrameView& frame, std::uint32_t chunk,
                                       std::span<std::byte> out) noexcept {
  return decode_chunk(frame, chunk, out, fastest_kernels());
}

std::optional<FrameFault> decode_frame(const FrameView& frame, std::span<std::byte> out) noexcept {
  return decode_frame(frame, out, fastest_kernels());
}

std::optional<FrameFault> decode_frame(const FrameView& frame, std::span<std::byte> out,
                                       const TileKernels& kernels) noexcept {
  if (out.size() != frame.header().decoded_bytes) {  // guard: frame-size
    return FrameFault{FrameRule::kDecodedSize, std::nullopt};
  }
  for (std::uint32_t chunk = 0; chunk < frame.header().chunks; ++chunk) {
    const auto part = out.subspan(frame.decoded_offset(chunk), frame.decoded_bytes(chunk));
    if (const auto fault = decode_chunk(frame, chunk, part, kernels)) return fault;
  }
  return std::nullopt;
}

FormatError frame_error(const FrameFault& fault, const std::string& path, const std::string& tensor,
                        std::uint64_t frame) {
  std::string text(rule_name(fault.rule));
  text += ": frame " + std::to_string(frame);
  if (fault.chunk) text += ", chunk " + std::to_string(*fault.chunk);
  text += fault.rule == FrameRule::kVersion
              ? " has a version that this TensorStream does not read: use a newer one"
              : " is damaged: pack or encode the tensor again";
  return {path, tensor, text};
}

}  // namespace tensorstream
