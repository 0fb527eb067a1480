// Files that the page cache has nothing of.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "platform/file.h"
#include "platform/page_cache.h"

namespace tensorstream {

/// Lets all pages of the file go, where its file system can: false elsewhere.
inline bool drop_from_page_cache(const std::string& path) {
  const File file = File::open_for_reading(path);
  return ::fsync(file.descriptor()) == 0 &&
         ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED) == 0 &&
         bytes_in_page_cache(file, 0, file.size_bytes()) == 0;
}

}  // namespace tensorstream
