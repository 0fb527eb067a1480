// The search for the plan of the groups that do not all fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "scheduler/residents.h"
#include "scheduler/streaming_choice.h"

namespace tensorstream {

/// Finds the residents and the arena layout with the least predicted time.
/// None stays coded. Choices that expose more loads have to be better by a margin. Deterministic;
/// some tens of choices, each about linear in the groups.
class StreamingSearch {
 public:
  /// `room_bytes`: what residents that may be streamed and the arena may take together, at least
  /// the largest such group and less than all of them. Groups and cost outlive it.
  StreamingSearch(std::span<const UsedGroup> groups, std::uint64_t room_bytes,
                  const ChoiceCost& cost);

  StreamingChoice best();

  /// The choice that has these residents, by position among the groups that may be streamed, which
  /// leave room for the largest other.
  StreamingChoice with_residents(std::vector<bool> resident) const;

 private:
  std::vector<std::size_t> largest_indices() const;
  void consider_arenas(std::size_t largest_index);
  void consider_arena(std::uint64_t arena_bytes, ResidentChoice wanted);
  std::vector<std::uint64_t> arenas_for(std::size_t largest_index) const;
  void keep(StreamingChoice choice);
  void fill(StreamingChoice& choice) const;
  std::uint64_t small_bytes(std::uint64_t largest_streamed) const;

  std::span<const UsedGroup> groups_;
  std::uint64_t room_bytes_;
  const ChoiceCost& cost_;
  // Sizes of the groups that may be streamed, in the order of use and in descending order.
  std::vector<std::uint64_t> sizes_;
  std::vector<std::uint64_t> descending_;
  // The best choice found for each number of exposed pairs.
  std::map<std::uint32_t, StreamingChoice> best_by_exposed_;
};

}  // namespace tensorstream
