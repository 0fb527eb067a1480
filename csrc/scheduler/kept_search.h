// The search for plans in which some groups stay on the device coded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "scheduler/streaming_choice.h"

namespace tensorstream {

/// Finds residents, groups that stay coded and an arena layout with the least predicted time.
///
/// What stays coded takes less room than a resident and no time on the link, but is decoded at each
/// use: where the link is the bound, keeping groups coded saves most for each byte, and once all of
/// them are on the device, what room is left makes residents of them. In between, and where compute
/// is the bound, several shares of the room are tried for residents. Places of groups that are
/// decoded lie behind those of streamed ones: no load waits for them. Deterministic; some hundreds
/// of choices at most.
class KeptSearch {
 public:
  /// As StreamingSearch.
  KeptSearch(std::span<const UsedGroup> groups, std::uint64_t room_bytes, const ChoiceCost& cost);

  /// Nothing where no group can stay coded.
  std::optional<StreamingChoice> best() const;

 private:
  /// Places of the arena: of streamed groups, and of those that are decoded.
  struct Places {
    std::size_t streamed = 0;
    std::size_t decoded = 1;
  };

  std::vector<std::uint64_t> largest_sizes() const;
  void consider(std::uint64_t largest, const Places& places,
                std::optional<StreamingChoice>& best) const;
  std::vector<std::uint64_t> resident_shares(std::uint64_t forced, std::uint64_t capacity) const;
  std::vector<bool> choose_kept(const std::vector<bool>& resident,
                                std::uint64_t capacity_bytes) const;
  std::optional<StreamingChoice> arrange(std::vector<bool> resident, std::vector<bool> kept,
                                         const Places& places) const;
  void fill(StreamingChoice& choice) const;

  std::span<const UsedGroup> groups_;
  std::uint64_t room_bytes_;
  const ChoiceCost& cost_;
  // Of the groups that may be streamed, in the order of use: as they are, and coded.
  std::vector<std::uint64_t> sizes_;
  std::vector<std::uint64_t> kept_sizes_;
};

}  // namespace tensorstream
