// Files that the page cache has nothing of.
#pragma once

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>

#include "platform/file.h"
#include "platform/page_cache.h"

namespace tensorstream {

/// Lets the pages of a range go, where the file system can: false elsewhere. The kernel keeps pages
/// for a moment that another processor has just put there or that are being written, so it is asked
/// again.
inline bool drop_from_page_cache(const File& file, std::uint64_t offset_bytes,
                                 std::uint64_t size_bytes) {
  const int descriptor = file.descriptor();
  const auto offset = static_cast<off_t>(offset_bytes), size = static_cast<off_t>(size_bytes);
  for (int attempt = 0; attempt < 50 && !lies_in_ram(file); ++attempt) {
    if (::fsync(descriptor) != 0) return false;
    if (::posix_fadvise(descriptor, offset, size, POSIX_FADV_DONTNEED) != 0) return false;
    if (bytes_in_page_cache(file, offset_bytes, size_bytes) == 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

inline bool drop_from_page_cache(const std::string& path) {
  const File file = File::open_for_reading(path);
  return drop_from_page_cache(file, 0, file.size_bytes());
}

}  // namespace tensorstream
