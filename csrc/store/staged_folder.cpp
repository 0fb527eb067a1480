#include "store/staged_folder.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "codec/checksum.h"
#include "platform/file.h"
#include "platform/output_file.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void raise_io(const std::string& what, const fs::path& path,
                           const std::error_code& error) {
  throw IoError(what + " '" + path.string() + "': " + error.message(), path.string(), 0,
                error.value());
}

/// Refuses an empty folder that no other can take the place of.
void check_replaceable(const fs::path& path) {
  if (is_mount_point(path.string())) {  // guard: target-mounted
    throw ConfigError("the target '" + path.string() +
                      "' is a mount point, which a finished folder cannot take the place of; name "
                      "a folder in it that does not exist");
  }
  std::error_code ignored;
  if (fs::equivalent(path, ".", ignored)) {  // guard: target-working-directory
    throw ConfigError("the target '" + path.string() +
                      "' is the working directory, which would be no more when a finished folder "
                      "takes its place; name a folder in it that does not exist");
  }
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
  if (status.type() == fs::file_type::symlink) {
    throw ConfigError("the target '" + path.string() +
                      "' is a link, which a finished folder cannot take the place of; name the "
                      "folder that it leads to, or one that does not exist");
  }
  if (status.type() != fs::file_type::directory) {
    throw ConfigError("the target '" + path.string() +
                      "' exists and is no folder; name one that does not exist");
  }
  const bool empty = fs::is_empty(path, error);
  if (error) raise_io("cannot examine the target", path, error);
  if (empty) {
    check_replaceable(path);
    return path;
  }
  throw ConfigError("the target '" + path.string() +
                    "' exists and is not empty; name a folder that does not exist");
}

/// As file systems have it; one that takes fewer refuses the folder before it is filled.
constexpr std::size_t kLongestName = 255;

/// The same name for every process, so that what one left is found by the next. Of a name that
/// leaves no room for ours, a checksum stands for the end.
std::string staging_name(const fs::path& target) {
  constexpr std::string_view kEnding = ".tensorstream-partial";
  std::string name = target.filename().string();
  if (1 + name.size() + kEnding.size() > kLongestName) {
    const std::string sum = "~" + std::to_string(checksum_of(std::as_bytes(std::span(name))));
    std::size_t kept = kLongestName - 1 - kEnding.size() - sum.size();
    const auto is_inside_letter = [&] { return (name[kept] & 0xC0) == 0x80; };  // of UTF-8
    while (kept > 0 && is_inside_letter()) --kept;
    name = name.substr(0, kept) + sum;
  }
  return (target.parent_path() / ("." + name.append(kEnding))).string();
}

/// What tells what a run was at. Hidden files are no part of a checkpoint.
constexpr const char* kDescriptionName = ".tensorstream-work";
// Of a description that is read; none that is written comes near.
constexpr std::uint64_t kLongestDescription = 100'000'000;

[[noreturn]] void raise_gone(const std::string& path, const std::string& what) {
  throw IoError("'" + path + "' " + what +
                    " while the target was written, by a program that tidies up or by hand; keep "
                    "it where it is until the end, and start again",
                path, 0, 0);
}

/// All that is below a folder, each before the folder that it is in. Links are not followed.
std::vector<fs::path> contents_of(const std::string& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  while (!error && entry != fs::recursive_directory_iterator()) {
    found.push_back(entry->path());
    entry.increment(error);
  }
  if (error) raise_io("cannot list the folder", folder, error);
  std::ranges::reverse(found);
  return found;
}

/// Removes all but the files that are called `kept`, below the folder, and the folders they are in.
void remove_contents(const std::string& folder, const std::set<std::string>& kept) {
  for (const fs::path& path : contents_of(folder)) {
    std::error_code error;
    const fs::file_status status = fs::symlink_status(path, error);
    if (!error && status.type() == fs::file_type::directory && !fs::is_empty(path, error)) continue;
    const bool regular = status.type() == fs::file_type::regular;
    if (regular && kept.contains(path.lexically_relative(folder).string())) continue;
    if (!error) fs::remove(path, error);
    if (error) raise_io("cannot remove what an earlier run left:", path, error);
  }
}

}  // namespace

