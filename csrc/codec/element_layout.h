// How the elements of a type are cut into a symbol that is coded and bits that are kept.
#pragma once

#include <cstdint>
#include <optional>

#include "tensorstream/dtype.h"

namespace tensorstream {

/// The ways to cut an element. Types whose exponents have as many bits share one.
enum class ElementKind : std::uint8_t { kBf16, kF16, kF32, kF8E4M3, kF8E5M2 };

/// An element is rotated left by one bit, so that its sign is lowest and its exponent highest. The
/// highest `symbol_bits` are the symbol; of the rest, the lowest bytes are byte planes, and what is
/// left above them are bit planes.
struct ElementLayout {
  ElementKind kind;
  std::uint8_t element_bytes;
  std::uint8_t symbol_bits;

  constexpr std::uint32_t kept_bits() const { return 8U * element_bytes - symbol_bits; }
  constexpr std::uint32_t byte_planes() const { return kept_bits() / 8; }
  constexpr std::uint32_t bit_planes() const { return kept_bits() % 8; }
};

/// The layout of a type; nothing for one that is stored as it is.
std::optional<ElementLayout> layout_of(Dtype dtype) noexcept;

/// The layout that a frame's header names; nothing where there is none.
std::optional<ElementLayout> layout_with(std::uint8_t element_bytes,
                                         std::uint8_t symbol_bits) noexcept;

}  // namespace tensorstream
