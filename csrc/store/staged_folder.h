// A folder that appears under its name only when it is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "platform/folder.h"

namespace tensorstream {

/// What a folder is filled with, so that the next run knows its own files again.
struct StagedWork {
  /// All that files come of. Where an earlier run wrote another, nothing of it is kept; nor is
  /// anything where it is empty.
  std::string description;
  /// The files, below the target, that are worth keeping.
  std::set<std::string> files;
};

/// A folder that is filled beside its target, on the same file system, and then renamed. What a
/// process left that was killed while it filled one is found by the next for the same target: files
/// that the same work wrote are kept, for the caller to check, and all else is removed.
/// Removes itself where it was not published. What somebody removes or renames while it is filled
/// is not made anew, and never published with files missing. One thread at a time.
class StagedFolder {
 public:
  /// Makes the folder. `needed_bytes`, less what is kept, have to be free there. Raises ConfigError
  /// where `target` exists and is not an empty folder, or is one whose place no other can take (a
  /// mount point, the working directory), and IoError (ENOSPC too, before anything is written).
  StagedFolder(const std::string& target, std::uint64_t needed_bytes, const StagedWork& work = {});
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;
  ~StagedFolder();

  /// Where to write the file that is to be `name` below the target; its folder exists then. Raises
  /// IoError, also where the staged folder is gone.
  std::string path_of(const std::string& name) const;
  /// The file of this name, of so many bytes, is whole: publish() looks for it. Raises IoError
  /// where the staged folder is gone.
  void add(const std::string& name, std::uint64_t size_bytes);

  /// Whether an earlier run left the file of this name, whole or not.
  bool has_left(const std::string& name) const;
  /// Removes a file that was left. Raises IoError.
  void discard(const std::string& name) const;

  /// Gives the folder its name, when the disk has all that is in it: files are synced by who wrote
  /// them. An empty folder in its place gives it its rights. Raises IoError, also where the folder
  /// or a file that was added is not there any more.
  void publish();

 private:
  void check_there() const;
  void check_added() const;
  bool is_continued(const StagedWork& work) const;
  void describe(const StagedWork& work) const;
  void check_room(std::uint64_t needed_bytes) const;
  std::uint64_t kept_bytes() const;

  const std::filesystem::path target_;
  const LockedFolder folder_;
  /// Whether there is a description in the folder.
  const bool described_;
  /// The sizes of the files that were added. Their inodes would not tell more everywhere: some file
  /// systems number a file anew once it is closed.
  std::map<std::string, std::uint64_t> added_;
  bool published_ = false;
};

}  // namespace tensorstream
