// The page cache: whether a file's bytes are in it, and bringing them there.
#pragma once

#include <cstdint>

#include "platform/file.h"

namespace tensorstream {

/// Whether the file lies in a file system that has it in RAM alone (tmpfs): no disk has its bytes.
bool lies_in_ram(const File& file) noexcept;

/// Whether the first and the last byte of the range can be read without the disk. To look costs a
/// microsecond. True on file systems that do not tell: those in memory, and some on a network.
bool ends_in_page_cache(const File& file, std::uint64_t offset_bytes,
                        std::uint64_t size_bytes) noexcept;

/// Bytes of the range that the page cache has now, as far as it is in the file. Exact where the
/// kernel tells: of files that are ours, or that we may write to, from Linux 6.5 on. Elsewhere
/// estimated from a page of every 2 MiB, 64 at most, at random places: those that are not there
/// come there by that.
std::uint64_t bytes_in_page_cache(const File& file, std::uint64_t offset_bytes,
                                  std::uint64_t size_bytes) noexcept;

/// The estimate alone.
std::uint64_t sampled_in_page_cache(const File& file, std::uint64_t offset_bytes,
                                    std::uint64_t size_bytes) noexcept;

/// Whether a sixteenth of the range at most would have to be read from the disk.
bool mostly_in_page_cache(const File& file, std::uint64_t offset_bytes,
                          std::uint64_t size_bytes) noexcept;

/// Reads the range into the page cache and waits for the disk. A hint: bytes that cannot be read
/// are left to who reads them. The pages come large where the file system has large ones: they are
/// copied at twice the rate of single pages, which posix_fadvise would bring.
void read_into_page_cache(const File& file, std::uint64_t offset_bytes,
                          std::uint64_t size_bytes) noexcept;

}  // namespace tensorstream
