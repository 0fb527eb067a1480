#include "scheduler/streaming_search.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "scheduler/residents.h"

namespace tensorstream {
namespace {

// What a load costs beside its bytes: a request, an event, a wait.
constexpr double kLoadOverheadSeconds = 1e-4;
// A group is small only beside much larger ones.
constexpr std::uint64_t kSmallDivisor = 16;
// Places of the largest groups that an arena is tried with, and how often the bytes it left unused
// are given to residents.
constexpr std::size_t kMostPlaces = 4;
constexpr int kRefinements = 2;
constexpr std::uint32_t kFurthestWindow = 3;
// Bounds the work for thousands of groups of unlike sizes; tens are tried completely.
constexpr int kMostFillTrials = 64;

}  // namespace

StreamingSearch::StreamingSearch(std::span<const UsedGroup> groups, std::uint64_t room_bytes,
                                 const ChoiceCost& cost)
    : groups_(groups), room_bytes_(room_bytes), cost_(cost) {
  for (const UsedGroup& group : groups_) {
    if (group.may_stream) sizes_.push_back(group.size_bytes);
  }
  descending_ = sizes_;
  std::sort(descending_.begin(), descending_.end(), std::greater<>());
}

StreamingChoice StreamingSearch::best() {
  for (const std::size_t index : largest_indices()) consider_arenas(index);
  auto chosen = best_by_exposed_.begin();
  for (auto it = best_by_exposed_.begin(); it != best_by_exposed_.end(); ++it) {
    if (better(it->second, chosen->second)) chosen = it;
  }
  StreamingChoice choice = std::move(chosen->second);
  fill(choice);
  return choice;
}

// Which groups to try as the largest streamed one, in descending order: the first of each size,
// further and further apart.
std::vector<std::size_t> StreamingSearch::largest_indices() const {
  std::vector<std::size_t> firsts;
  for (std::size_t i = 0; i < descending_.size() && descending_[i] > 0; ++i) {
    if (i == 0 || descending_[i] != descending_[i - 1]) firsts.push_back(i);
  }
  std::vector<std::size_t> indices;
  for (std::size_t i = 0; i < firsts.size(); i = 2 * i + 1) indices.push_back(firsts[i]);
  return indices;
}

// Places for the largest groups from `largest_index` of the descending order on, and for as many
// groups that follow each other: each may be loaded while those before it are used.
std::vector<std::uint64_t> StreamingSearch::arenas_for(std::size_t largest_index) const {
  std::vector<std::uint64_t> arenas;
  std::uint64_t places = 0;
  const std::size_t end = std::min(descending_.size(), largest_index + kMostPlaces);
  for (std::size_t i = largest_index; i < end; ++i) arenas.push_back(places += descending_[i]);
  std::vector<std::uint64_t> streamed;
  for (const std::uint64_t size : sizes_) {
    if (size != 0 && size <= descending_[largest_index]) streamed.push_back(size);
  }
  for (std::size_t count = 3; count <= std::min(kMostPlaces, streamed.size()); ++count) {
    std::uint64_t most = 0;
    for (std::size_t first = 0; first < streamed.size(); ++first) {
      std::uint64_t together = 0;
      for (std::size_t i = 0; i < count; ++i) together += streamed[(first + i) % streamed.size()];
      most = std::max(most, together);
    }
    arenas.push_back(most);
  }
  return arenas;
}

// Tries arenas where the groups before `largest_index` of the descending order are resident.
void StreamingSearch::consider_arenas(std::size_t largest_index) {
  std::uint64_t forced = 0;
  for (std::size_t i = 0; i < largest_index; ++i) {
    forced += descending_[i];
    if (forced > room_bytes_) return;
  }
  const std::uint64_t room = room_bytes_ - forced;
  if (descending_[largest_index] > room) return;
  ResidentChoice wanted;
  wanted.largest_streamed = descending_[largest_index];
  wanted.small_bytes = small_bytes(wanted.largest_streamed);
  for (const std::uint64_t arena_bytes : arenas_for(largest_index)) {
    consider_arena(std::min(room, arena_bytes), wanted);
  }
}

void StreamingSearch::consider_arena(std::uint64_t arena_bytes, ResidentChoice wanted) {
  std::uint64_t tried = arena_bytes;
  for (int refinement = 0; refinement <= kRefinements; ++refinement) {
    wanted.capacity = room_bytes_ - tried;
    StreamingChoice choice = with_residents(choose_residents(sizes_, wanted));
    const std::uint64_t used = choice.layout.arena_bytes;
    keep(std::move(choice));
    // Less than the largest group would leave no room for a group that the next choice may stream.
    const std::uint64_t next = std::max(used, wanted.largest_streamed);
    if (next >= tried) break;
    tried = next;
  }
}

StreamingChoice StreamingSearch::with_residents(std::vector<bool> resident) const {
  StreamingChoice choice;
  choice.resident = std::move(resident);
  choice.kept.assign(choice.resident.size(), false);
  std::vector<std::uint64_t> streamed;
  std::vector<std::uint64_t> gaps;
  std::uint64_t leading_gap = 0;
  std::size_t candidate = 0;
  for (const UsedGroup& group : groups_) {
    const bool stays = !group.may_stream || choice.resident[candidate];
    if (group.may_stream) ++candidate;
    if (!stays) {
      choice.streamed_bytes += group.size_bytes;
      streamed.push_back(group.size_bytes);
      gaps.push_back(0);
      continue;
    }
    if (group.may_stream) choice.resident_bytes += group.size_bytes;
    (gaps.empty() ? leading_gap : gaps.back()) += group.size_bytes;
  }
  if (!gaps.empty()) gaps.back() += leading_gap;
  if (cost_.expected().loading == Loading::kAtUse) {
    choice.layout = one_place_layout(streamed);
    choice.cost = cost_.of(choice);
    return choice;
  }
  const std::uint64_t capacity = room_bytes_ - choice.resident_bytes;
  choice.layout = two_ended_layout(streamed, capacity, gaps);
  choice.cost = cost_.of(choice);
  const auto consider = [&](ArenaLayout layout) {
    StreamingChoice deeper = choice;
    deeper.layout = std::move(layout);
    deeper.cost = cost_.of(deeper);
    if (better(deeper, choice)) choice = std::move(deeper);
  };
  for (std::uint32_t distance = 2; distance <= kFurthestWindow; ++distance) {
    std::optional<ArenaLayout> layout = windowed_layout(streamed, capacity, distance);
    if (!layout) break;
    consider(std::move(*layout));
  }
  consider(ring_layout(streamed, capacity));
  return choice;
}

void StreamingSearch::keep(StreamingChoice choice) {
  const std::uint32_t exposed = choice.layout.exposed_pairs;
  const auto kept = best_by_exposed_.find(exposed);
  if (kept == best_by_exposed_.end()) {
    best_by_exposed_.emplace(exposed, std::move(choice));
  } else if (better(choice, kept->second)) {
    kept->second = std::move(choice);
  }
}

// Makes further groups resident while bytes are left and the plan gets better by it.
void StreamingSearch::fill(StreamingChoice& choice) const {
  int trials = 0;
  bool changed = true;
  while (changed) {
    changed = false;
    const std::uint64_t left = room_bytes_ - choice.resident_bytes - choice.layout.arena_bytes;
    std::vector<std::size_t> fitting;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      if (!choice.resident[i] && sizes_[i] <= left) fitting.push_back(i);
    }
    std::stable_sort(fitting.begin(), fitting.end(),
                     [&](std::size_t a, std::size_t b) { return sizes_[a] > sizes_[b]; });
    for (const std::size_t i : fitting) {
      if (++trials > kMostFillTrials) return;
      std::vector<bool> resident = choice.resident;
      resident[i] = true;
      StreamingChoice filled = with_residents(std::move(resident));
      if (!better(filled, choice)) continue;
      choice = std::move(filled);
      changed = true;
      break;
    }
  }
}

std::uint64_t StreamingSearch::small_bytes(std::uint64_t largest_streamed) const {
  const double cheap = kLoadOverheadSeconds * cost_.expected().link_bytes_per_second;
  const std::uint64_t relative = largest_streamed / kSmallDivisor;
  return cheap < static_cast<double>(relative) ? static_cast<std::uint64_t>(cheap) : relative;
}

}  // namespace tensorstream
