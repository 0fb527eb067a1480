// The files of a checkpoint's folder that hold no tensors of it: config, tokenizer and the like.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "platform/file.h"
#include "store/progress.h"

namespace tensorstream {

struct CarriedFile {
  /// Its path below the folder.
  std::string name;
  std::uint64_t size_bytes = 0;
  /// Of each 2 MiB.
  std::vector<std::uint64_t> checksums;
  /// Of one that was copied: the file that it was copied from.
  FileIdentity identity{};
};

/// What to do about a carried file that is not as it was.
inline constexpr const char* kCarriedAdvice =
    "put it back as it was, or pack the original again. The weights do not depend on it: they load "
    "as they are, and tensorstream.unpack of a packed-*.safetensors file by its own path gives "
    "them";

/// All files below `folder` but those called `left_out`, by name, without checksums. Hidden files
/// and folders (.git, .cache) are no part of a checkpoint. Links are what they lead to: files and
/// folders as check_stays_in_folder() has them. Raises IoError, also for a link to nothing;
/// FormatError for a link that leaves the folder or leads to one that it is in; UnsupportedError
/// for what is neither file nor folder.
std::vector<CarriedFile> list_carried_files(const std::string& folder,
                                            const std::set<std::string>& left_out);

/// The sum of their sizes.
std::uint64_t carried_bytes(const std::vector<CarriedFile>& files) noexcept;

/// Raises IoError where a file below `folder` is not what was `copied` of it: it is gone, or has
/// other bytes. Files that came since it was listed are no part of what was copied.
void check_still_there(const std::string& folder, const std::vector<CarriedFile>& copied);

/// Copies the file at `from` to `to`, synced, and gives its size and checksums. Raises IoError,
/// also where `from` changes meanwhile, or is open for writing.
CarriedFile copy_carried_file(const std::string& from, const std::string& to, Progress& progress);

/// The size and checksums of the file at `path`. Raises IoError.
CarriedFile examine_carried_file(const std::string& path, Progress& progress);

/// Raises FormatError where what was found at `path` is not what was `recorded`.
void check_carried_file(const std::string& path, const CarriedFile& found,
                        const CarriedFile& recorded);

}  // namespace tensorstream
