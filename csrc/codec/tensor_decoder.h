// Whole tensors from their frames.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "codec/frame_format.h"

namespace tensorstream {

/// What a tensor is called in messages.
struct TensorName {
  std::string path;
  std::string tensor;
};

/// The frames that `encoded` is, one behind the other, for a tensor of `size_bytes`. Raises
/// FormatError where they are not sound, or decode to another size. What their chunks hold is not
/// looked at.
std::vector<FrameView> parse_tensor(std::span<const std::byte> encoded, std::uint64_t size_bytes,
                                    const TensorName& name);

/// Raises FormatError for a chunk that is not as it was encoded.
void verify_tensor(std::span<const FrameView> frames, const TensorName& name);

/// Fills `out` from what parse_tensor() gave, by `threads` threads, the calling one included.
/// Raises FormatError where a frame is damaged; `out` is then not to be used.
void decode_tensor(std::span<const FrameView> frames, std::span<std::byte> out, unsigned threads,
                   const TensorName& name);

}  // namespace tensorstream
