#include "scheduler/streaming_choice.h"

#include <algorithm>
#include <limits>

namespace tensorstream {
namespace {

// Share of its cost that a choice has to save before it may expose more loads than another.
constexpr double kExposureGain = 0.25;
// Compute time of a group at batch 1 over its time on the link, where nothing is known: between a
// laptop's CPU and a large GPU.
constexpr double kAssumedComputeShare = 1.0 / 16;
// Costs that differ by less are equal: they come from sums in different orders.
constexpr double kCostTolerance = 1e-9;

}  // namespace

bool better(const StreamingChoice& a, const StreamingChoice& b) {
  if (a.layout.exposed_pairs > b.layout.exposed_pairs) {
    return a.cost < b.cost * (1 - kExposureGain);
  }
  if (a.layout.exposed_pairs < b.layout.exposed_pairs) {
    return b.cost >= a.cost * (1 - kExposureGain);
  }
  if (a.cost < b.cost * (1 - kCostTolerance)) return true;
  if (b.cost < a.cost * (1 - kCostTolerance)) return false;
  if (a.streamed_bytes != b.streamed_bytes) return a.streamed_bytes < b.streamed_bytes;
  return a.layout.arena_bytes < b.layout.arena_bytes;
}

std::uint64_t home_bytes(const UsedGroup& group) {
  return group.coded_bytes.value_or(group.size_bytes);
}

ChoiceCost::ChoiceCost(std::span<const UsedGroup> groups, const Rates& rates)
    : groups_(groups), expected_(rates), balanced_(rates) {
  double all_bytes = 0;
  for (const UsedGroup& group : groups_) all_bytes += static_cast<double>(group.size_bytes);
  const double all_link_seconds = all_bytes / rates.link_bytes_per_second;
  if (!(rates.compute_seconds > 0)) {
    expected_.compute_seconds = kAssumedComputeShare * all_link_seconds;
  }
  balanced_.compute_seconds = std::max(rates.compute_seconds, all_link_seconds);
}

double ChoiceCost::of(const StreamingChoice& choice) const {
  std::vector<PassStep> steps;
  std::vector<std::uint64_t> in_arena;
  steps.reserve(groups_.size());
  std::size_t candidate = 0;
  for (const UsedGroup& group : groups_) {
    PassStep step{.size_bytes = group.size_bytes,
                  .coded_bytes = group.coded_bytes,
                  .settled = !group.may_stream};
    if (group.may_stream) {
      step.kept = choice.kept[candidate];
      step.streamed = !step.kept && !choice.resident[candidate];
      ++candidate;
    }
    if (step.kept || step.streamed) in_arena.push_back(group.size_bytes);
    steps.push_back(step);
  }
  const std::vector<std::uint32_t> distances = sharing_distances(in_arena, choice.layout.offsets);
  std::size_t place = 0;
  for (PassStep& step : steps) {
    if (step.kept || step.streamed) step.sharing_distance = distances[place++];
  }
  if (!find_disk_reads(steps)) return std::numeric_limits<double>::infinity();
  return pass_seconds(steps, expected_) * pass_seconds(steps, balanced_);
}

// Says of each step whether it reads files; false where what stays coded finds no room for its
// home.
bool ChoiceCost::find_disk_reads(std::vector<PassStep>& steps) const {
  std::vector<HomeCandidate> candidates;
  std::vector<std::size_t> loaded;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (!steps[i].streamed && !steps[i].kept) continue;
    candidates.push_back({home_bytes(groups_[i]), groups_[i].home, steps[i].kept});
    loaded.push_back(i);
  }
  const auto homes = choose_homes(candidates, expected_.home_bytes);
  if (!homes) return false;
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    steps[loaded[i]].from_disk = !(*homes)[i] && groups_[loaded[i]].in_files;
  }
  return true;
}

}  // namespace tensorstream
