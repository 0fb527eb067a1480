#include "codec/element_layout.h"

#include <array>

namespace tensorstream {
namespace {

constexpr std::array kLayouts = {
    ElementLayout{ElementKind::kBf16, 2, 8},   ElementLayout{ElementKind::kF16, 2, 5},
    ElementLayout{ElementKind::kF32, 4, 8},    ElementLayout{ElementKind::kF8E4M3, 1, 4},
    ElementLayout{ElementKind::kF8E5M2, 1, 5},
};

constexpr ElementLayout layout(ElementKind kind) {
  return kLayouts[static_cast<std::size_t>(kind)];
}

}  // namespace

std::optional<ElementLayout> layout_of(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::kBf16:
      return layout(ElementKind::kBf16);
    case Dtype::kF16:
      return layout(ElementKind::kF16);
    case Dtype::kF32:
      return layout(ElementKind::kF32);
    case Dtype::kF8E4M3:
    case Dtype::kF8E4M3Fnuz:
      return layout(ElementKind::kF8E4M3);
    case Dtype::kF8E5M2:
    case Dtype::kF8E5M2Fnuz:
      return layout(ElementKind::kF8E5M2);
    default:
      return std::nullopt;
  }
}

std::optional<ElementLayout> layout_with(std::uint8_t element_bytes,
                                         std::uint8_t symbol_bits) noexcept {
  for (const ElementLayout& candidate : kLayouts) {
    if (candidate.element_bytes == element_bytes && candidate.symbol_bits == symbol_bits) {
      return candidate;
    }
  }
  return std::nullopt;
}

}  // namespace tensorstream
