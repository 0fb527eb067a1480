#include "io/reader.h"

namespace tensorstream {

const std::byte* Reader::address(std::uint64_t /*offset_bytes*/) const noexcept { return nullptr; }

}  // namespace tensorstream
