#include "store/folder_bounds.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

bool is_below(const fs::path& path, const fs::path& folder) {
  const auto [of_folder, rest] =
      std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return of_folder == folder.end() && rest != path.end();
}

/// Where the cache that has the snapshot `folder` keeps the bytes of its files; empty where
/// `folder` is none.
fs::path blobs_of(const fs::path& folder) {
  for (fs::path above = folder; above.has_relative_path(); above = above.parent_path()) {
    if (above.parent_path().filename() == "snapshots") {
      return above.parent_path().parent_path() / "blobs";
    }
  }
  return {};
}

}  // namespace

void check_stays_in_folder(const std::string& folder, const std::string& name) {
  const fs::path path = fs::path(folder) / name;
  std::error_code error;
  const fs::path home = fs::canonical(folder.empty() ? "." : folder, error);
  if (error) return;
  const fs::path real = fs::canonical(path, error);
  if (error || is_below(real, home)) return;
  const fs::path blobs = blobs_of(home);
  if (!blobs.empty() && real.parent_path() == blobs) return;
  // guard: link-out-of-folder
  if (real == home) {
    throw FormatError(path.string(), "", "link: it leads to the folder that it is in; remove it");
  }
  throw FormatError(
      path.string(), "",
      "link: it leads to '" + shown(real.string()) +
          "', outside of the checkpoint's folder; put the file itself there, or give the "
          "folder that it is in");
  // end guard
}

}  // namespace tensorstream
