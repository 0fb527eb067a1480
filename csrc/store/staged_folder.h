// A folder that appears under its name only when it is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "platform/folder.h"

namespace tensorstream {

/// A folder that is filled beside its target, on the same file system, and then renamed. What a
/// process left that was killed while it filled one is removed by the next for the same target.
/// Removes itself where it was not published. One thread at a time.
class StagedFolder {
 public:
  /// Makes the folder. `needed_bytes` have to be free there. Raises ConfigError where `target`
  /// exists and is not an empty folder, and IoError (ENOSPC too, before anything is written).
  StagedFolder(const std::string& target, std::uint64_t needed_bytes);
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;
  ~StagedFolder();

  /// Where to write the file that is to be `name` below the target; its folder exists then.
  std::string path_of(const std::string& name) const;

  /// Gives the folder its name, when the disk has all that is in it: files are synced by who wrote
  /// them. Raises IoError.
  void publish();

 private:
  void check_room(std::uint64_t needed_bytes) const;

  const std::filesystem::path target_;
  const LockedFolder folder_;
  bool published_ = false;
};

}  // namespace tensorstream
