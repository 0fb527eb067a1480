// Bytes from frames, and the proof that frames are whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "codec/frame_format.h"
#include "tensorstream/error.h"

namespace tensorstream {

class TileKernels;

/// Nothing where the bytes of a chunk are those that were encoded.
std::optional<FrameFault> verify_chunk(const FrameView& frame, std::uint32_t chunk) noexcept;
/// Nothing where all chunks of a frame are what was encoded and decode_frame() would find no fault:
/// so that it may be decoded by who does not look.
std::optional<FrameFault> verify_frame(const FrameView& frame) noexcept;
std::optional<FrameFault> verify_frame(const FrameView& frame, const TileKernels& kernels) noexcept;

/// Fills `out`, whose size is decoded_bytes(chunk), with a chunk of a frame, which is verified
/// first. Where there is a fault, `out` may be partly written, and none of it is to be used.
std::optional<FrameFault> decode_chunk(const FrameView& frame, std::uint32_t chunk,
                                       std::span<std::byte> out) noexcept;

/// Fills `out` with all that a frame decodes to; as decode_chunk(). A fault where `out` has another
/// size.
std::optional<FrameFault> decode_frame(const FrameView& frame, std::span<std::byte> out) noexcept;
std::optional<FrameFault> decode_frame(const FrameView& frame, std::span<std::byte> out,
                                       const TileKernels& kernels) noexcept;

/// The error for a fault in the frame of this number of a tensor of the file at `path`.
FormatError frame_error(const FrameFault& fault, const std::string& path, const std::string& tensor,
                        std::uint64_t frame);

}  // namespace tensorstream
