// How files are read where nobody says it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/file_opener.h"
#include "platform/process_memory.h"
#include "tensorstream/engine.h"

namespace tensorstream {

struct BackendChoice {
  FileBackend backend = FileBackend::kPread;
  std::string reason;
};

/// What the page cache has of a model's files.
struct CachedFiles {
  std::uint64_t file_bytes = 0;
  std::uint64_t cached_bytes = 0;
  /// Whether all of them lie in RAM alone (lies_in_ram()).
  bool in_ram = false;
};

/// Raises IoError.
CachedFiles cached_files(const std::vector<std::string>& paths);

/// Through the page cache where the files have no disk, or where it has room for what each pass by
/// `plan` reads from files; `room` is before the plan's own memory is taken. Where it has not, it
/// would never have what is read next: past it then, but what it has already, charged to others, so
/// that what is missing would find room, is used there (FileBackend::kCached), and what is read
/// past it goes straight to a GPU where `gpudirect` (probe_peer_to_peer()) proves that the disk
/// does that itself.
BackendChoice choose_backend(const Plan& plan, ComputePlace place, const RamRoom& room,
                             const CachedFiles& files, const ProbeResult& gpudirect = {});

}  // namespace tensorstream
