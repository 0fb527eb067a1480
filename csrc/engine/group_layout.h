// Where the tensors of a group lie inside the group's place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/source_table.h"
#include "tensorstream/engine.h"

namespace tensorstream {

struct GroupLayout {
  /// Offset of each tensor from the place's start, in the order of Group::tensors: multiples of
  /// kTensorAlignment, until lie_as_sources_do() moves them.
  std::vector<std::uint64_t> offsets_bytes;
  /// Size of the place, a multiple of kGroupAlignment.
  std::uint64_t size_bytes = 0;
};

/// Lays the tensors of `group` out one after the other. Raises ConfigError for a tensor that
/// `tensors` does not have and for sizes that overflow.
GroupLayout lay_out(const Group& group, std::span<const TensorSpec> tensors);

/// Moves each tensor within its room to where its source begins within a cache line (of the file's
/// page, or of RAM). So it is aligned as in a model whose weights are mapped from that file, and
/// the kernel copies it a third faster. For devices that are the host; vendors' libraries for other
/// devices choose kernels by alignment.
void lie_as_sources_do(GroupLayout& layout, const Group& group, const SourceTable& sources);

/// What the planner needs to know of the groups of `model`.
std::vector<GroupFootprint> footprints(std::span<const Group> groups,
                                       std::span<const TensorSpec> tensors);

}  // namespace tensorstream
