#include "store/packed_file_reader.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "codec/frame_decoder.h"
#include "codec/frame_format.h"
#include "store/packed_part.h"
#include "store/shown_text.h"
#include "store/turn_line.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::vector<PackedPart> parts_in(const PackedHeader& header) {
  std::vector<PackedPart> parts;
  for (const PackedTensor& tensor : header.tensors) {
    const std::uint64_t count = parts_of(tensor.original.size_bytes);
    for (std::uint64_t number = 0; number < count; ++number) {
      parts.push_back(part_of(tensor, number));
    }
  }
  return parts;
}

class FileScan {
 public:
  FileScan(const File& file, const PackedHeader& header, const PartSink& sink)
      : file_(file), header_(header), parts_(parts_in(header)), sink_(sink) {}

  void run(unsigned threads, Progress& progress) {
    TurnLine line(parts_.size());
    line.run(threads, [&]() -> TurnLine::Work {
      auto memory = std::make_shared<Memory>();
      return [this, memory, &line, &progress](std::uint64_t number) {
        scan_part(line, number, *memory);
        progress.add(parts_[number].size_bytes);
      };
    });
    for (const PackedTensor& tensor : header_.tensors) check_unencoded_empty(tensor);
    for (const PackedExtent& extent : header_.padding) {
      check_zeros(extent, extent.offset_bytes);
    }
    file_.check_unchanged();
  }

 private:
  /// What a thread reads and decodes into.
  struct Memory {
    std::vector<std::byte> stored;
    std::vector<std::byte> decoded;
  };

  struct Place {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
  };

  std::span<const std::byte> read(const Place& place, std::vector<std::byte>& memory) const {
    memory.resize(place.size_bytes);
    file_.read_exact(place.offset_bytes, memory);
    return memory;
  }

  void scan_part(TurnLine& line, std::uint64_t number, Memory& memory) {
    const PackedPart& part = parts_[number];
    Place place;
    line.in_turn(number, [&] { place = part.tensor.encoded ? find(part) : plain_place(part); });
    const std::span<const std::byte> stored = read(place, memory.stored);
    if (!part.tensor.encoded) {
      check_plain_part(file_.path(), part, stored);
      if (sink_) sink_(part.tensor, part.offset_bytes, stored);
      return;
    }
    scan_frame(part, stored, memory.decoded);
    const bool last = part.offset_bytes + part.size_bytes == part.tensor.original.size_bytes;
    if (last) check_zeros(part.tensor.stored, place.offset_bytes + place.size_bytes);
  }

  static Place plain_place(const PackedPart& part) {
    return {part.tensor.stored.offset_bytes + part.offset_bytes, part.size_bytes};
  }

  /// Where a frame is: behind the one before it, and as long as it says. Where it lies, its own
  /// checksum is looked at later, and the error of the first frame that is damaged is what counts.
  Place find(const PackedPart& part) {
    const PackedExtent& extent = part.tensor.stored;
    if (part.number == 0) next_frame_ = extent.offset_bytes;
    const std::uint64_t left = extent.offset_bytes + extent.size_bytes - next_frame_;
    if (left < kFrameHeaderBytes)
      refuse_frame(file_.path(), part, {FrameRule::kFrameLength, std::nullopt});
    std::array<std::byte, kFrameHeaderBytes> start{};
    file_.read_exact(next_frame_, start);
    const std::uint64_t longest = std::min(left, frame_bound(kFrameBytes));
    const Place place{next_frame_,
                      std::clamp(FrameView::stated_bytes(start), kFrameHeaderBytes, longest)};
    next_frame_ += place.size_bytes;
    return place;
  }

  void scan_frame(const PackedPart& part, std::span<const std::byte> stored,
                  std::vector<std::byte>& memory) const {
    const FrameView frame = checked_frame(file_.path(), part, stored);
    if (!sink_) {
      if (const auto fault = verify_frame(frame)) refuse_frame(file_.path(), part, *fault);
      return;
    }
    memory.resize(part.size_bytes);
    if (const auto fault = decode_frame(frame, memory)) refuse_frame(file_.path(), part, *fault);
    sink_(part.tensor, part.offset_bytes, memory);
  }

  /// A tensor without elements has no frame that would be looked at.
  void check_unencoded_empty(const PackedTensor& tensor) const {
    if (tensor.original.size_bytes == 0 && tensor.stored.size_bytes != 0) {
      check_zeros(tensor.stored, tensor.stored.offset_bytes);
    }
  }

  /// From `begin` to the extent's end, less than kPackedAlignment.
  void check_zeros(const PackedExtent& extent, std::uint64_t begin) const {
    const std::uint64_t size = extent.offset_bytes + extent.size_bytes - begin;
    std::vector<std::byte> bytes;
    const bool zeros =
        size < kPackedAlignment &&
        std::ranges::all_of(
            read({begin, size}, bytes), [](std::byte byte) { return byte == std::byte{0}; });
    if (!zeros) {  // guard: padding-zeros
      throw FormatError(file_.path(), shown(extent.name),
                        "padding: the " + std::to_string(size) + " bytes from " +
                            std::to_string(begin) + " on are not zeros, less than 4096 of them");
    }
  }

  // Constant after construction.
  const File& file_;
  const PackedHeader& header_;
  const std::vector<PackedPart> parts_;
  const PartSink& sink_;

  // Used in turns only.
  std::uint64_t next_frame_ = 0;
};

}  // namespace

void scan_packed_file(const File& file, const PackedHeader& header, unsigned threads,
                      const PartSink& sink, Progress& progress) {
  FileScan(file, header, sink).run(threads, progress);
}

}  // namespace tensorstream
