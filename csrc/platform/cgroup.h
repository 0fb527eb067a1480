// Memory limits of the control groups (v1 and v2) that this process is in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace tensorstream {

struct CgroupMemory {
  /// The tightest limit of the process's group and its ancestors.
  std::uint64_t limit_bytes = 0;
  /// The least that any of those limits leaves; file pages that the kernel would drop first count
  /// as left.
  std::uint64_t left_bytes = 0;
  /// File pages that are charged to the group with the least left, and to groups in it.
  std::uint64_t file_bytes = 0;
};

/// Nothing where no group limits memory. `root` is put before /proc and /sys: a folder made by a
/// test, or empty.
std::optional<CgroupMemory> cgroup_memory(const std::string& root);

}  // namespace tensorstream
