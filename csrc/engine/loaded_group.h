// LoadedGroup: a group as the loader needs it, and where its tensors are while it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "engine/group_layout.h"
#include "engine/load.h"
#include "engine/source_table.h"
#include "io/file_window.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// Belongs to the loader, which guards it.
struct LoadedGroup {
  GroupId id = 0;
  std::vector<TensorId> tensors;
  GroupLayout layout;
  Residency residency = Residency::kAny;
  /// Tensors that are used where the page cache has them while the group is in the arena, by
  /// position; null for those that are loaded into its place. Empty where there are none.
  std::vector<std::unique_ptr<FileWindow>> windows;
  /// Those that are not used any more, closed: somebody may have kept an address in them.
  std::vector<std::unique_ptr<FileWindow>> dropped_windows;

  /// Makes windows for the tensors that have any, `most` of them at most; returns how many. One
  /// group is used at a time then (Prefetch::kReadAhead).
  std::size_t make_windows(const SourceTable& sources, std::size_t most);
  /// Drops the windows of tensors that are not made of their files any more; true where there were
  /// some. None is open.
  bool drop_replaced_windows(const SourceTable& sources);
  /// Drops all windows where the page cache has lost what one of them is of; true where it has.
  /// None is open.
  bool drop_lost_windows() noexcept;
  /// Bytes that the windows take while they are open.
  std::uint64_t window_bytes() const noexcept;
  /// Lets go of the pages in windows, and of what was written to them. An IoError where they
  /// changed while they were used; null elsewhere.
  [[nodiscard]] std::exception_ptr close_windows() noexcept;
};

/// Where a group is loaded to.
struct GroupPlace {
  std::byte* data = nullptr;
  bool uses_windows = false;   // by the tensors that have one
  KeptFrames* kept = nullptr;  // where its frames stay on the device; null where they do not

  /// The address of the group's tensor of that position.
  std::byte* address(const LoadedGroup& group, std::size_t position) const;
  /// Adds what has to be loaded, in pieces of at most `piece_bytes`; opens windows. Raises IoError.
  void add_to(Load& load, const LoadedGroup& group, const SourceTable& sources,
              std::uint64_t piece_bytes) const;

 private:
  FileWindow* window(const LoadedGroup& group, std::size_t position) const;
};

}  // namespace tensorstream
