#include "store/staged_folder.h"

#include <cerrno>
#include <system_error>

#include "base/log.h"
#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void raise_io(const std::string& what, const fs::path& path,
                           const std::error_code& error) {
  throw IoError(what + " '" + path.string() + "': " + error.message(), path.string(), 0,
                error.value());
}

/// The target's absolute path, without a slash at its end, where something may be put.
fs::path checked_target(const std::string& target) {
  if (target.empty()) throw ConfigError("the target is an empty path; name a folder to make");
  std::error_code error;
  fs::path path = fs::absolute(target, error).lexically_normal();
  if (error) raise_io("cannot tell where the target is:", target, error);
  if (path.filename().empty()) path = path.parent_path();
  const fs::file_status status = fs::symlink_status(path, error);
  if (status.type() == fs::file_type::not_found) {
    fs::create_directories(path.parent_path(), error);
    if (error) raise_io("cannot make the folder", path.parent_path(), error);
    return path;
  }
  if (error) raise_io("cannot examine the target", path, error);
  if (status.type() != fs::file_type::directory) {
    throw ConfigError("the target '" + path.string() +
                      "' exists and is no folder; name one that does not exist");
  }
  const bool empty = fs::is_empty(path, error);
  if (error) raise_io("cannot examine the target", path, error);
  if (empty) return path;
  throw ConfigError("the target '" + path.string() +
                    "' exists and is not empty; name a folder that does not exist");
}

/// The same name for every process, so that what one left is found by the next.
std::string staging_name(const fs::path& target) {
  return (target.parent_path() / ("." + target.filename().string() + ".tensorstream-partial"))
      .string();
}

void remove_contents(const std::string& folder) {
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  while (!error && entry != fs::directory_iterator()) {
    fs::remove_all(entry->path(), error);
    if (!error) entry.increment(error);
  }
  if (error) raise_io("cannot remove what an earlier run left in", folder, error);
}

}  // namespace

StagedFolder::StagedFolder(const std::string& target, std::uint64_t needed_bytes)
    : target_(checked_target(target)), folder_(LockedFolder::hold(staging_name(target_))) {
  remove_contents(folder_.path());
  try {
    check_room(needed_bytes);
  } catch (const Error&) {
    std::error_code ignored;
    fs::remove(folder_.path(), ignored);
    throw;
  }
}

void StagedFolder::check_room(std::uint64_t needed_bytes) const {
  const std::uint64_t free_bytes = free_disk_bytes(folder_.path());
  if (needed_bytes <= free_bytes) return;
  throw IoError("'" + target_.string() + "' may take " + format_size(needed_bytes) + ", and " +
                    format_size(free_bytes) +
                    " are free on its disk; make room, or name a target on another disk",
                target_.string(), 0, ENOSPC);
}

StagedFolder::~StagedFolder() {
  if (published_) return;
  std::error_code error;
  fs::remove_all(folder_.path(), error);
  if (error) {
    log(LogLevel::kWarning, "'" + folder_.path() + "' could not be removed: " + error.message());
  }
}

std::string StagedFolder::path_of(const std::string& name) const {
  const fs::path path = fs::path(folder_.path()) / name;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) raise_io("cannot make the folder", path.parent_path(), error);
  return path.string();
}

void StagedFolder::publish() {
  std::error_code error;
  fs::recursive_directory_iterator entry(folder_.path(), error);
  while (!error && entry != fs::recursive_directory_iterator()) {
    if (entry->is_directory(error) && !error) sync_folder(entry->path().string());
    if (!error) entry.increment(error);
  }
  if (error) raise_io("cannot list the folder", folder_.path(), error);
  sync_folder(folder_.path());
  rename_folder(folder_.path(), target_.string());
  published_ = true;
  sync_folder(target_.parent_path().string());
}

}  // namespace tensorstream
