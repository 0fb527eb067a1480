// StreamedGroup: a group that the loader streams, and where its tensors are meanwhile.
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
struct StreamedGroup {
  GroupId id = 0;
  std::vector<TensorId> tensors;
  GroupLayout layout;
  std::uint64_t offset_bytes = 0;  // of its place in the arena
  /// Tensors that are used where the page cache has them, by position; null for those that are
  /// loaded into the place. Empty, or only for Prefetch::kReadAhead: one group is used at a time.
  std::vector<std::unique_ptr<FileWindow>> windows;

  /// Whether the group is partly in windows. Constant.
  bool has_windows() const noexcept { return !windows.empty(); }
  /// Where the tensors are while the group is leased, in their order; `place` is the group's.
  std::vector<std::byte*> addresses(std::byte* place) const;
  /// Adds what has to be loaded, in pieces of at most `piece_bytes`; opens windows. Raises IoError.
  void add_to(Load& load, const SourceTable& sources, std::byte* place, std::uint64_t piece_bytes);
  /// Lets go of the pages in windows, and of what was written to them. An IoError where they
  /// changed while they were used; null elsewhere.
  [[nodiscard]] std::exception_ptr close_windows() noexcept;
  /// Whether the places of the two share bytes.
  bool overlaps(const StreamedGroup& other) const noexcept;

 private:
  FileWindow* window(std::size_t index) const;
  void add_tensor(std::size_t index, Load& load, const SourceTable& sources, std::byte* target,
                  std::uint64_t piece_bytes);
};

}  // namespace tensorstream
