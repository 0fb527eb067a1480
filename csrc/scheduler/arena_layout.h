// Where the streamed groups lie in their arena.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace tensorstream {

/// Offsets for a cyclic list of streamed groups.
struct ArenaLayout {
  /// By position in the list.
  std::vector<std::uint64_t> offsets;
  /// End of the furthest place.
  std::uint64_t arena_bytes = 0;
  /// Pairs of groups that follow each other and share bytes, the last and the first included.
  std::uint32_t exposed_pairs = 0;
};

/// The layout with the fewest exposed pairs that `capacity` allows, in the fewest bytes. Optimal:
/// no layout of these sizes exposes fewer. `sizes` are in the cyclic order of use, multiples of
/// kGroupAlignment; none is larger than `capacity`. `gaps` are the bytes of residents used between
/// each group and the next (empty for none): where one pair of several has to be exposed, it is one
/// with the most work to hide its load.
ArenaLayout two_ended_layout(std::span<const std::uint64_t> sizes, std::uint64_t capacity,
                             std::span<const std::uint64_t> gaps = {});

/// A layout in which each group shares no bytes with the `distance` groups before and after it, so
/// that loads run further ahead; nothing where first fit by descending size finds none within
/// `capacity`.
std::optional<ArenaLayout> windowed_layout(std::span<const std::uint64_t> sizes,
                                           std::uint64_t capacity, std::uint32_t distance);

/// A layout in which each group lies behind the one before it, and at the start of the arena where
/// it would end beyond `capacity`: loads run ahead as far as the arena allows, for groups of unlike
/// sizes too. None is larger than `capacity`.
ArenaLayout ring_layout(std::span<const std::uint64_t> sizes, std::uint64_t capacity);

/// The layout of groups that are loaded when they are used: all in one place.
ArenaLayout one_place_layout(std::span<const std::uint64_t> sizes);

/// For each group, how many groups before it in the cyclic order the nearest one lies that shares
/// bytes with it (itself one pass ago: the whole list).
std::vector<std::uint32_t> sharing_distances(std::span<const std::uint64_t> sizes,
                                             std::span<const std::uint64_t> offsets);

}  // namespace tensorstream
