// Folders: room, locks, renames that last.
#pragma once

#include <cstdint>
#include <string>

#include "platform/descriptor.h"

namespace tensorstream {

/// The bytes that this user may still write in the file system of the folder at `path`. Raises
/// IoError.
std::uint64_t free_disk_bytes(const std::string& path);

/// Returns when the disk has the names that the folder at `path` holds. Raises IoError.
void sync_folder(const std::string& path);

/// Gives the folder `from` the name `to`, of the same file system, in one step: `to` does not exist
/// or is an empty folder, which is replaced. Raises IoError.
void rename_folder(const std::string& from, const std::string& to);

/// A folder that one process at a time holds; the system lets go of it when that process ends,
/// however it ends. Move-only.
class LockedFolder {
 public:
  /// Holds the folder at `path`, which is made where it is not there. Raises IoError, also where
  /// another holds it.
  static LockedFolder hold(const std::string& path);

  const std::string& path() const noexcept { return path_; }

 private:
  LockedFolder(std::string path, Descriptor descriptor);

  std::string path_;
  Descriptor descriptor_;
};

}  // namespace tensorstream
