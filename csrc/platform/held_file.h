// HeldFile: a file that a library maps, kept as it is meanwhile.
#pragma once

#include <memory>
#include <string>

#include "platform/file.h"
#include "platform/file_lease.h"

namespace tensorstream {

/// A file that nobody writes to until let_go(), where the kernel gives leases: whoever has mapped
/// it would be ended by a signal at a page that a truncation took. One thread at a time.
class HeldFile {
 public:
  /// Raises IoError where it cannot be opened, or somebody has it open for writing.
  explicit HeldFile(const std::string& path);

  /// The file as it was before it was held.
  const FileIdentity& identity() const noexcept { return file_.identity(); }
  /// Whether writers wait: not where the file is another user's, or its file system has no leases.
  bool is_leased() const noexcept { return is_leased_; }
  /// Whoever waits to write goes on.
  void let_go() noexcept;

 private:
  const File file_;
  std::unique_ptr<FileLease> lease_;  // null once it was let go
  bool is_leased_ = false;
};

}  // namespace tensorstream
