// Where the tensors of a group lie inside the group's place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensorstream/engine.h"

namespace tensorstream {

/// What the driver of an accelerator takes for a piece of `size_bytes`: whole pages, but small
/// pieces share one. `page_bytes` is a power of two.
std::uint64_t taken_bytes(std::uint64_t size_bytes, std::uint64_t page_bytes);

struct GroupLayout {
  /// Offset of each tensor from the place's start, in the order of Group::tensors: multiples of
  /// kTensorAlignment, until lie_as_in_model() moves them.
  std::vector<std::uint64_t> offsets_bytes;
  /// Size of the place, a multiple of kGroupAlignment.
  std::uint64_t size_bytes = 0;
};

/// Lays the tensors of `group` out one after the other. On an accelerator a place is a multiple of
/// what its driver gives memory in, small ones apart, which share that: what the budget counts is
/// what the driver takes. Raises ConfigError for a tensor that
/// `tensors` does not have and for sizes that overflow.
GroupLayout lay_out(const Group& group, std::span<const TensorSpec> tensors,
                    ComputePlace place = ComputePlace::kHost);

/// Moves each tensor within its room to its TensorSpec::line_offset_bytes, for devices that are the
/// host. Where the model was mapped from a file, the kernel copies a third faster to there, too.
/// Raises ConfigError where a line has no such offset.
void lie_as_in_model(GroupLayout& layout, const Group& group, std::span<const TensorSpec> tensors);

/// What the planner needs to know of the groups of `model`.
std::vector<GroupFootprint> footprints(std::span<const Group> groups,
                                       std::span<const TensorSpec> tensors,
                                       ComputePlace place = ComputePlace::kHost);

/// Says that all bytes of the group are in files that the device copies from (PinnedFile): what
/// crosses as it is crosses from there, and a home would be the same once more. What is to cross
/// coded, or by rows, counts as in files until it has a home.
void note_pinned(GroupFootprint& footprint);

}  // namespace tensorstream
