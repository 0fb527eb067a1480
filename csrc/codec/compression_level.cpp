#include "codec/compression_level.h"

#include <array>
#include <string>

#include "codec/element_layout.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::uint32_t kHighest = 9;

// From the shallowest: of equals the first is taken. docs/adr/0007-ranks-in-levels.md has the bits.
constexpr std::array kWidths = {
    LevelWidths{3, {2, 2, 3}},       LevelWidths{4, {2, 1, 2, 3}},
    LevelWidths{4, {2, 2, 2, 3}},    LevelWidths{5, {2, 1, 1, 2, 3}},
    LevelWidths{5, {2, 2, 2, 2, 2}}, LevelWidths{6, {2, 1, 1, 1, 2, 3}},
};
constexpr std::size_t kFastestWidths = 1;
constexpr std::size_t kBalancedWidths = 3;

}  // namespace

CompressionLevel::CompressionLevel(std::uint32_t number) : number_(number) {
  if (number > kHighest) {
    throw ConfigError("compression level " + std::to_string(number) + " does not exist; 0 to " +
                      std::to_string(kHighest) + " do");
  }
}

std::span<const LevelWidths> CompressionLevel::widths() const noexcept {
  const std::span<const LevelWidths> all = kWidths;
  if (number_ >= kSmallest) return all;
  return all.first(number_ >= kBalanced ? kBalancedWidths : kFastestWidths);
}

std::uint32_t CompressionLevel::tiles_a_sample() const noexcept {
  return number_ >= kSmallest ? 1 : 8;
}

double usual_ratio(Dtype dtype) noexcept {
  const std::optional<ElementLayout> layout = layout_of(dtype);
  if (!layout) return 1;
  switch (layout->kind) {
    case ElementKind::kBf16:
      return 0.669;
    case ElementKind::kF16:
      return 0.855;
    case ElementKind::kF32:
      return 0.835;
    case ElementKind::kF8E4M3:
      return 0.83;
    case ElementKind::kF8E5M2:
      return 0.71;
  }
  return 1;
}

}  // namespace tensorstream
