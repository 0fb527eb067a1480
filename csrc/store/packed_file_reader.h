// The tensors of a packed file, as they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "platform/file.h"
#include "store/packed_header.h"
#include "store/progress.h"

namespace tensorstream {

/// Is given a part of a tensor as it was, by several threads at once, each part once.
using PartSink = std::function<void(const PackedTensor& tensor, std::uint64_t offset_bytes,
                                    std::span<const std::byte> bytes)>;

/// Checks every byte of `file` behind its header and, where there is a `sink`, decodes all tensors
/// to it, by `threads` threads, the calling one included. Raises FormatError, of the damage that
/// comes first in the file, and IoError; what the sink was given is then not to be used.
void scan_packed_file(const File& file, const PackedHeader& header, unsigned threads,
                      const PartSink& sink, Progress& progress);

}  // namespace tensorstream
