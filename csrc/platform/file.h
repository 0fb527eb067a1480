// Files, read-only: an owned descriptor, whole reads, identity.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "platform/descriptor.h"
#include "platform/retry.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// What tells one state of a file from another: a file replaced, truncated or rewritten has a new
/// identity.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size_bytes = 0;
  std::int64_t modified_ns = 0;
  /// When the file system last noted a change, which no program can set back: docs/adr/0025.
  std::int64_t changed_ns = 0;
  /// Names that it has.
  std::uint64_t links = 0;

  bool operator==(const FileIdentity&) const = default;
  /// Whether the file has the bytes that it had then, as far as its times tell: a link that came or
  /// went explains that something changed.
  bool is_as(const FileIdentity& then) const noexcept;
};

/// One call of pread: the bytes that it read, or -errno.
std::int64_t read_once(int descriptor, std::uint64_t offset_bytes,
                       std::span<std::byte> out) noexcept;

/// An open file. Move-only; closes itself. Reads are thread-safe.
class File {
 public:
  /// Opens `path` for reading. Raises IoError; a folder is an IoError too.
  static File open_for_reading(const std::string& path);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  const std::string& path() const noexcept { return path_; }
  int descriptor() const noexcept { return descriptor_.get(); }
  /// The file as it was when it was opened.
  const FileIdentity& identity() const noexcept { return identity_; }
  std::uint64_t size_bytes() const noexcept { return identity_.size_bytes; }

  /// Fills `out` from `offset_bytes`. Short reads and EINTR are retried; the file's end, or an
  /// error, is an IoError.
  void read_exact(std::uint64_t offset_bytes, std::span<std::byte> out) const;

  /// The error of a read of `size_bytes` from `offset_bytes` on that came as far as `outcome`.
  IoError read_error(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                     const ReadOutcome& outcome) const;
  /// Raises IoError where the range is not wholly in the file as it was opened.
  void check_inside(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;

  /// Raises IoError where the file under the descriptor is no longer the one that was opened
  /// (truncated, rewritten, also where its time was set back afterwards). Links to it may come and
  /// go meanwhile, and it may be renamed.
  void check_unchanged() const;
  /// Raises IoError where its path leads to another file now, or to none.
  void check_in_place() const;

 private:
  struct Seen;

  File(std::string path, Descriptor descriptor);
  bool is_as_seen(const FileIdentity& now) const;

  std::string path_;
  Descriptor descriptor_;
  FileIdentity identity_;
  std::unique_ptr<Seen> seen_;  // null only once moved from
};

}  // namespace tensorstream
