// The code of a frame's symbols: ranks in levels of fixed widths.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace tensorstream {

inline constexpr std::uint32_t kMostLevels = 7;
inline constexpr std::uint32_t kMostRankedSymbols = 16;
/// Planes of all levels but the first together: what widths of 1 to 3 come to within the limits.
inline constexpr std::uint32_t kMostLowerPlanes = 9;
inline constexpr std::uint32_t kMostWidth = 3;
inline constexpr std::uint32_t kFirstWidth = 2;

/// The widths of a code's levels in bits, from the first. A level of width w names 2^w - 1 symbols;
/// its last code says that the symbol is named by the next level, or, after the last, by a byte.
struct LevelWidths {
  std::uint32_t count = 0;
  std::array<std::uint8_t, kMostLevels> bits{};

  constexpr std::uint32_t ranked_symbols() const {
    std::uint32_t symbols = 0;
    for (std::uint32_t level = 0; level < count; ++level) symbols += (1U << bits[level]) - 1;
    return symbols;
  }
};

/// Widths and the symbols in the order of their ranks. All symbols differ.
struct RankCode {
  LevelWidths widths;
  std::array<std::uint8_t, kMostRankedSymbols> symbols{};
};

/// How often each symbol occurs, exactly or in a sample.
using SymbolCounts = std::array<std::uint32_t, 256>;

/// The code of the fewest bits for `counts`, of symbols below 2^`symbol_bits`, among those with
/// `choices` for widths; the first of equals.
RankCode best_code(const SymbolCounts& counts, std::uint32_t symbol_bits,
                   std::span<const LevelWidths> choices);

/// The rank of each symbol; the number of ranked symbols for those without one.
std::array<std::uint8_t, 256> ranks_of(const RankCode& code) noexcept;

}  // namespace tensorstream
