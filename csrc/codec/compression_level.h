// What a compression level trades.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "codec/rank_code.h"
#include "tensorstream/dtype.h"

namespace tensorstream {

/// 0 (none) to 9. Three ways to code are behind 1 to 9, so that 1 to 3, 4 to 6 and 7 to 9 are
/// equal.
class CompressionLevel {
 public:
  /// Raises ConfigError for a number that is no level.
  explicit CompressionLevel(std::uint32_t number);

  static constexpr std::uint32_t kNone = 0;
  static constexpr std::uint32_t kFastest = 1;
  static constexpr std::uint32_t kBalanced = 4;
  static constexpr std::uint32_t kSmallest = 7;

  std::uint32_t number() const noexcept { return number_; }
  bool stores_raw() const noexcept { return number_ == kNone; }
  /// The widths that each frame's code is chosen from.
  std::span<const LevelWidths> widths() const noexcept;
  /// Of how many tiles one is counted before the choice.
  std::uint32_t tiles_a_sample() const noexcept;

 private:
  std::uint32_t number_;
};

/// What Gaussian weights of the type take of their bytes at kFastest; 1 for a type that is stored
/// as it is. docs/adr/0007-ranks-in-levels.md has the measurements.
double usual_ratio(Dtype dtype) noexcept;

}  // namespace tensorstream
