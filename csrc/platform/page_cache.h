// The page cache: whether a file's bytes are in it, and bringing them there.
#pragma once

#include <cstdint>

#include "platform/file.h"

namespace tensorstream {

/// Whether the first and the last byte of the range can be read without the disk. To look costs a
/// microsecond. True on file systems that do not tell: those in memory, and some on a network.
bool ends_in_page_cache(const File& file, std::uint64_t offset_bytes,
                        std::uint64_t size_bytes) noexcept;

/// Reads the range into the page cache and waits for the disk. A hint: bytes that cannot be read
/// are left to who reads them. The pages come large where the file system has large ones: they are
/// copied at twice the rate of single pages, which posix_fadvise would bring.
void read_into_page_cache(const File& file, std::uint64_t offset_bytes,
                          std::uint64_t size_bytes) noexcept;

}  // namespace tensorstream
