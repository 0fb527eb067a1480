#include "io/reader.h"

namespace tensorstream {

const std::byte* Reader::address(std::uint64_t /*offset_bytes*/) const noexcept { return nullptr; }

void Reader::prefetch(std::uint64_t /*offset_bytes*/, std::uint64_t /*size_bytes*/) const noexcept {
}

}  // namespace tensorstream
