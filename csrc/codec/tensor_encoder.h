// The frames of a whole tensor, encoded by several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/compression_level.h"
#include "tensorstream/dtype.h"

namespace tensorstream {

/// The most bytes that the frames of a tensor of `size_bytes` take. Raises UnsupportedError for a
/// size near the end of 64 bits.
std::uint64_t encoded_bound(std::uint64_t size_bytes);

struct TensorEncoding {
  Dtype dtype;
  CompressionLevel level;
  /// Threads that work, the calling one included; 1 to the frames of the tensor are used.
  unsigned threads = 1;
};

/// Writes the frames of a tensor, one after the other, to the beginning of `out`, which has
/// encoded_bound() of their bytes, and returns their size. All are raw where the coded ones
/// together would not lose 3 in 100. The result is the same for every number of threads.
std::uint64_t encode_tensor(const TensorEncoding& encoding, std::span<const std::byte> bytes,
                            std::span<std::byte> out);

}  // namespace tensorstream
