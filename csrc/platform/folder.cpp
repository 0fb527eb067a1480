#include "platform/folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <limits>
#include <system_error>
#include <utility>

#include "base/units.h"
#include "platform/retry.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr mode_t kOpenToAll = 0777;  // less the process's umask
constexpr mode_t kAllRights = 07777;

[[noreturn]] void raise(const std::string& what, const std::string& path, int error) {
  throw IoError(what + ": " + std::generic_category().message(error), path, 0, error);
}

Descriptor open_folder(const std::string& path) {
  Descriptor descriptor(retry_interrupted(
      [&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW); }));
  if (descriptor.get() < 0) raise("cannot open the folder '" + path + "'", path, errno);
  return descriptor;
}

struct stat status_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0) return status;
  raise("cannot examine the folder '" + path + "'", path, errno);
}

}  // namespace

std::uint64_t free_disk_bytes(const std::string& path) {
  struct statvfs status{};
  const auto done = retry_interrupted([&] { return ::statvfs(path.c_str(), &status); });
  if (done != 0) raise("cannot tell how much room is left in '" + path + "'", path, errno);
  return checked_mul(status.f_bavail, status.f_frsize)
      .value_or(std::numeric_limits<std::uint64_t>::max());
}

void sync_folder(const std::string& path) {
  const Descriptor descriptor(
      retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (descriptor.get() < 0) raise("cannot open the folder '" + path + "'", path, errno);
  if (retry_interrupted([&] { return ::fsync(descriptor.get()); }) == 0) return;
  raise("the folder '" + path + "' could not be written to the disk", path, errno);
}

void rename_folder(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) == 0) return;
  raise("cannot rename '" + from + "' to '" + to + "'", to, errno);
}

bool is_mount_point(const std::string& path) {
  if (status_of(path).st_dev != status_of(path + "/..").st_dev) return true;
  // A part of the same disk that is bound there has its number; kernels before 5.8 do not say.
  struct statx status{};
  if (::statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, STATX_INO, &status) != 0) return false;
  return (status.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

LockedFolder LockedFolder::hold(const std::string& path) {
  if (::mkdir(path.c_str(), kOpenToAll) != 0 && errno != EEXIST) {
    raise("cannot make the folder '" + path + "'", path, errno);
  }
  Descriptor descriptor = open_folder(path);
  if (retry_interrupted([&] { return ::flock(descriptor.get(), LOCK_EX | LOCK_NB); }) != 0) {
    const int error = errno;
    if (error != EWOULDBLOCK) raise("cannot lock the folder '" + path + "'", path, error);
    raise("another process is writing in '" + path + "'; wait for its end", path, error);
  }
  LockedFolder held(path, std::move(descriptor));
  if (!held.is_at_its_path()) {
    throw IoError("another process has just finished with '" + path + "'; try again", path, 0, 0);
  }
  return held;
}

bool LockedFolder::is_at_its_path() const noexcept {
  struct stat opened{};
  struct stat named{};
  if (::fstat(descriptor_.get(), &opened) != 0) return false;
  if (::lstat(path_.c_str(), &named) != 0) return false;
  return opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

void LockedFolder::take_rights_of(const std::string& path, bool is_filled) const noexcept {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return;
  // Before the rights, of which a new owner takes some away.
  if (::fchown(descriptor_.get(), status.st_uid, status.st_gid) != 0) {
    static_cast<void>(::fchown(descriptor_.get(), static_cast<uid_t>(-1), status.st_gid));
  }
  const mode_t needed = is_filled ? 0 : S_IRWXU;
  static_cast<void>(::fchmod(descriptor_.get(), (status.st_mode & kAllRights) | needed));
}

LockedFolder::LockedFolder(std::string path, Descriptor descriptor)
    : path_(std::move(path)), descriptor_(std::move(descriptor)) {}

}  // namespace tensorstream
