// DiskFile: a file that is read past the page cache.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <string>
#include <utility>

#include "platform/file.h"

namespace tensorstream {

/// No disk has larger blocks: a read of one is tried where a file is opened.
inline constexpr std::uint64_t kLargestBlockBytes = 4096;

/// What has to be kept to of the alignment that a file system names. One that names more than
/// kLargestBlockBytes, as ZFS does its records, was seen to take those.
constexpr std::uint64_t needed_alignment(std::uint64_t named_bytes) noexcept {
  return std::has_single_bit(named_bytes) ? std::min(named_bytes, kLargestBlockBytes)
                                          : kLargestBlockBytes;
}

/// A file for reads of whole blocks, from the disk into memory without a copy. Move-only.
/// Thread-safe.
class DiskFile {
 public:
  /// Opens `path` past the page cache. Raises IoError, and UnsupportedError where the file system
  /// refuses that.
  static DiskFile open_direct(const std::string& path);
  /// Opens `path` past the page cache for who cuts reads into blocks himself: any offset and
  /// address will do. Raises as open_direct() does.
  static DiskFile open_for_device(const std::string& path);
  /// Opens `path` through the page cache, where any offset and address will do. Raises IoError.
  static DiskFile open_buffered(const std::string& path);

  const File& file() const noexcept { return file_; }
  /// Raises IoError where `other`, opened by the same path before or since, is another file, or
  /// another state of it.
  void check_same(const File& other) const;
  bool is_direct() const noexcept { return block_bytes_ > 1; }
  /// A read begins and ends at a multiple of this in the file; a power of two.
  std::uint64_t block_bytes() const noexcept { return block_bytes_; }
  /// A read's memory begins at a multiple of this; a power of two.
  std::uint64_t memory_alignment_bytes() const noexcept { return memory_alignment_bytes_; }

 private:
  DiskFile(File file, std::uint64_t block_bytes, std::uint64_t memory_alignment_bytes)
      : file_(std::move(file)),
        block_bytes_(block_bytes),
        memory_alignment_bytes_(memory_alignment_bytes) {}

  File file_;
  std::uint64_t block_bytes_;
  std::uint64_t memory_alignment_bytes_;
};

}  // namespace tensorstream
