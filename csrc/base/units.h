// Sizes: literals, checked arithmetic, alignment, text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tensorstream {

inline namespace literals {
constexpr std::uint64_t operator""_KiB(unsigned long long n) { return n << 10U; }
constexpr std::uint64_t operator""_MiB(unsigned long long n) { return n << 20U; }
constexpr std::uint64_t operator""_GiB(unsigned long long n) { return n << 30U; }
}  // namespace literals

/// Every tensor on a device starts at a multiple of this; vendor libraries choose kernels by
/// alignment.
inline constexpr std::uint64_t kTensorAlignment = 512;
/// Every group on a device starts at a multiple of this, so that access rights can be given by
/// group.
inline constexpr std::uint64_t kGroupAlignment = 4096;

inline constexpr std::uint64_t kCacheLineBytes = 64;

/// a + b, or nothing on overflow.
constexpr std::optional<std::uint64_t> checked_add(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

/// a * b, or nothing on overflow.
constexpr std::optional<std::uint64_t> checked_mul(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

/// `value` rounded up to a multiple of `alignment`, a power of two. The caller ensures that it does
/// not overflow.
constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

constexpr std::uint64_t divide_up(std::uint64_t value, std::uint64_t by) {
  return value / by + (value % by == 0 ? 0 : 1);
}

constexpr bool is_power_of_two(std::uint64_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

/// Bytes of "4GiB", "500 MB", "1.5G", "4096" or "60%" of `whole_bytes`. KB, MB, GB, TB are powers
/// of 1000; KiB ... and K, M, G, T of 1024. Raises ConfigError that names `option` for anything
/// else, for nothing to take a percentage of (`whole_bytes` = 0), and for 0.
std::uint64_t parse_size(std::string_view text, std::string_view option, std::uint64_t whole_bytes);

/// "512 B", "27.4 MiB", "4.00 GiB".
std::string format_size(std::uint64_t size_bytes);

}  // namespace tensorstream