StagedFolder::StagedFolder(const std::string& target, std::uint64_t needed_bytes,
                           const StagedWork& work)
    : target_(checked_target(target)),
      folder_(LockedFolder::hold(staging_name(target_))),
      described_(!work.description.empty()) {
  std::set<std::string> kept;
  if (described_ && is_continued(work)) {  // guard: same-work
    kept = work.files;
    kept.insert(kDescriptionName);
  }
  remove_contents(folder_.path(), kept);
  folder_.take_rights_of(target_.string(), false);  // guard: rights-of-the-target
  try {
    const std::uint64_t there = kept_bytes();
    check_room(needed_bytes - std::min(needed_bytes, there));
    if (described_ && !has_left(kDescriptionName)) describe(work);
  } catch (const Error&) {
    std::error_code ignored;
    if (kept.empty()) fs::remove_all(folder_.path(), ignored);
    throw;
  }
}

void StagedFolder::describe(const StagedWork& work) const {
  const OutputFile file = OutputFile::create(path_of(kDescriptionName));
  file.write_at(0, std::as_bytes(std::span(work.description)));
  file.sync();
  sync_folder(folder_.path());
}

bool StagedFolder::is_continued(const StagedWork& work) const {
  if (!has_left(kDescriptionName)) return false;
  const File file = File::open_for_reading(path_of(kDescriptionName));
  if (file.size_bytes() > kLongestDescription) return false;
  std::string found(file.size_bytes(), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(found)));
  return found == work.description;
}

std::uint64_t StagedFolder::kept_bytes() const {
  std::uint64_t sum = 0;
  for (const fs::path& path : contents_of(folder_.path())) {
    std::error_code error;
    const std::uint64_t size = fs::is_regular_file(path, error) ? fs::file_size(path, error) : 0;
    if (!error) sum += size;
  }
  return sum;
}

bool StagedFolder::has_left(const std::string& name) const {
  std::error_code ignored;
  const fs::path path = fs::path(folder_.path()) / name;
  return fs::symlink_status(path, ignored).type() == fs::file_type::regular;
}

void StagedFolder::discard(const std::string& name) const {
  std::error_code error;
  const fs::path path = fs::path(folder_.path()) / name;
  fs::remove(path, error);
  if (error) raise_io("cannot remove what an earlier run left:", path, error);
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
  if (!folder_.is_at_its_path()) return;  // guard: removes-its-own
  std::error_code error;
  fs::remove_all(folder_.path(), error);
  if (error) {
    log(LogLevel::kWarning, "'" + folder_.path() + "' could not be removed: " + error.message());
  }
}

std::string StagedFolder::path_of(const std::string& name) const {
  check_there();
  // One by one, so that the folder itself is never made anew: it would not be the one that is held.
  fs::path path = folder_.path();
  for (const fs::path& part : fs::path(name).parent_path()) {
    path /= part;
    std::error_code error;
    fs::create_directory(path, error);
    if (error) raise_io("cannot make the folder", path, error);
  }
  return (fs::path(folder_.path()) / name).string();
}

void StagedFolder::check_there() const {
  if (!folder_.is_at_its_path()) {  // guard: staged-folder-there
    raise_gone(folder_.path(), "was removed or renamed");
  }
}

void StagedFolder::add(const std::string& name, std::uint64_t size_bytes) {
  check_there();
  added_[name] = size_bytes;
}

void StagedFolder::check_added() const {
  check_there();
  for (const auto& [name, size_bytes] : added_) {
    const fs::path path = fs::path(folder_.path()) / name;
    if (!has_left(name)) raise_gone(path.string(), "was removed or renamed");
    std::error_code error;
    const std::uint64_t found = fs::file_size(path, error);
    if (error) raise_io("cannot examine", path, error);
    if (found != size_bytes) raise_gone(path.string(), "was replaced, or written to,");
  }
}

void StagedFolder::publish() {
  check_added();  // guard: published-whole
  if (described_) discard(kDescriptionName);
  std::error_code error;
  fs::recursive_directory_iterator entry(folder_.path(), error);
  while (!error && entry != fs::recursive_directory_iterator()) {
    if (entry->is_directory(error) && !error) sync_folder(entry->path().string());
    if (!error) entry.increment(error);
  }
  if (error) raise_io("cannot list the folder", folder_.path(), error);
  sync_folder(folder_.path());
  folder_.take_rights_of(target_.string(), true);  // guard: rights-of-the-target
  check_there();
  rename_folder(folder_.path(), target_.string());
  published_ = true;
  sync_folder(target_.parent_path().string());
}

}  // namespace tensorstream
