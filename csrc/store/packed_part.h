// The checks of a part of a packed tensor: a frame, or 2 MiB that are not encoded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "codec/frame_format.h"
#include "store/packed_header.h"

namespace tensorstream {

/// A part of a tensor of a packed file.
struct PackedPart {
  const PackedTensor& tensor;
  std::uint64_t number = 0;
  /// Of what it was, where its tensor begins.
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

/// The part of `tensor`, which has it, of that number.
PackedPart part_of(const PackedTensor& tensor, std::uint64_t number);

/// Raises the FormatError for a fault in the frame of a part of the file at `path`.
[[noreturn]] void refuse_frame(const std::string& path, const PackedPart& part,
                               const FrameFault& fault);

/// The frame of a part, of which `stored` has header and index: the one that was packed. What its
/// chunks hold is not looked at. Raises FormatError.
FrameView checked_frame(const std::string& path, const PackedPart& part,
                        std::span<const std::byte> stored);

/// Raises FormatError where the bytes of a part that is not encoded are not those that were packed.
void check_plain_part(const std::string& path, const PackedPart& part,
                      std::span<const std::byte> stored);

}  // namespace tensorstream
