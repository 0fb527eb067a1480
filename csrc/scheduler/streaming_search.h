// The search for the plan of the groups that do not all fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "scheduler/arena_layout.h"
#include "scheduler/pass_time.h"
#include "scheduler/residents.h"
#include "tensorstream/plan.h"

namespace tensorstream {

/// A group of the cyclic order that is on the device when it is used.
struct UsedGroup {
  std::uint64_t size_bytes = 0;
  /// False for groups that are resident in every plan.
  bool may_stream = true;
  /// What its load moves, where that is not size_bytes.
  std::optional<std::uint64_t> coded_bytes{};
};

/// One way to split the groups that may be streamed.
struct StreamingChoice {
  /// By position among the groups that may be streamed.
  std::vector<bool> resident;
  /// By position among those of them that are streamed.
  ArenaLayout layout;
  std::uint64_t resident_bytes = 0;
  std::uint64_t streamed_bytes = 0;
  /// Lower is better: predicted times, multiplied.
  double cost = 0;
};

/// Finds the residents and the arena layout with the least predicted time.
///
/// The compute time that a user gives is that of batch 1, or none is given; a larger batch computes
/// for longer, and exposed loads then cost most. So every choice is timed twice, as expected and
/// with a compute that keeps up with the link, and the product counts. Choices that expose more
/// loads have to be better by a margin: such a load also waits for the host. Deterministic; some
/// tens of choices, each about linear in the groups.
class StreamingSearch {
 public:
  /// `room_bytes`: what residents that may be streamed and the arena may take together, at least
  /// the largest such group and less than all of them.
  StreamingSearch(std::vector<UsedGroup> groups, std::uint64_t room_bytes, const Rates& rates);

  StreamingChoice best();

  /// The choice that has these residents, by position among the groups that may be streamed, which
  /// leave room for the largest other.
  StreamingChoice with_residents(std::vector<bool> resident) const;

 private:
  std::vector<std::size_t> largest_indices() const;
  void consider_arenas(std::size_t largest_index);
  void consider_arena(std::uint64_t arena_bytes, ResidentChoice wanted);
  std::vector<std::uint64_t> arenas_for(std::size_t largest_index) const;
  double cost_of(const StreamingChoice& choice, std::span<const std::uint64_t> streamed) const;
  bool better(const StreamingChoice& a, const StreamingChoice& b) const;
  void keep(StreamingChoice choice);
  void fill(StreamingChoice& choice) const;
  std::uint64_t small_bytes(std::uint64_t largest_streamed) const;

  std::vector<UsedGroup> groups_;
  std::uint64_t room_bytes_;
  Rates expected_;
  Rates balanced_;
  // Sizes of the groups that may be streamed, in the order of use and in descending order.
  std::vector<std::uint64_t> sizes_;
  std::vector<std::uint64_t> descending_;
  // The best choice found for each number of exposed pairs.
  std::map<std::uint32_t, StreamingChoice> best_by_exposed_;
};

}  // namespace tensorstream
