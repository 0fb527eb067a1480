// Bytes for tests: Gaussian weights of each type, random and patterned ones. Compiled by itself,
// optimised: making and comparing them is most of what many tests do.
#pragma once

#include <cstddef>
#include <cstdint>
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

FloatFormat format_of(Dtype dtype);

/// The bits of the number of a format that is nearest to a finite `value` within its range.
std::uint32_t round_to(double value, FloatFormat format);

void append_element(Bytes& bytes, std::uint32_t bits, std::uint32_t element_bytes);

Bytes gaussian_weights(Dtype dtype, std::size_t count, double sigma, std::uint64_t seed = 1);

Bytes random_bytes(std::size_t size_bytes, std::uint64_t seed = 1);
Bytes random_bytes(std::size_t size_bytes, std::mt19937_64& random);

/// Bytes that differ from their neighbours, and at each page from those of the page before.
Bytes patterned_bytes(std::size_t size_bytes);

/// `count` elements of the given bits, over and over.
Bytes repeated(std::span<const std::uint32_t> elements, std::uint32_t element_bytes,
               std::size_t count);

bool same_bytes(std::span<const std::byte> left, std::span<const std::byte> right);

}  // namespace tensorstream
