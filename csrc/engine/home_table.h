// The homes of a model's groups in host RAM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "engine/encoded_home.h"
#include "engine/group_layout.h"
#include "engine/host_home.h"
#include "engine/source_table.h"

namespace tensorstream {

/// How homes are made.
struct HomeOptions {
  /// CompressionLevel::kNone for homes that hold bytes as they are.
  CompressionLevel level{CompressionLevel::kNone};
  /// EncodedHomeOptions, of those that hold frames.
  std::uint64_t batch_bytes = 0;
  std::uint64_t slot_bytes = 0;
  /// Of host RAM; null where nothing is charged. Shared with all that takes from it.
  std::shared_ptr<Budget> budget = nullptr;
};

/// What homes hold.
struct HomeSizes {
  std::uint64_t pinned_bytes = 0;
  /// Of homes of frames: what they take, and what it is as weights.
  std::uint64_t coded_bytes = 0;
  std::uint64_t decoded_bytes = 0;
};

/// Thread-safe. Groups, layouts, sources and device outlive it; homes that loads use, the table.
class HomeTable {
 public:
  HomeTable(Device& device, SourceTable& sources, std::span<const Group> groups,
            std::span<const GroupLayout> layouts);

  /// Moves the group's bytes to a home, unless it has one: of frames, where there is a level and
  /// the group is worth it. True where it did. Waits where another thread brings the group. Raises
  /// as PinnedMemory does, and IoError.
  bool bring(GroupId group, const HomeOptions& options);
  /// Says that the group, unless it has a home, is loaded from its sources.
  void note_absent(GroupId group);
  /// Lets those that were said to be absent be brought again.
  void forget_absent();
  /// Where kernels see `extent`, one of the group's tensors, in its home; null where they do not.
  std::byte* device_address(GroupId group, const BoundExtent& extent) const;
  HomeSizes sizes() const;
  /// Says which homes there are, and puts what they take in the place of what was expected of
  /// frames.
  void correct(std::vector<GroupFootprint>& footprints, std::uint64_t kept_page_bytes) const;

 private:
  /// One of both, or none: not yet, or, where absent, for now.
  struct Home {
    std::shared_ptr<HostHome> plain;       // shared with sources, loads and tensors over it
    std::shared_ptr<EncodedHome> encoded;  // likewise
    bool absent = false;
    bool is_coming = false;  // some thread brings it

    bool is_there() const noexcept { return plain != nullptr || encoded != nullptr; }
  };

  Home move(GroupId group, const HomeOptions& options);
  Home make(GroupId group, std::span<const std::vector<BoundExtent>> from,
            const HomeOptions& options) const;

  // Constant after construction.
  Device& device_;
  SourceTable& sources_;
  const std::span<const Group> groups_;
  const std::span<const GroupLayout> layouts_;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  ConditionVariable came_;                         // what was coming is there, or failed
  std::vector<Home> homes_ TS_GUARDED_BY(mutex_);  // by GroupId
};

}  // namespace tensorstream
