#include "made_bytes/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "made_bytes/quick_random.h"

namespace tensorstream {

FloatFormat format_of(Dtype dtype) {
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

std::uint32_t round_to(double value, FloatFormat format) {
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const int exponent = std::max(value == 0 ? 1 - bias : std::ilogb(value), 1 - bias);
  auto steps = static_cast<std::uint32_t>(
      std::nearbyint(std::ldexp(std::abs(value), format.mantissa_bits - exponent)));
  // A subnormal has no leading one; what rounds up carries into the exponent by itself.
  steps += static_cast<std::uint32_t>(exponent + bias - 1) << format.mantissa_bits;
  const std::uint32_t sign = std::signbit(value) ? 1 : 0;
  return steps | (sign << (format.exponent_bits + format.mantissa_bits));
}

namespace {

std::byte* put(std::byte* out, std::uint32_t bits, std::uint32_t element_bytes) {
  for (std::uint32_t i = 0; i < element_bytes; ++i)
    *out++ = static_cast<std::byte>(bits >> (8 * i));
  return out;
}

}  // namespace

void append_element(Bytes& bytes, std::uint32_t bits, std::uint32_t element_bytes) {
  bytes.resize(bytes.size() + element_bytes);
  put(bytes.data() + bytes.size() - element_bytes, bits, element_bytes);
}

Bytes gaussian_weights(Dtype dtype, std::size_t count, double sigma, std::uint64_t seed) {
  const std::uint32_t element_bytes = dtype_bits(dtype) / 8;
  const FloatFormat format = format_of(dtype);
  QuickGaussian normal(seed, sigma);
  Bytes bytes(count * element_bytes);
  std::byte* out = bytes.data();
  for (std::size_t i = 0; i < count; ++i) out = put(out, round_to(normal(), format), element_bytes);
  return bytes;
}

Bytes random_bytes(std::size_t size_bytes, std::uint64_t seed) {
  QuickRandom random(seed);
  Bytes bytes(size_bytes);
  std::byte* const out = bytes.data();
  for (std::size_t i = 0; i < size_bytes; ++i) out[i] = static_cast<std::byte>(random() >> 56U);
  return bytes;
}

Bytes random_bytes(std::size_t size_bytes, std::mt19937_64& random) {
  return random_bytes(size_bytes, random());
}

Bytes patterned_bytes(std::size_t size_bytes) {
  Bytes bytes(size_bytes);
  std::byte* const out = bytes.data();
  for (std::size_t i = 0; i < size_bytes; ++i) {
    out[i] = static_cast<std::byte>((i * 31 + i / 4096 * 7 + i / 65521) & 0xFFU);
  }
  return bytes;
}

Bytes repeated(std::span<const std::uint32_t> elements, std::uint32_t element_bytes,
               std::size_t count) {
  Bytes bytes(count * element_bytes);
  std::byte* out = bytes.data();
  for (std::size_t i = 0; i < count; ++i) {
    out = put(out, elements[i % elements.size()], element_bytes);
  }
  return bytes;
}

bool same_bytes(std::span<const std::byte> left, std::span<const std::byte> right) {
  return left.size() == right.size() &&
         (left.empty() || std::memcmp(left.data(), right.data(), left.size()) == 0);
}

}  // namespace tensorstream
