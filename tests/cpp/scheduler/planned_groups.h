// Groups for the planner's tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tensorstream/plan.h"

namespace tensorstream {

inline std::vector<GroupFootprint> equal_groups(std::size_t count, std::uint64_t size_bytes) {
  std::vector<GroupFootprint> groups;
  for (std::size_t i = 0; i < count; ++i) {
    groups.push_back({"block." + std::to_string(i), size_bytes, Residency::kAny});
  }
  return groups;
}

}  // namespace tensorstream
