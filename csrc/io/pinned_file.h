// PinnedFile: a file in RAM that a device copies from where it lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "device/device.h"
#include "platform/file.h"
#include "platform/file_lease.h"
#include "platform/mapping.h"

namespace tensorstream {

/// The whole of a file that a file system has in RAM alone (tmpfs), registered with a device. That
/// takes no memory: the pages are the file system's, and are not mapped here between copies.
/// Thread-safe. Must not go in a callback of a stream, nor while a copy is under way.
class PinnedFile {
 public:
  class Hold;

  /// Null where the file's system has a disk, or has no leases for us, or where the device or the
  /// system does not register the file: it is read then. `file` and `lease`, which is of it,
  /// outlive this. Raises IoError where the file has changed since it was opened, and CudaError.
  static std::unique_ptr<PinnedFile> try_create(std::shared_ptr<Device> device, const File& file,
                                                FileLease& lease);
  PinnedFile(const PinnedFile&) = delete;
  PinnedFile& operator=(const PinnedFile&) = delete;
  ~PinnedFile() = default;

  /// Where the device copies the byte at `offset_bytes` from, while there is a Hold.
  const std::byte* address(std::uint64_t offset_bytes) const noexcept;
  /// How far one copy may go that begins at `offset_bytes`.
  std::uint64_t piece_end(std::uint64_t offset_bytes) const noexcept;

  /// Nothing where somebody has the file open for writing. Raises IoError where it is no longer the
  /// one that was opened.
  std::optional<Hold> try_hold();

 private:
  PinnedFile(std::shared_ptr<Device> device, const File& file, FileLease& lease)
      : device_(std::move(device)), file_(file), lease_(lease) {}
  bool try_register();

  // Constant after construction. Registrations go before the mapping, and that before the device.
  const std::shared_ptr<Device> device_;  // shared with the model's engine
  const File& file_;
  FileLease& lease_;
  Mapping mapping_;
  std::vector<std::unique_ptr<HostRegistration>> registrations_;  // of pieces that follow another
};

/// Nobody writes to the file while this is there (FileLease). Move-only; the PinnedFile outlives
/// it.
class PinnedFile::Hold {
 public:
  Hold(Hold&& other) noexcept : file_(std::exchange(other.file_, nullptr)) {}
  Hold& operator=(Hold&& other) noexcept;
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  ~Hold() { give_back(); }

  bool is_of(const PinnedFile& file) const noexcept { return file_ == &file; }
  /// Raises IoError where the file has changed since it was opened, all the same: somebody waited
  /// for longer than the kernel lets him. What was copied meanwhile may be of either.
  void check_unchanged() const;

 private:
  friend class PinnedFile;
  explicit Hold(PinnedFile& file) : file_(&file) {}
  void give_back() noexcept;

  PinnedFile* file_;  // null once moved from
};

}  // namespace tensorstream
