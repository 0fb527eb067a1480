#include "scheduler/homes.h"

#include <algorithm>
#include <cstddef>

#include "scheduler/residents.h"

namespace tensorstream {

std::optional<std::vector<bool>> choose_homes(std::span<const HomeCandidate> groups,
                                              std::uint64_t room_bytes) {
  std::vector<bool> home(groups.size(), false);
  std::vector<std::size_t> open;
  std::vector<std::uint64_t> sizes;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const HomeCandidate& group = groups[i];
    home[i] = group.needed || is_home(group.state);
    if (group.needed && group.state == HomeState::kRefused) return std::nullopt;
    if (group.state != HomeState::kOpen) continue;
    if (!group.needed) {
      open.push_back(i);
      sizes.push_back(group.home_bytes);
      continue;
    }
    if (group.home_bytes > room_bytes) return std::nullopt;
    room_bytes -= group.home_bytes;
  }
  if (open.empty()) return home;
  std::uint64_t left = room_bytes;
  const bool all_fit = std::ranges::all_of(sizes, [&left](std::uint64_t size) {
    const bool fits = size <= left;
    if (fits) left -= size;
    return fits;
  });
  std::vector<bool> chosen(open.size(), true);
  if (!all_fit) {
    chosen = choose_residents(
        sizes,
        {.capacity = room_bytes, .largest_streamed = std::ranges::max(sizes), .small_bytes = 0});
  }
  for (std::size_t i = 0; i < open.size(); ++i) home[open[i]] = chosen[i];
  return home;
}

}  // namespace tensorstream
