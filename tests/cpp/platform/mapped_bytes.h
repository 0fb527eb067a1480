// How much of a file this process has mapped and present.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>

#include "base/units.h"
#include "platform/memory_map.h"
#include "platform/text_file.h"

namespace tensorstream {

/// Resident bytes of this process's memory areas that `counts` says.
template <typename Counts>
std::uint64_t resident_bytes_where(const Counts& counts) {
  std::ifstream lines("/proc/self/smaps");
  std::uint64_t sum = 0;
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (const auto area = parse_memory_area(line)) inside = counts(*area);
    if (inside) sum += number_after(line, "Rss:").value_or(0) * 1_KiB;
  }
  return sum;
}

/// Resident bytes of this process's mappings of the file at `path`.
inline std::uint64_t mapped_resident_bytes(const std::string& path) {
  return resident_bytes_where([&](const MemoryArea& area) { return area.path == path; });
}

/// Resident bytes of the memory area that holds `address`.
inline std::uint64_t resident_bytes_around(const std::byte* address) {
  const auto number = reinterpret_cast<std::uintptr_t>(address);
  return resident_bytes_where(
      [&](const MemoryArea& area) { return area.begin <= number && number < area.end; });
}

}  // namespace tensorstream
