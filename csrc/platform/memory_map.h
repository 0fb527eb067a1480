// /proc/self/maps and /proc/self/pagemap: which file a range of memory is, and whether it was
// written.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "platform/process_memory.h"

namespace tensorstream {

/// One line of /proc/self/maps.
struct MemoryArea {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::string permissions;
  std::uint64_t offset_bytes = 0;
  std::uint64_t device_major = 0;
  std::uint64_t device_minor = 0;
  std::uint64_t inode = 0;
  /// As the kernel wrote it: newlines as \012, " (deleted)" behind a file that has no name any
  /// more.
  std::string path;
};

/// Nothing where `line` is not one of /proc/self/maps.
std::optional<MemoryArea> parse_memory_area(std::string_view line);

/// `path` with the kernel's octal escapes (\012) turned back.
std::string unescaped_path(std::string_view path);

/// Where the kernel tells of this process; a test puts other files there.
struct ProcessFiles {
  std::string maps = "/proc/self/maps";
  std::string pagemap = "/proc/self/pagemap";
};

/// find_file_backing() with the kernel's files given.
std::optional<FileBacking> find_file_backing(const void* address, std::uint64_t size_bytes,
                                             const ProcessFiles& files);

}  // namespace tensorstream
