// Cutting elements and putting them together, compiled into each set of kernels. Private to codec.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "codec/tile_kernels.h"

namespace tensorstream {

/// The way to cut an element of a type as wide as `Unit`; ElementLayout says how.
template <typename UnitType, std::uint32_t kSymbolBits>
struct TileSplit {
  using Unit = UnitType;
  static constexpr std::uint32_t kKeptBits = 8 * sizeof(Unit) - kSymbolBits;
  static constexpr std::uint32_t kBytePlanes = kKeptBits / 8;
  static constexpr std::uint32_t kBitPlanes = kKeptBits % 8;

  // Inlined always: a copy outside its caller could need instructions that others do not have.
  [[gnu::always_inline]] static void split(const std::byte* __restrict elements,
                                           std::byte* __restrict byte_planes, std::size_t stride,
                                           TileValues& __restrict values) noexcept {
    for (std::uint32_t i = 0; i < kTileElements; ++i) {
      Unit unit;
      std::memcpy(&unit, elements + i * sizeof(Unit), sizeof(Unit));
      unit = std::rotl(unit, 1);
      values.symbols[i] = static_cast<std::uint8_t>(unit >> kKeptBits);
      for (std::uint32_t plane = 0; plane < kBytePlanes; ++plane) {
        byte_planes[plane * stride + i] = static_cast<std::byte>(unit >> (8 * plane));
      }
      if constexpr (kBitPlanes != 0) {
        values.bits[i] =
            static_cast<std::uint8_t>((unit >> (8 * kBytePlanes)) & ((1U << kBitPlanes) - 1));
      }
    }
  }

  [[gnu::always_inline]] static void merge(const std::byte* __restrict byte_planes,
                                           std::size_t stride, const TileValues& __restrict values,
                                           std::byte* __restrict elements) noexcept {
    for (std::uint32_t i = 0; i < kTileElements; ++i) {
      std::uint32_t bits = std::uint32_t{values.symbols[i]} << kKeptBits;
      for (std::uint32_t plane = 0; plane < kBytePlanes; ++plane) {
        bits |= static_cast<std::uint32_t>(byte_planes[plane * stride + i]) << (8 * plane);
      }
      if constexpr (kBitPlanes != 0) bits |= std::uint32_t{values.bits[i]} << (8 * kBytePlanes);
      const Unit unit = std::rotr(static_cast<Unit>(bits), 1);
      std::memcpy(elements + i * sizeof(Unit), &unit, sizeof(Unit));
    }
  }
};

using Bf16Split = TileSplit<std::uint16_t, 8>;
using F16Split = TileSplit<std::uint16_t, 5>;
using F32Split = TileSplit<std::uint32_t, 8>;
using F8E4M3Split = TileSplit<std::uint8_t, 4>;
using F8E5M2Split = TileSplit<std::uint8_t, 5>;

[[gnu::always_inline]] inline void split_tile(ElementKind kind, const std::byte* elements,
                                              std::byte* byte_planes, std::size_t stride,
                                              TileValues& values) noexcept {
  switch (kind) {
    case ElementKind::kBf16:
      return Bf16Split::split(elements, byte_planes, stride, values);
    case ElementKind::kF16:
      return F16Split::split(elements, byte_planes, stride, values);
    case ElementKind::kF32:
      return F32Split::split(elements, byte_planes, stride, values);
    case ElementKind::kF8E4M3:
      return F8E4M3Split::split(elements, byte_planes, stride, values);
    case ElementKind::kF8E5M2:
      return F8E5M2Split::split(elements, byte_planes, stride, values);
  }
}

[[gnu::always_inline]] inline void merge_tile(ElementKind kind, const std::byte* byte_planes,
                                              std::size_t stride, const TileValues& values,
                                              std::byte* elements) noexcept {
  switch (kind) {
    case ElementKind::kBf16:
      return Bf16Split::merge(byte_planes, stride, values, elements);
    case ElementKind::kF16:
      return F16Split::merge(byte_planes, stride, values, elements);
    case ElementKind::kF32:
      return F32Split::merge(byte_planes, stride, values, elements);
    case ElementKind::kF8E4M3:
      return F8E4M3Split::merge(byte_planes, stride, values, elements);
    case ElementKind::kF8E5M2:
      return F8E5M2Split::merge(byte_planes, stride, values, elements);
  }
}

}  // namespace tensorstream
