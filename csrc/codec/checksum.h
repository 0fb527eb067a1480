// The checksum of encoded bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tensorstream {

/// XXH3 of 64 bits with the seed 0.
std::uint64_t checksum_of(std::span<const std::byte> bytes) noexcept;

}  // namespace tensorstream
