// How a group is cut into frames and batches of frames: what crosses the link, and is decoded, at
// once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/group_layout.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// A part of a tensor that becomes one frame.
struct FramePart {
  std::size_t position = 0;  // of the tensor, in its group
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

/// Frames that lie one behind the other, behind the table that says where: one copy brings both.
struct FrameBatch {
  std::size_t first_part = 0;
  std::size_t part_count = 0;
  /// The most that table and frames take, where none of them gets shorter by being encoded.
  std::uint64_t bound_bytes = 0;
};

/// How many batches a group's frames are, and room for one of them: where weights are as usual,
/// none needs more. Where it does, it becomes several. They are about as large, but that a GPU
/// decodes chunks in waves, and the last one takes as long with few: all but the first are whole
/// waves where the group is decoded in fewer of them so.
struct BatchSize {
  std::size_t count = 0;
  std::uint64_t room_bytes = 0;
};

struct FrameBatches {
  std::vector<FramePart> parts;  // in the order of the group's tensors
  std::vector<FrameBatch> batches;
  std::uint64_t room_bytes = 0;  // BatchSize::room_bytes
};

/// What the table of a batch of so many frames takes.
std::uint64_t frame_table_bytes(std::size_t frames) noexcept;

/// The most bytes of a batch where a copy moves `piece_bytes` at most; never less than one frame
/// takes.
std::uint64_t batch_limit(std::uint64_t piece_bytes) noexcept;

/// The batches of `group` where none takes more than `most_bytes`, which one frame fits.
BatchSize batch_size(const Group& group, std::span<const TensorSpec> tensors,
                     std::uint64_t most_bytes);

/// Cuts the tensors of `group`, empty ones apart, into frames and these into batches.
FrameBatches cut_into_frames(const Group& group, std::span<const TensorSpec> tensors,
                             std::uint64_t most_bytes);

/// Whether the group's frames are worth their decoding, by what is usual for its types. Groups that
/// are read by rows are not: kernels read their rows in host memory.
bool is_worth_encoding(const Group& group, std::span<const TensorSpec> tensors);
/// Bytes of the groups that `plan` brings home, that are worth it and no frames in their files.
std::uint64_t encoded_bytes(std::span<const Group> groups, const Plan& plan,
                            std::span<const TensorSpec> tensors);
/// Whether some of the weights that `plan` streams are frames in their files.
bool streams_frames(std::span<const Group> groups, const Plan& plan,
                    std::span<const TensorSpec> tensors);
/// What the group is expected to take as frames.
std::uint64_t usual_coded_bytes(const Group& group, std::span<const TensorSpec> tensors);
/// As footprints(), with what is expected to cross the link of groups that are worth encoding, in
/// batches of at most `most_bytes`.
std::vector<GroupFootprint> coded_footprints(std::span<const Group> groups,
                                             std::span<const TensorSpec> tensors,
                                             ComputePlace place, std::uint64_t kept_page_bytes,
                                             std::uint64_t most_bytes);

}  // namespace tensorstream
