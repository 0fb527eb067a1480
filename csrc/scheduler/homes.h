// Which groups have homes in host memory, where not all of them find room there.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tensorstream/plan.h"

namespace tensorstream {

/// A group that a pass loads, or that stays on the device coded.
struct HomeCandidate {
  /// What a home takes of host memory.
  std::uint64_t home_bytes = 0;
  HomeState state = HomeState::kOpen;
  /// It cannot be what it is without a home: it stays on the device coded.
  bool needed = false;
};

/// Whether loads come from host memory that the device copies from.
constexpr bool is_home(HomeState state) {
  return state == HomeState::kThere || state == HomeState::kAtSource;
}

/// Chooses homes among `groups`, in the cyclic order of use, for `room_bytes` of host memory beside
/// the homes that are there: those that are needed, and of the others as many bytes as find room,
/// spread evenly, so that the disk, which reads the rest, and the link are both busy all the time.
/// True at the positions of groups at home. Nothing where not all that are needed find room.
std::optional<std::vector<bool>> choose_homes(std::span<const HomeCandidate> groups,
                                              std::uint64_t room_bytes);

}  // namespace tensorstream
