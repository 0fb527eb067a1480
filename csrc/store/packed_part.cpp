#include "store/packed_part.h"

#include <algorithm>
#include <optional>
#include <variant>

#include "codec/checksum.h"
#include "codec/frame_decoder.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

[[noreturn]] void refuse(const std::string& path, const PackedPart& part, const std::string& what) {
  throw FormatError(path, shown(part.tensor.original.name),
                    "packed checksum: " + what + "; fetch or pack the file again");
}

}  // namespace

PackedPart part_of(const PackedTensor& tensor, std::uint64_t number) {
  const std::uint64_t offset = number * kPartBytes;
  return {tensor, number, offset, std::min(kPartBytes, tensor.original.size_bytes - offset)};
}

void refuse_frame(const std::string& path, const PackedPart& part, const FrameFault& fault) {
  throw frame_error(fault, path, shown(part.tensor.original.name), part.number);
}

FrameView checked_frame(const std::string& path, const PackedPart& part,
                        std::span<const std::byte> stored) {
  const auto parsed = FrameView::parse(stored);
  if (const auto* fault = std::get_if<FrameFault>(&parsed)) refuse_frame(path, part, *fault);
  const auto& frame = std::get<FrameView>(parsed);
  const std::uint64_t packed = part.tensor.checksums.at(part.number);
  if (FrameView::stated_checksum(stored) != packed) {  // guard: packed-frame
    refuse(path, part, "frame " + std::to_string(part.number) + " is not the one that was packed");
  }
  if (frame.header().decoded_bytes != part.size_bytes) {  // guard: packed-frame-size
    refuse_frame(path, part, {FrameRule::kDecodedSize, std::nullopt});
  }
  return frame;
}

void check_plain_part(const std::string& path, const PackedPart& part,
                      std::span<const std::byte> stored) {
  if (checksum_of(stored) != part.tensor.checksums.at(part.number)) {  // guard: packed-plain
    refuse(path, part,
           "chunk " + std::to_string(part.number) + " of 2 MiB is not as it was packed");
  }
}

}  // namespace tensorstream
