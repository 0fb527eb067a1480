// StreamingChoice: one way to split the groups that do not all fit, and what it costs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "scheduler/arena_layout.h"
#include "scheduler/homes.h"
#include "scheduler/pass_time.h"
#include "tensorstream/plan.h"

namespace tensorstream {

/// A group of the cyclic order that is on the device when it is used.
struct UsedGroup {
  std::uint64_t size_bytes = 0;
  /// False for groups that are resident in every plan.
  bool may_stream = true;
  /// What its load moves, where that is not size_bytes.
  std::optional<std::uint64_t> coded_bytes{};
  /// Device memory that it takes coded; 0 where it cannot stay so.
  std::uint64_t kept_bytes = 0;
  /// As GroupFootprint has them.
  bool in_files = false;
  HomeState home = HomeState::kOpen;
  std::optional<std::uint64_t> frame_bytes{};
  bool decodes_frames = false;
  std::uint64_t coded_copies = 0;
  std::uint64_t tensors = 0;
};

/// What a home of the group takes.
std::uint64_t home_bytes(const UsedGroup& group);

/// One way to split the groups that may be streamed.
struct StreamingChoice {
  /// By position among the groups that may be streamed.
  std::vector<bool> resident;
  /// Likewise: those that stay coded.
  std::vector<bool> kept;
  /// By position among those of them that are not resident.
  ArenaLayout layout;
  std::uint64_t resident_bytes = 0;
  std::uint64_t kept_bytes = 0;
  std::uint64_t streamed_bytes = 0;
  /// Lower is better: predicted times, multiplied.
  double cost = 0;

  /// What it takes of the room for groups that may be streamed.
  std::uint64_t taken_bytes() const { return resident_bytes + kept_bytes + layout.arena_bytes; }
};

/// Whether `a` is to be chosen before `b`: by cost, where neither exposes more loads. A choice that
/// does has to be better by a margin: such a load also waits for the host.
bool better(const StreamingChoice& a, const StreamingChoice& b);

/// What choices cost.
///
/// The compute time that a user gives is that of batch 1, or none is given; a larger batch computes
/// for longer, and exposed loads then cost most. So every choice is timed twice, as expected and
/// with a compute that keeps up with the link, and the product counts. Where host memory has no
/// room for all homes, the choice's are chosen as the plan's will be; without bound is the cost
/// where what stays coded has none.
class ChoiceCost {
 public:
  /// Of choices for these groups, which outlive it. `order` are their positions, one after the
  /// other as they are used; none for the cycle.
  ChoiceCost(std::span<const UsedGroup> groups, const Rates& rates, std::vector<std::size_t> order);

  double of(const StreamingChoice& choice) const;
  /// The rates, with a compute time that is assumed where none is known.
  const Rates& expected() const noexcept { return expected_; }

 private:
  bool find_disk_reads(std::vector<PassStep>& steps) const;
  std::vector<PassStep> in_order(std::span<const PassStep> steps,
                                 std::span<const std::uint64_t> offsets) const;

  std::span<const UsedGroup> groups_;
  std::vector<std::size_t> order_;
  Rates expected_;
  Rates balanced_;
};

}  // namespace tensorstream
