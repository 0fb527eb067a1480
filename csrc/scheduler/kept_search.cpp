#include "scheduler/kept_search.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "scheduler/residents.h"

namespace tensorstream {
namespace {

// Sizes that are tried as that of the largest group which is no resident.
constexpr std::size_t kMostSizes = 3;
// Places for streamed groups: none, or so many that loads run ahead.
constexpr std::size_t kMostStreamedPlaces = 3;
constexpr std::uint32_t kFurthestWindow = 3;
// Shares of the room that are tried for residents, in quarters.
constexpr std::uint64_t kShares = 4;
// Bounds the work for hundreds of groups.
constexpr int kMostFillTrials = 48;

/// The groups of a choice by where they compute.
struct Split {
  std::vector<std::uint64_t> streamed;
  std::vector<std::uint64_t> kept;
  /// Bytes used between each streamed group and the next.
  std::vector<std::uint64_t> gaps;
};

Split split(std::span<const UsedGroup> groups, const StreamingChoice& choice) {
  Split made;
  std::uint64_t leading_gap = 0;
  std::size_t candidate = 0;
  for (const UsedGroup& group : groups) {
    const bool kept = group.may_stream && choice.kept[candidate];
    const bool streams = group.may_stream && !kept && !choice.resident[candidate];
    if (group.may_stream) ++candidate;
    if (kept) made.kept.push_back(group.size_bytes);
    if (streams) {
      made.streamed.push_back(group.size_bytes);
      made.gaps.push_back(0);
    } else {
      (made.gaps.empty() ? leading_gap : made.gaps.back()) += group.size_bytes;
    }
  }
  if (!made.gaps.empty()) made.gaps.back() += leading_gap;
  return made;
}

/// `decoded` behind `streamed`, in the order of use. Loads alone count as exposed.
ArenaLayout join(const StreamingChoice& choice, const ArenaLayout& streamed,
                 const ArenaLayout& decoded) {
  ArenaLayout joined;
  joined.arena_bytes = streamed.arena_bytes + decoded.arena_bytes;
  // One alone is loaded while the others are used.
  joined.exposed_pairs = streamed.offsets.size() == 1 ? 0 : streamed.exposed_pairs;
  std::size_t load = 0;
  std::size_t decode = 0;
  for (std::size_t i = 0; i < choice.kept.size(); ++i) {
    if (choice.resident[i]) continue;
    joined.offsets.push_back(choice.kept[i] ? streamed.arena_bytes + decoded.offsets[decode++]
                                            : streamed.offsets[load++]);
  }
  return joined;
}

}  // namespace

KeptSearch::KeptSearch(std::span<const UsedGroup> groups, std::uint64_t room_bytes,
                       const ChoiceCost& cost)
    : groups_(groups), room_bytes_(room_bytes), cost_(cost) {
  for (const UsedGroup& group : groups_) {
    if (!group.may_stream) continue;
    sizes_.push_back(group.size_bytes);
    kept_sizes_.push_back(group.kept_bytes);
  }
}

std::optional<StreamingChoice> KeptSearch::best() const {
  std::optional<StreamingChoice> found;
  if (std::ranges::all_of(kept_sizes_, [](std::uint64_t size) { return size == 0; })) return found;
  for (const std::uint64_t largest : largest_sizes()) {
    for (std::size_t streamed = 0; streamed <= kMostStreamedPlaces; ++streamed) {
      for (const std::size_t decoded : {1U, 2U}) consider(largest, {streamed, decoded}, found);
    }
  }
  if (found) fill(*found);
  return found;
}

std::vector<std::uint64_t> KeptSearch::largest_sizes() const {
  std::vector<std::uint64_t> sizes = sizes_;
  std::ranges::sort(sizes, std::greater<>());
  const auto rest = std::ranges::unique(sizes);
  sizes.erase(rest.begin(), rest.end());
  std::erase(sizes, 0);
  if (sizes.size() > kMostSizes) sizes.resize(kMostSizes);
  return sizes;
}

void KeptSearch::consider(std::uint64_t largest, const Places& places,
                          std::optional<StreamingChoice>& best) const {
  std::uint64_t forced = 0;
  for (const std::uint64_t size : sizes_) forced += size > largest ? size : 0;
  const std::uint64_t arena = largest * (places.streamed + places.decoded);
  if (forced > room_bytes_ || arena > room_bytes_ - forced) return;
  const std::uint64_t capacity = room_bytes_ - arena;
  for (const std::uint64_t share : resident_shares(forced, capacity)) {
    std::vector<bool> resident = choose_residents(
        sizes_, {.capacity = share, .largest_streamed = largest, .small_bytes = 0});
    std::uint64_t left = capacity;
    for (std::size_t i = 0; i < sizes_.size(); ++i) left -= resident[i] ? sizes_[i] : 0;
    std::vector<bool> kept = choose_kept(resident, left);
    auto choice = arrange(std::move(resident), std::move(kept), places);
    if (choice && (!best || better(*choice, *best))) best = std::move(choice);
  }
}

// From none to all of the room, and as much as leaves room for all others coded.
std::vector<std::uint64_t> KeptSearch::resident_shares(std::uint64_t forced,
                                                       std::uint64_t capacity) const {
  std::vector<std::uint64_t> shares;
  for (std::uint64_t i = 0; i < kShares; ++i) {
    shares.push_back(forced + (capacity - forced) / kShares * i);
  }
  double raw = 0;
  double coded = 0;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    raw += static_cast<double>(sizes_[i]);
    coded += static_cast<double>(kept_sizes_[i] == 0 ? sizes_[i] : kept_sizes_[i]);
  }
  if (raw <= coded) return shares;
  const double left = static_cast<double>(capacity) - coded;
  const double share = left * raw / (raw - coded);
  if (left >= 0 && share < static_cast<double>(capacity)) {
    shares.push_back(std::max(forced, static_cast<std::uint64_t>(share)));
  }
  return shares;
}

