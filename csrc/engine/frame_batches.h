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
  /// The most that table and frames take.
  std::uint64_t bound_bytes = 0;

  std::uint64_t table_bytes() const noexcept;
};

struct FrameBatches {
  std::vector<FramePart> parts;  // in the order of the group's tensors
  std::vector<FrameBatch> batches;
};

/// The most bytes of a batch where a copy moves `piece_bytes` at most; never less than one frame
/// takes.
std::uint64_t batch_limit(std::uint64_t piece_bytes) noexcept;

/// Cuts the tensors of `group`, empty ones apart, into frames and these into batches.
FrameBatches cut_into_frames(const Group& group, std::span<const TensorSpec> tensors,
                             std::uint64_t piece_bytes);

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
/// The most bytes of any batch of those groups that are worth encoding; 0 where none is.
std::uint64_t largest_batch_bytes(std::span<const Group> groups,
                                  std::span<const TensorSpec> tensors, std::uint64_t piece_bytes);
/// As footprints(), with what is expected to cross the link of groups that are worth encoding.
std::vector<GroupFootprint> coded_footprints(std::span<const Group> groups,
                                             std::span<const TensorSpec> tensors,
                                             ComputePlace place, std::uint64_t kept_page_bytes);

}  // namespace tensorstream
