#include "scheduler/arena_layout.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace tensorstream {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

std::size_t after(std::size_t i, std::size_t count) { return i + 1 == count ? 0 : i + 1; }
std::size_t before(std::size_t i, std::size_t count) { return i == 0 ? count - 1 : i - 1; }

bool share_bytes(std::uint64_t a_offset, std::uint64_t a_size, std::uint64_t b_offset,
                 std::uint64_t b_size) {
  return a_offset < b_offset + b_size && b_offset < a_offset + a_size;
}

std::uint64_t pair_bytes(std::span<const std::uint64_t> sizes, std::size_t first) {
  return sizes[first] + sizes[after(first, sizes.size())];
}

std::uint64_t triple_bytes(std::span<const std::uint64_t> sizes, std::size_t middle) {
  return sizes[before(middle, sizes.size())] + pair_bytes(sizes, middle);
}

// How the cycle is cut so that the rest alternates between the two ends of the arena.
struct Cut {
  // The list starts here: what comes before it in the cycle shares the start's end of the arena, or
  // lies in the middle.
  std::size_t start = 0;
  // The position that lies between its two neighbours, the last of the list; kNone where none has
  // to.
  std::size_t middle = kNone;
};

// An odd cycle cannot alternate all around: one group has a neighbour below and one above it, or
// one pair is exposed.
Cut cut_of_cycle(std::span<const std::uint64_t> sizes, std::uint64_t capacity,
                 std::span<const std::uint64_t> gaps) {
  const std::size_t count = sizes.size();
  // More work between the two, then fewer bytes that wait.
  const auto hides_better = [&](std::size_t a, std::size_t b) {
    const std::uint64_t gap_a = gaps.empty() ? 0 : gaps[a];
    const std::uint64_t gap_b = gaps.empty() ? 0 : gaps[b];
    if (gap_a != gap_b) return gap_a > gap_b;
    return sizes[after(a, count)] < sizes[after(b, count)];
  };
  std::size_t cheapest_middle = 0;
  std::size_t cheapest_pair = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (pair_bytes(sizes, i) > capacity) return {after(i, count), kNone};
    if (triple_bytes(sizes, i) < triple_bytes(sizes, cheapest_middle)) cheapest_middle = i;
    if (hides_better(i, cheapest_pair)) cheapest_pair = i;
  }
  if (count % 2 == 0) return {};
  if (count >= 3 && triple_bytes(sizes, cheapest_middle) <= capacity) {
    return {after(cheapest_middle, count), cheapest_middle};
  }
  return {after(cheapest_pair, count), kNone};
}

// The fewest bytes in which every pair that fits `capacity` lies side by side.
std::uint64_t bytes_needed(std::span<const std::uint64_t> sizes, std::uint64_t capacity,
                           const Cut& cut) {
  std::uint64_t needed = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    needed = std::max(needed, sizes[i]);
    const bool cut_here = after(i, sizes.size()) == cut.start && sizes.size() % 2 == 1;
    const std::uint64_t pair = pair_bytes(sizes, i);
    if (!cut_here && pair <= capacity) needed = std::max(needed, pair);
  }
  if (cut.middle != kNone) needed = std::max(needed, triple_bytes(sizes, cut.middle));
  return needed;
}

void count_exposed(std::span<const std::uint64_t> sizes, ArenaLayout& layout) {
  layout.exposed_pairs = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::size_t next = after(i, sizes.size());
    if (share_bytes(layout.offsets[i], sizes[i], layout.offsets[next], sizes[next])) {
      ++layout.exposed_pairs;
    }
  }
}

// The lowest offset at which `size` bytes avoid all of `taken`, (begin, end) pairs.
std::uint64_t lowest_free_offset(std::vector<std::pair<std::uint64_t, std::uint64_t>>& taken,
                                 std::uint64_t size) {
  std::sort(taken.begin(), taken.end());
  std::uint64_t offset = 0;
  for (const auto& [begin, end] : taken) {
    if (offset + size <= begin) break;
    offset = std::max(offset, end);
  }
  return offset;
}

}  // namespace

ArenaLayout two_ended_layout(std::span<const std::uint64_t> sizes, std::uint64_t capacity,
                             std::span<const std::uint64_t> gaps) {
  ArenaLayout layout;
  const std::size_t count = sizes.size();
  layout.offsets.assign(count, 0);
  if (count == 0) return layout;
  const Cut cut = cut_of_cycle(sizes, capacity, gaps);
  layout.arena_bytes = bytes_needed(sizes, capacity, cut);
  for (std::size_t step = 0; step < count; ++step) {
    const std::size_t i = (cut.start + step) % count;
    layout.offsets[i] = step % 2 == 1 ? layout.arena_bytes - sizes[i] : 0;
  }
  if (cut.middle != kNone) layout.offsets[cut.middle] = sizes[after(cut.middle, count)];
  count_exposed(sizes, layout);
  return layout;
}

std::optional<ArenaLayout> windowed_layout(std::span<const std::uint64_t> sizes,
                                           std::uint64_t capacity, std::uint32_t distance) {
  const std::size_t count = sizes.size();
  if (count <= distance) return std::nullopt;
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
  ArenaLayout layout;
  layout.offsets.assign(count, 0);
  std::vector<bool> placed(count, false);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> taken;
  for (const std::size_t i : order) {
    taken.clear();
    for (std::size_t d = 1; d <= distance; ++d) {
      for (const std::size_t other : {(i + d) % count, (i + count - d) % count}) {
        if (!placed[other] || other == i) continue;
        taken.emplace_back(layout.offsets[other], layout.offsets[other] + sizes[other]);
      }
    }
    layout.offsets[i] = lowest_free_offset(taken, sizes[i]);
    if (layout.offsets[i] + sizes[i] > capacity) return std::nullopt;
    layout.arena_bytes = std::max(layout.arena_bytes, layout.offsets[i] + sizes[i]);
    placed[i] = true;
  }
  count_exposed(sizes, layout);
  return layout;
}

ArenaLayout ring_layout(std::span<const std::uint64_t> sizes, std::uint64_t capacity) {
  ArenaLayout layout;
  std::uint64_t end = 0;
  for (const std::uint64_t size : sizes) {
    const std::uint64_t offset = end + size <= capacity ? end : 0;
    layout.offsets.push_back(offset);
    end = offset + size;
    layout.arena_bytes = std::max(layout.arena_bytes, end);
  }
  count_exposed(sizes, layout);
  return layout;
}

ArenaLayout one_place_layout(std::span<const std::uint64_t> sizes) {
  ArenaLayout layout;
  layout.offsets.assign(sizes.size(), 0);
  for (const std::uint64_t size : sizes) layout.arena_bytes = std::max(layout.arena_bytes, size);
  return layout;
}

std::vector<std::uint32_t> sharing_distances(std::span<const std::uint64_t> sizes,
                                             std::span<const std::uint64_t> offsets) {
  const std::size_t count = sizes.size();
  std::vector<std::uint32_t> distances(count, 0);
  for (std::size_t i = 0; i < count; ++i) {
    std::size_t distance = 1;
    for (std::size_t other = before(i, count); other != i; other = before(other, count)) {
      if (share_bytes(offsets[other], sizes[other], offsets[i], sizes[i])) break;
      ++distance;
    }
    distances[i] = static_cast<std::uint32_t>(distance);
  }
  return distances;
}

}  // namespace tensorstream
