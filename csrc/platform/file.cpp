#include "platform/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "base/mutex.h"
#include "base/units.h"

namespace tensorstream {
namespace {

std::string error_text(int error_number) { return std::generic_category().message(error_number); }

std::string read_text(const std::string& path, std::uint64_t offset_bytes,
                      std::uint64_t size_bytes) {
  return "read of " + format_size(size_bytes) + " at offset " + std::to_string(offset_bytes) +
         " of '" + path + "' failed: ";
}

std::int64_t nanoseconds(const struct timespec& time) {
  constexpr std::int64_t kNanoseconds = 1'000'000'000;
  return time.tv_sec * kNanoseconds + time.tv_nsec;
}

FileIdentity identity_of(const struct stat& status) {
  return {.device = status.st_dev,
          .inode = status.st_ino,
          .size_bytes = static_cast<std::uint64_t>(status.st_size),
          .modified_ns = nanoseconds(status.st_mtim),
          .changed_ns = nanoseconds(status.st_ctim),
          .links = status.st_nlink};
}

/// Whether all is the same but what a link that comes or goes changes, too.
bool has_bytes_of(const FileIdentity& now, FileIdentity then) {
  then.changed_ns = now.changed_ns;
  then.links = now.links;
  return now == then;
}

/// The name of an open file, and the folder that has it. Another working directory, or another name
/// of a folder above, leave it the same.
struct FileName {
  std::uint64_t device = 0;
  std::uint64_t folder = 0;
  std::string name;

