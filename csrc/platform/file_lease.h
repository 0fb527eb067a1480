// FileLease: nobody writes to a file while it is held.
#pragma once

#include <cstdint>

#include "base/mutex.h"
#include "platform/file.h"

namespace tensorstream {

/// The kernel's lease on a file: whoever opens it for writing, or truncates it, waits until the
/// lease is given back, 45 seconds at most (/proc/sys/fs/lease-break-time). Thread-safe; nests.
class FileLease {
 public:
  /// `file` outlives the lease.
  explicit FileLease(const File& file);
  ~FileLease();
  FileLease(const FileLease&) = delete;
  FileLease& operator=(const FileLease&) = delete;

  /// Takes the lease; false where somebody has the file open for writing, or waits to, so that
  /// holders who follow one another without a gap keep nobody waiting, where it belongs to another
  /// user, and on file systems without leases.
  [[nodiscard]] bool take() noexcept;
  /// Gives one take() back. Whoever waits goes on with the last of them.
  void give_back() noexcept;

 private:
  // Constant after construction.
  const File& file_;
  const std::int64_t process_;

  // Guarded by mutex_.
  Mutex mutex_;
  std::uint32_t holders_ TS_GUARDED_BY(mutex_) = 0;
};

/// Checks that nobody has `file` open for writing: what is in the midst of a write, or was mapped
/// and written to before, changes bytes later without a trace that check_unchanged() sees. Asked on
/// the usual file systems of disks and RAM alone: elsewhere, and of another user's file, a lease
/// that is refused says nothing. Raises IoError.
void check_no_writer(const File& file);

}  // namespace tensorstream
