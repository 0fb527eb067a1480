// Weights to encode: Gaussian ones in each type, and bytes of any kind.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "tensorstream/dtype.h"

namespace tensorstream {

using Bytes = std::vector<std::byte>;

/// The widths of a floating-point type's fields.
struct FloatFormat {
  int exponent_bits;
  int mantissa_bits;
};

inline FloatFormat format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBf16:
      return {8, 7};
    case Dtype::kF16:
      return {5, 10};
    case Dtype::kF32:
      return {8, 23};
    case Dtype::kF8E4M3:
      return {4, 3};
    default:
      return {5, 2};
  }
}

/// The bits of the number of a format that is nearest to a finite `value` within its range.
inline std::uint32_t round_to(double value, FloatFormat format) {
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const int exponent = std::max(value == 0 ? 1 - bias : std::ilogb(value), 1 - bias);
  auto steps = static_cast<std::uint32_t>(
      std::nearbyint(std::ldexp(std::abs(value), format.mantissa_bits - exponent)));
  // A subnormal has no leading one; what rounds up carries into the exponent by itself.
  steps += static_cast<std::uint32_t>(exponent + bias - 1) << format.mantissa_bits;
  const std::uint32_t sign = std::signbit(value) ? 1 : 0;
  return steps | (sign << (format.exponent_bits + format.mantissa_bits));
}

inline void append_element(Bytes& bytes, std::uint32_t bits, std::uint32_t element_bytes) {
  for (std::uint32_t i = 0; i < element_bytes; ++i) {
    bytes.push_back(static_cast<std::byte>(bits >> (8 * i)));
  }
}

inline Bytes gaussian_weights(Dtype dtype, std::size_t count, double sigma,
                              std::uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, sigma);
  Bytes bytes;
  bytes.reserve(count * dtype_bits(dtype) / 8);
  for (std::size_t i = 0; i < count; ++i) {
    append_element(bytes, round_to(normal(random), format_of(dtype)), dtype_bits(dtype) / 8);
  }
  return bytes;
}

inline Bytes random_bytes(std::size_t size_bytes, std::uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  Bytes bytes(size_bytes);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// `count` elements of the given bits, over and over.
inline Bytes repeated(std::span<const std::uint32_t> elements, std::uint32_t element_bytes,
                      std::size_t count) {
  Bytes bytes;
  for (std::size_t i = 0; i < count; ++i) {
    append_element(bytes, elements[i % elements.size()], element_bytes);
  }
  return bytes;
}

}  // namespace tensorstream
