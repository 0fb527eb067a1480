#include "scheduler/streaming_choice.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <utility>

namespace tensorstream {
namespace {

// Share of its cost that a choice has to save before it may expose more loads than another.
constexpr double kExposureGain = 0.25;
// Compute time of a group at batch 1 over its time on the link, where nothing is known: between a
// laptop's CPU and a large GPU.
constexpr double kAssumedComputeShare = 1.0 / 16;
// Costs that differ by less are equal: they come from sums in different orders.
constexpr double kCostTolerance = 1e-9;

/// What lies in the arena while groups are used one after the other.
class ArenaContent {
 public:
  /// How many uses ago the last group was used that shared bytes with this one, whose place it
  /// takes; 0 where the group lies there still. Those that others took the place of do not count
  /// any more: theirs was earlier.
  std::uint32_t use(std::size_t group, std::uint64_t offset, std::uint64_t size_bytes) {
    ++uses_;
    if (size_bytes == 0) return static_cast<std::uint32_t>(uses_);
    const auto found = loaded_.find(offset);
    if (found != loaded_.end() && found->second.group == group) {
      found->second.last_use = uses_;
      return 0;
    }
    auto first = loaded_.lower_bound(offset);
    if (first != loaded_.begin() && std::prev(first)->second.end > offset) --first;
    std::uint64_t last_use = 0;
    const auto end = loaded_.lower_bound(offset + size_bytes);
    for (auto it = first; it != end; ++it) last_use = std::max(last_use, it->second.last_use);
    loaded_.erase(first, end);
    loaded_[offset] = {group, offset + size_bytes, uses_};
    return static_cast<std::uint32_t>(uses_ - last_use);
  }

 private:
  struct Loaded {
    std::size_t group = 0;
    std::uint64_t end = 0;
    std::uint64_t last_use = 0;
  };
  std::map<std::uint64_t, Loaded> loaded_;  // by offset; none shares bytes with another
  std::uint64_t uses_ = 0;
};

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

ChoiceCost::ChoiceCost(std::span<const UsedGroup> groups, const Rates& rates,
                       std::vector<std::size_t> order)
    : groups_(groups), order_(std::move(order)), expected_(rates), balanced_(rates) {
  double all_bytes = 0;
  for (const UsedGroup& group : groups_) all_bytes += static_cast<double>(group.size_bytes);
  const double all_link_seconds = all_bytes / rates.link_bytes_per_second;
  if (!(rates.compute_seconds > 0)) {
    expected_.compute_seconds = kAssumedComputeShare * all_link_seconds;
  }
  balanced_.compute_seconds = std::max(rates.compute_seconds, all_link_seconds);
  if (order_.empty() || !(all_bytes > 0)) return;
  double used_bytes = 0;
  for (const std::size_t group : order_)
    used_bytes += static_cast<double>(groups_[group].size_bytes);
  for (Rates* const scaled : {&expected_, &balanced_}) {
    scaled->compute_seconds *= used_bytes / all_bytes;
    scaled->host_seconds *= used_bytes / all_bytes;
  }
}

double ChoiceCost::of(const StreamingChoice& choice) const {
  std::vector<PassStep> steps;
  std::vector<std::uint64_t> in_arena;
  steps.reserve(groups_.size());
  std::size_t candidate = 0;
  for (const UsedGroup& group : groups_) {
    PassStep step{.size_bytes = group.size_bytes,
                  .coded_bytes = group.coded_bytes,
                  .settled = !group.may_stream,
                  .frame_bytes = group.frame_bytes,
                  .decodes_frames = group.decodes_frames,
                  .coded_copies = group.coded_copies,
                  .tensors = group.tensors};
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
  if (!order_.empty()) steps = in_order(steps, choice.layout.offsets);
  const double busy = felt_link_seconds(steps, expected_);
  return (pass_seconds(steps, expected_) + busy) * (pass_seconds(steps, balanced_) + busy);
}

// `steps` and `offsets` of the cycle, `offsets` of those in the arena. What was used before is
// found there if nothing was loaded over it since.
std::vector<PassStep> ChoiceCost::in_order(std::span<const PassStep> steps,
                                           std::span<const std::uint64_t> offsets) const {
  std::vector<std::uint64_t> offset_of(steps.size(), 0);
  std::size_t place = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].streamed || steps[i].kept) offset_of[i] = offsets[place++];
  }
  ArenaContent content;
  std::vector<PassStep> result;
  for (int round = 0; round < 2; ++round) {  // the first fills the arena
    result.clear();
    for (const std::size_t group : order_) {
      PassStep& step = result.emplace_back(steps[group]);
      if (!step.streamed && !step.kept) continue;
      step.sharing_distance = content.use(group, offset_of[group], step.size_bytes);
      step.still_there = step.sharing_distance == 0;
      if (!step.still_there) continue;
      step.streamed = step.kept = false;
    }
  }
  return result;
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
