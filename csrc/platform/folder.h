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

/// Whether a file system is mounted at the folder `path`, of another disk or of a part of the same
/// (bind): no folder can take its place. Raises IoError.
bool is_mount_point(const std::string& path);

/// A folder that one process at a time holds; the system lets go of it when that process ends,
/// however it ends. Move-only.
class LockedFolder {
 public:
  /// Holds the folder at `path`, which is made where it is not there. Raises IoError, also where
  /// another holds it.
  static LockedFolder hold(const std::string& path);

  const std::string& path() const noexcept { return path_; }
  /// Whether the name still is the folder that is held: whoever may rename or remove it can, lock
  /// or not.
  bool is_at_its_path() const noexcept;
  /// Gives the folder the owner of the folder at `path`, as far as this process may, and its
  /// rights, and its user what is needed to fill it where `is_filled` is not true yet. Best effort.
  void take_rights_of(const std::string& path, bool is_filled) const noexcept;

 private:
  LockedFolder(std::string path, Descriptor descriptor);

  std::string path_;
  Descriptor descriptor_;
};

}  // namespace tensorstream
