#include "codec/checksum.h"

// The whole of it is compiled here: nothing is linked, and nothing is exported.
#define XXH_INLINE_ALL  // NOLINT(readability-identifier-naming)
#include <xxhash.h>

namespace tensorstream {

std::uint64_t checksum_of(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace tensorstream
