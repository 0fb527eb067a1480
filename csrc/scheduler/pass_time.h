// The model of time: one pass over all groups, by link and compute.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tensorstream/plan.h"

namespace tensorstream {

/// One group of the cyclic order, as the model of time sees it.
struct PassStep {
  std::uint64_t size_bytes = 0;
  bool streamed = false;
  /// For streamed groups: how many streamed groups ago the nearest one that shares arena bytes was
  /// used.
  std::uint32_t sharing_distance = 0;
  /// What its load moves, where that is not size_bytes.
  std::optional<std::uint64_t> coded_bytes{};

  std::uint64_t link_bytes() const { return coded_bytes.value_or(size_bytes); }
};

/// Seconds that one pass takes in a steady state. Loads are made in order, each once the link is
/// free and the earlier users of its place are done; a group computes after its load and after the
/// group before it, and takes its share of the compute time by its bytes.
double pass_seconds(std::span<const PassStep> steps, const Rates& rates);

}  // namespace tensorstream
