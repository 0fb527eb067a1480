// One safetensors file, packed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "codec/compression_level.h"
#include "platform/file.h"
#include "store/progress.h"
#include "store/safetensors.h"

namespace tensorstream {

struct PackOptions {
  CompressionLevel level;
  /// Threads that work, the calling one included.
  unsigned threads = 1;
};

/// A safetensors file that is to be packed.
struct PackSource {
  File file;
  HeaderText header;
  std::vector<StoredTensor> tensors;
};

/// Opens and checks a file. Raises IoError, FormatError, and UnsupportedError where it is packed
/// already or uses a name of the packed format's.
PackSource open_pack_source(const std::string& path);

/// The most bytes that a file takes when it is packed.
std::uint64_t packed_bound(const PackSource& source);

struct PackedFileSummary {
  /// The names of all tensors in the packed file.
  std::vector<std::string> names;
  std::uint64_t tensors = 0;
  std::uint64_t encoded_tensors = 0;
  std::uint64_t size_bytes = 0;
  /// The checksum that stands for the whole file.
  std::string seal;
};

/// Packs `source` into a new file at `path`, synced. Holds 4 MiB a thread. The bytes are the same
/// for every number of threads. Raises IoError. Whether the source changed meanwhile is for the
/// caller to ask.
PackedFileSummary write_packed_file(const PackSource& source, const std::string& path,
                                    const PackOptions& options, Progress& progress);

/// The file at `path` where it is what write_packed_file() would make of `source` at some level, to
/// its last bit, and is synced; nothing where it is not. Raises IoError where that cannot be told.
std::optional<PackedFileSummary> find_packed_file(const PackSource& source, const std::string& path,
                                                  unsigned threads);

}  // namespace tensorstream
