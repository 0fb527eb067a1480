// Files that are written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "platform/descriptor.h"

namespace tensorstream {

/// A new file. Move-only; closes itself. Writes are thread-safe.
class OutputFile {
 public:
  /// Creates the file at `path`, where none may be. Raises IoError.
  static OutputFile create(const std::string& path);

  const std::string& path() const noexcept { return path_; }

  /// Writes all of `bytes` from `offset_bytes` on. Short writes and EINTR are retried; an error is
  /// an IoError.
  void write_at(std::uint64_t offset_bytes, std::span<const std::byte> bytes) const;
  /// Cuts the file, or fills it up with zeros, to `size_bytes`. Raises IoError.
  void resize(std::uint64_t size_bytes) const;
  /// Returns when the disk has all that was written. Raises IoError.
  void sync() const;

 private:
  OutputFile(std::string path, Descriptor descriptor);

  std::string path_;
  Descriptor descriptor_;
};

/// Returns when the disk has all of the file at `path`, whoever wrote it. Raises IoError.
void sync_file(const std::string& path);

}  // namespace tensorstream
