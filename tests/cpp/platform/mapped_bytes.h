// How much of a file this process has mapped and present.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "base/units.h"
#include "platform/memory_map.h"
#include "platform/text_file.h"

namespace tensorstream {

/// Resident bytes of this process's mappings of the file at `path`.
inline std::uint64_t mapped_resident_bytes(const std::string& path) {
  std::ifstream lines("/proc/self/smaps");
  std::uint64_t sum = 0;
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (const auto area = parse_memory_area(line)) inside = area->path == path;
    if (inside) sum += number_after(line, "Rss:").value_or(0) * 1_KiB;
  }
  return sum;
}

}  // namespace tensorstream
