// Bytes of tensors for tests, as text that goes into files.
#pragma once

#include <cstddef>
#include <string>

namespace tensorstream::testing {

/// Little-endian bf16 of weights that pay to be encoded.
std::string weights(std::size_t count, unsigned seed = 1);

/// Bytes that no code makes fewer.
std::string noise(std::size_t count, unsigned seed = 2);

}  // namespace tensorstream::testing
