#include "scheduler/use_layout.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <utility>

#include "base/units.h"
#include "scheduler/arena_layout.h"

namespace tensorstream {
namespace {

// The share of the loaded bytes that a new layout leaves, where what it moves is worth loading
// again.
constexpr double kWorthMoving = 0.97;
// The groups of a block, at most, that lie side by side.
constexpr std::uint32_t kFurthestWindow = 8;

/// What lies in the arena while groups are used one after the other.
class ArenaContent {
 public:
  /// Whether all bytes of the group are there since its last use.
  bool has(GroupId group, std::uint64_t offset) const {
    const auto found = groups_.find(offset);
    return found != groups_.end() && found->second.group == group;
  }
  /// In the place of all that it shares bytes with.
  void load(GroupId group, std::uint64_t offset, std::uint64_t size_bytes) {
    auto first = groups_.lower_bound(offset);
    if (first != groups_.begin() && std::prev(first)->second.end > offset) --first;
    groups_.erase(first, groups_.lower_bound(offset + size_bytes));
    groups_[offset] = {group, offset + size_bytes};
  }

 private:
  struct Loaded {
    GroupId group = 0;
    std::uint64_t end = 0;
  };
  std::map<std::uint64_t, Loaded> groups_;  // by offset; none shares bytes with another
};

class UsesOf {
 public:
  UsesOf(std::span<const GroupFootprint> groups, const Plan& plan, std::span<const GroupId> uses)
      : plan_(plan), uses_(uses) {
    for (const GroupFootprint& group : groups) {
      sizes_.push_back(align_up(group.size_bytes, kGroupAlignment));
    }
  }

  double cost(std::span<const std::uint64_t> offsets) const {
    ArenaContent content;
    double cost = 0;
    std::optional<GroupId> last;
    for (const GroupId group : uses_) {
      const bool streamed = plan_.groups[group].placement == Placement::kStreamed;
      if (streamed && sizes_[group] != 0 && !content.has(group, offsets[group])) {
        content.load(group, offsets[group], sizes_[group]);
        const bool waits = last && share_bytes(*last, group, offsets);
        cost += static_cast<double>(sizes_[group]) * (waits ? 2 : 1);
      }
      last = streamed ? std::optional(group) : std::nullopt;
    }
    return cost;
  }

 private:
  bool share_bytes(GroupId a, GroupId b, std::span<const std::uint64_t> offsets) const {
    return offsets[a] < offsets[b] + sizes_[b] && offsets[b] < offsets[a] + sizes_[a];
  }

  const Plan& plan_;
  std::span<const GroupId> uses_;
  std::vector<std::uint64_t> sizes_;  // by GroupId
};

/// Layouts of the streamed groups that fit the plan's arena.
std::vector<ArenaLayout> layouts(std::span<const std::uint64_t> sizes, std::uint64_t arena_bytes) {
  std::vector<ArenaLayout> result;
  result.push_back(ring_layout(sizes, arena_bytes));
  result.push_back(two_ended_layout(sizes, arena_bytes));
  for (std::uint32_t distance = 2; distance <= kFurthestWindow; ++distance) {
    std::optional<ArenaLayout> layout = windowed_layout(sizes, arena_bytes, distance);
    if (!layout) break;
    result.push_back(*std::move(layout));
  }
  return result;
}

}  // namespace

bool uses_repeat(const Plan& plan, std::span<const GroupId> uses) {
  constexpr std::size_t kNever = static_cast<std::size_t>(-1);
  std::vector<std::size_t> last_use(plan.groups.size(), kNever);
  const auto streamed = static_cast<std::size_t>(
      std::ranges::count(plan.groups, Placement::kStreamed, &GroupPlacement::placement));
  std::size_t used = 0;
  std::size_t step = 0;
  bool repeats = false;
  for (const GroupId group : uses) {
    if (plan.groups[group].placement != Placement::kStreamed) continue;
    std::size_t& last = last_use[group];
    if (last == kNever) {
      ++used;
    } else if (step - last != streamed) {
      repeats = true;
    }
    last = step++;
  }
  return repeats && used == streamed;
}

std::optional<std::vector<std::uint64_t>> offsets_for_uses(std::span<const GroupFootprint> groups,
                                                           const Plan& plan,
                                                           std::span<const GroupId> uses) {
  std::vector<std::uint64_t> now;
  std::vector<std::uint64_t> sizes;
  std::vector<GroupId> streamed;
  for (GroupId group = 0; group < plan.groups.size(); ++group) {
    now.push_back(plan.groups[group].offset_bytes);
    if (plan.groups[group].placement != Placement::kStreamed) continue;
    streamed.push_back(group);
    sizes.push_back(align_up(groups[group].size_bytes, kGroupAlignment));
  }
  const UsesOf of(groups, plan, uses);
  double least = kWorthMoving * of.cost(now);
  std::optional<std::vector<std::uint64_t>> best;
  for (const ArenaLayout& layout : layouts(sizes, plan.arena_bytes)) {
    std::vector<std::uint64_t> offsets = now;
    for (std::size_t i = 0; i < streamed.size(); ++i) offsets[streamed[i]] = layout.offsets[i];
    const double cost = of.cost(offsets);
    if (cost >= least) continue;
    least = cost;
    best = std::move(offsets);
  }
  return best;
}

}  // namespace tensorstream
