// FileWindow: a part of a file used where the page cache has it, without a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "platform/file.h"
#include "platform/file_lease.h"
#include "platform/mapping.h"

namespace tensorstream {

class Reader;

/// An address at which a part of a file shows while the window is open. Its pages are the page
/// cache's own, and count as this process's memory while it is open; a write to them is private,
/// and lost when it is closed. Nobody else writes to the file meanwhile (FileLease). Not
/// thread-safe, but for bring().
class FileWindow {
 public:
  /// What it is used for.
  enum class Opens { kAlways, kWhereCached };

  /// Of [offset_bytes, offset_bytes + size_bytes) of `file`, which `owner` keeps open, as `lease`.
  FileWindow(std::shared_ptr<const Reader> owner, const File& file, FileLease& lease,
             std::uint64_t offset_bytes, std::uint64_t size_bytes, Opens opens = Opens::kAlways);
  ~FileWindow() { close(); }
  FileWindow(const FileWindow&) = delete;
  FileWindow& operator=(const FileWindow&) = delete;

  /// Where the part begins: within a page as in the file. Never changes.
  std::byte* data() const noexcept { return data_; }
  /// Bytes of pages while it is open.
  std::uint64_t mapped_bytes() const noexcept { return mapped_bytes_; }
  /// Whether this is the part of `reader` that begins at `offset_bytes`.
  bool is_of(const Reader& reader, std::uint64_t offset_bytes) const noexcept;

  /// Whether the page cache has lost what is only to be used there (Opens::kWhereCached).
  bool is_lost() const noexcept;
  /// Makes the file show at data(). False where it may be written to meanwhile. Raises IoError
  /// where the file is no longer the one that was opened.
  [[nodiscard]] bool open();
  /// Makes memory show at data() instead, for bytes that are copied there.
  void open_memory();
  /// Makes a range of the open file present, from `offset_bytes` of the window on. Raises IoError.
  void bring(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
  /// Raises IoError where the file has changed since it was opened, lease or not: somebody waited
  /// for the window to be closed for longer than the kernel lets him.
  void check_unchanged() const;
  /// Lets the pages and the lease go. What is read at data() afterwards is the file as it is then.
  void close() noexcept;

  /// Whether the window can be opened now: a kernel that tells of pages that cannot be read (Linux
  /// 5.14), a file system with leases, a file of our own, room for the mapping.
  [[nodiscard]] bool works();
  /// works(), and whether bringing pages costs little beside copying them, measured: where the page
  /// cache has large ones it does, and where it has single pages it does not.
  [[nodiscard]] bool is_quick();

 private:
  enum class Shown { kNothing, kFile, kMemory };

  // Constant after construction.
  const std::shared_ptr<const Reader> owner_;  // shared with the sources
  const File& file_;
  FileLease& lease_;
  const std::uint64_t offset_bytes_;  // in the file
  const std::uint64_t size_bytes_;
  const Opens opens_;
  std::uint64_t first_page_bytes_ = 0;  // where the first page begins in the file
  std::uint64_t start_bytes_ = 0;       // where it begins in the mapping
  std::uint64_t mapped_bytes_ = 0;
  Mapping mapping_;
  std::byte* data_ = nullptr;

  Shown shown_ = Shown::kNothing;
  bool leased_ = false;
};

}  // namespace tensorstream