  bool operator==(const FileName&) const = default;
};

/// Nothing where the system does not say.
std::optional<FileName> name_of(int descriptor) {
  std::error_code error;
  const std::filesystem::path path =
      std::filesystem::read_symlink("/proc/thread-self/fd/" + std::to_string(descriptor), error);
  struct stat folder{};
  if (error || ::stat(path.parent_path().c_str(), &folder) != 0) return std::nullopt;
  return FileName{folder.st_dev, folder.st_ino, path.filename().string()};
}

}  // namespace

/// The file when it was last looked at: links to it and its name may have changed since it was
/// opened.
struct File::Seen {
  Mutex mutex;
  std::int64_t changed_ns TS_GUARDED_BY(mutex) = 0;
  std::uint64_t links TS_GUARDED_BY(mutex) = 0;
  std::optional<FileName> name TS_GUARDED_BY(mutex);
};

bool FileIdentity::is_as(const FileIdentity& then) const noexcept {
  return has_bytes_of(*this, then) && (changed_ns == then.changed_ns || links != then.links);
}

std::int64_t read_once(int descriptor, std::uint64_t offset_bytes,
                       std::span<std::byte> out) noexcept {
  const auto count = ::pread(descriptor, out.data(), out.size(), static_cast<off_t>(offset_bytes));
  return count < 0 ? -std::int64_t{errno} : count;
}

File File::open_for_reading(const std::string& path) {
  // O_NONBLOCK: opening a FIFO would wait for a writer; regular files ignore it.
  Descriptor descriptor(
      retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
  if (descriptor.get() < 0) {
    const int error = errno;
    const char* const advice = error == EMFILE ? "; close some, or raise `ulimit -n`" : "";
    throw IoError("cannot open '" + path + "' for reading: " + error_text(error) + advice, path, 0,
                  error);
  }
  File file(path, std::move(descriptor));
  struct stat status{};
  if (::fstat(file.descriptor(), &status) != 0) {
    const int error = errno;
    throw IoError("cannot examine '" + path + "': " + error_text(error), path, 0, error);
  }
  if (!S_ISREG(status.st_mode)) {
    const int error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    const char* kind = S_ISDIR(status.st_mode) ? "a folder" : "not a regular file";
    throw IoError("cannot read '" + path + "': it is " + kind + "; give the path of a file", path,
                  0, error);
  }
  file.identity_ = identity_of(status);
  const MutexLock lock(file.seen_->mutex);
  file.seen_->changed_ns = file.identity_.changed_ns;
  file.seen_->links = status.st_nlink;
  file.seen_->name = name_of(file.descriptor());
  return file;
}

File::File(std::string path, Descriptor descriptor)
    : path_(std::move(path)), descriptor_(std::move(descriptor)), seen_(std::make_unique<Seen>()) {}

File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;
File::~File() = default;

void File::check_inside(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
  const auto end = checked_add(offset_bytes, size_bytes);
  if (end && *end <= this->size_bytes()) return;
  throw IoError(read_text(path_, offset_bytes, size_bytes) + "the file has " +
                    std::to_string(this->size_bytes()) + " bytes",
                path_, offset_bytes, 0);
}

IoError File::read_error(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                         const ReadOutcome& outcome) const {
  const std::string why = outcome.error_number != 0
                              ? error_text(outcome.error_number)
                              : "the file ended after " + std::to_string(outcome.read_bytes) +
                                    " of " + std::to_string(size_bytes) +
                                    " bytes; it was truncated since it was opened";
  return {read_text(path_, offset_bytes, size_bytes) + why, path_,
          offset_bytes + outcome.read_bytes, outcome.error_number};
}

void File::read_exact(std::uint64_t offset_bytes, std::span<std::byte> out) const {
  check_inside(offset_bytes, out.size());
  const ReadOutcome outcome = read_fully(
      [&](std::uint64_t done, std::span<std::byte> rest) {
        return ::pread(descriptor(), rest.data(), rest.size(),
                       static_cast<off_t>(offset_bytes + done));
      },
      out);
  if (outcome.read_bytes != out.size()) throw read_error(offset_bytes, out.size(), outcome);
}

// Whoever sets a file's time back after writing to it cannot set that one back. A link that came or
// went, and another name, explain it once each; rights and owners do not: they are copied with
// bytes.
bool File::is_as_seen(const FileIdentity& now) const {
  if (!has_bytes_of(now, identity_)) return false;
  const MutexLock lock(seen_->mutex);
  if (now.changed_ns == seen_->changed_ns) return true;
  std::optional<FileName> name = name_of(descriptor());
  const bool is_renamed = name && seen_->name && *name != *seen_->name;
  const bool explained = now.links != seen_->links || is_renamed;
  if (!explained) return false;  // guard: time-set-back
  seen_->changed_ns = now.changed_ns;
  seen_->links = now.links;
  seen_->name = std::move(name);
  return true;
}

void File::check_in_place() const {
  struct stat status{};
  if (::stat(path_.c_str(), &status) != 0) {
    const int error = errno;
    throw IoError(
        "'" + path_ + "' is gone since it was opened: " + error_text(error) + "; begin again",
        path_, 0, error);
  }
  const FileIdentity there = identity_of(status);
  if (there.device == identity_.device && there.inode == identity_.inode) return;
  throw IoError(
      "'" + path_ + "' was replaced since it was opened: begin again with what is there now", path_,
      0, 0);
}

void File::check_unchanged() const {
  struct stat status{};
  if (::fstat(descriptor(), &status) != 0) {
    const int error = errno;
    throw IoError("cannot examine '" + path_ + "': " + error_text(error), path_, 0, error);
  }
  const FileIdentity now = identity_of(status);
  if (is_as_seen(now)) return;
  const auto at = [](std::int64_t to, std::int64_t from) {
    const double seconds = static_cast<double>(to - from) / 1e9;
    return std::to_string(std::abs(seconds)) + (seconds < 0 ? " s before" : " s after") +
           " the state that was opened";
  };
  std::string what = "it was written " + at(now.modified_ns, identity_.modified_ns);
  if (now.size_bytes != identity_.size_bytes) {
    what = "it had " + std::to_string(identity_.size_bytes) + " bytes and has " +
           std::to_string(now.size_bytes);
  } else if (now.modified_ns == identity_.modified_ns) {
    what = "its rights or attributes were changed, or it was written and its time set back, " +
           at(now.changed_ns, identity_.changed_ns);
  }
  throw IoError("'" + path_ + "' changed since it was opened: " + what +
                    "; open the model again, or pack it again",
                path_, 0, 0);
}

}  // namespace tensorstream