// Spread evenly among the others, as residents are.
std::vector<bool> KeptSearch::choose_kept(const std::vector<bool>& resident,
                                          std::uint64_t capacity_bytes) const {
  std::vector<std::size_t> able;
  std::vector<std::uint64_t> sizes;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    if (resident[i] || kept_sizes_[i] == 0) continue;
    able.push_back(i);
    sizes.push_back(kept_sizes_[i]);
  }
  std::vector<bool> kept(sizes_.size(), false);
  if (able.empty()) return kept;
  const std::vector<bool> chosen = choose_residents(
      sizes, {.capacity = capacity_bytes, .largest_streamed = std::ranges::max(sizes)});
  for (std::size_t i = 0; i < able.size(); ++i) kept[able[i]] = chosen[i];
  return kept;
}

std::optional<StreamingChoice> KeptSearch::arrange(std::vector<bool> resident,
                                                   std::vector<bool> kept,
                                                   const Places& places) const {
  StreamingChoice choice;
  choice.resident = std::move(resident);
  choice.kept = std::move(kept);
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    if (choice.kept[i]) {
      choice.kept_bytes += kept_sizes_[i];
    } else {
      (choice.resident[i] ? choice.resident_bytes : choice.streamed_bytes) += sizes_[i];
    }
  }
  const Split groups = split(groups_, choice);
  if (groups.kept.empty() || groups.streamed.empty() != (places.streamed == 0)) return {};
  const ArenaLayout decoded = places.decoded == 1 ? one_place_layout(groups.kept)
                                                  : two_ended_layout(groups.kept, room_bytes_);
  const std::uint64_t taken = choice.resident_bytes + choice.kept_bytes + decoded.arena_bytes;
  if (taken > room_bytes_) return {};
  const std::uint64_t room = room_bytes_ - taken;
  if (!groups.streamed.empty() && std::ranges::max(groups.streamed) > room) return {};
  choice.layout = join(choice, two_ended_layout(groups.streamed, room, groups.gaps), decoded);
  choice.cost = cost_.of(choice);
  for (std::uint32_t distance = 2; distance <= kFurthestWindow; ++distance) {
    const auto layout = windowed_layout(groups.streamed, room, distance);
    if (!layout) break;
    StreamingChoice deeper = choice;
    deeper.layout = join(choice, *layout, decoded);
    deeper.cost = cost_.of(deeper);
    if (better(deeper, choice)) choice = std::move(deeper);
  }
  return choice;
}

// Keeps further groups, and makes residents of others, while bytes are left and the plan gets
// better by it.
void KeptSearch::fill(StreamingChoice& choice) const {
  int trials = 0;
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = 0; i < sizes_.size() && !changed; ++i) {
      if (choice.resident[i]) continue;
      for (const bool becomes_resident : {false, true}) {
        if (!becomes_resident && (choice.kept[i] || kept_sizes_[i] == 0)) continue;
        const std::uint64_t wanted = becomes_resident ? sizes_[i] : kept_sizes_[i];
        const std::uint64_t now = choice.kept[i] ? kept_sizes_[i] : 0;
        if (wanted > now && wanted - now > room_bytes_ - choice.taken_bytes()) continue;
        if (++trials > kMostFillTrials) return;
        std::vector<bool> resident = choice.resident;
        std::vector<bool> kept = choice.kept;
        resident[i] = becomes_resident;
        kept[i] = !becomes_resident;
        const bool streams = choice.streamed_bytes > (choice.kept[i] ? 0 : sizes_[i]);
        for (const std::size_t decoded : {1U, 2U}) {
          auto filled = arrange(resident, kept, {streams ? std::size_t{1} : 0, decoded});
          if (!filled || !better(*filled, choice)) continue;
          choice = std::move(*filled);
          changed = true;
        }
        if (changed) break;
      }
    }
  }
}

}  // namespace tensorstream
