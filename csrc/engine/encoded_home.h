// The home of a group in host RAM as frames: fewer bytes to hold, and to bring over the link.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "codec/compression_level.h"
#include "codec/device_decoder.h"
#include "codec/frame_format.h"
#include "engine/frame_batches.h"
#include "engine/group_layout.h"
#include "engine/source_table.h"
#include "io/reader.h"
#include "memory/pinned_memory.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// Batches of frames in pinned memory as a source of bytes laid out as the group's place, for the
/// host to read; the device copies and decodes batches. Constant after construction.
class EncodedHome final : public Reader {
 public:
  /// A table of frames, then the frames. A frame's decoded_offset is from the group's place.
  struct Batch {
    std::span<const std::byte> bytes;  // of the home's memory
    std::size_t frame_count = 0;

    std::span<const BatchedFrame> frames() const noexcept;
    std::uint64_t table_bytes() const noexcept { return sizeof(BatchedFrame) * frame_count; }
  };
  /// One frame, as the host decodes it.
  struct Frame {
    std::uint64_t decoded_offset = 0;
    /// Where its tensor begins in the place.
    std::uint64_t tensor_offset = 0;
    FrameView view;
  };

  EncodedHome(const std::string& group, std::uint64_t size_bytes, PinnedMemory memory,
              std::vector<Batch> batches, std::vector<Frame> frames);

  const std::string& name() const noexcept override { return name_; }
  Tier tier() const noexcept override { return Tier::kRam; }
  /// Of the group's place.
  std::uint64_t size_bytes() const noexcept override { return size_bytes_; }
  /// Decodes the chunks that hold the range; bytes of no tensor are zeros. Raises IoError, and
  /// FormatError where the memory was damaged.
  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override;

  /// Pinned memory that the home takes, and what of it is pinned.
  std::uint64_t held_bytes() const noexcept { return memory_.size_bytes(); }
  std::uint64_t pinned_bytes() const noexcept { return memory_.pinned_bytes(); }
  /// True where the device copies every batch by itself.
  bool is_pinned() const noexcept { return pinned_bytes() == held_bytes(); }
  std::span<const Batch> batches() const noexcept { return batches_; }
  /// Of all batches, one behind the other.
  std::span<const Frame> frames() const noexcept { return frames_; }

  /// `reader` as one of these; null for any other.
  static const EncodedHome* of(const Reader& reader) noexcept;

 private:
  void decode_frame(const Frame& frame, std::uint64_t offset_bytes, std::span<std::byte> out) const;

  const std::string name_;
  const std::uint64_t size_bytes_;
  const PinnedMemory memory_;
  const std::vector<Batch> batches_;
  const std::vector<Frame> frames_;
};

/// What a home is made of.
struct EncodedHomeParts {
  const Group& group;
  const GroupLayout& layout;
  std::span<const TensorSpec> tensors;
  /// Of each tensor of the group, by position.
  std::span<const std::vector<BoundExtent>> extents;
};

struct EncodedHomeOptions {
  CompressionLevel level;
  /// What batches are cut to, by what is usual for their types, and the most that one may take.
  std::uint64_t batch_bytes = 0;
  std::uint64_t slot_bytes = 0;
  /// Of host RAM; null where nothing is charged. Shared with all that takes from it.
  std::shared_ptr<Budget> budget = nullptr;
};

/// A home that holds the group's bytes: each is read from its source once, by several threads that
/// encode what they read. Beside the frames, memory for two or three batches is held meanwhile:
/// some tens of MiB each. Raises as PinnedMemory does, and IoError.
std::shared_ptr<EncodedHome> make_encoded_home(Device& device, const EncodedHomeParts& parts,
                                               const EncodedHomeOptions& options);

}  // namespace tensorstream
