#include "codec/rank_code.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace tensorstream {
namespace {

constexpr std::uint64_t kLiteralBits = 8;

/// Bits that the symbols of `ordered`, the commonest first, take together.
std::uint64_t cost_bits(const SymbolCounts& counts, std::span<const std::uint8_t> ordered,
                        const LevelWidths& widths) {
  std::uint64_t left = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  std::uint64_t bits = 0;
  std::size_t rank = 0;
  for (std::uint32_t level = 0; level < widths.count; ++level) {
    bits += left * widths.bits[level];
    for (std::uint32_t code = 1; code < (1U << widths.bits[level]); ++code) {
      if (rank < ordered.size()) left -= counts[ordered[rank++]];
    }
  }
  return bits + left * kLiteralBits;
}

}  // namespace

RankCode best_code(const SymbolCounts& counts, std::uint32_t symbol_bits,
                   std::span<const LevelWidths> choices) {
  std::array<std::uint8_t, 256> symbols{};
  std::iota(symbols.begin(), symbols.end(), std::uint8_t{0});
  const std::span<std::uint8_t> ordered = std::span(symbols).first(std::size_t{1} << symbol_bits);
  std::ranges::stable_sort(ordered, [&](auto a, auto b) { return counts[a] > counts[b]; });

  RankCode code;
  std::uint64_t least = std::numeric_limits<std::uint64_t>::max();
  for (const LevelWidths& widths : choices) {
    const std::uint64_t bits = cost_bits(counts, ordered, widths);
    if (bits >= least) continue;
    least = bits;
    code.widths = widths;
  }
  std::copy_n(ordered.begin(), code.widths.ranked_symbols(), code.symbols.begin());
  return code;
}

std::array<std::uint8_t, 256> ranks_of(const RankCode& code) noexcept {
  std::array<std::uint8_t, 256> ranks{};
  const std::uint32_t ranked = code.widths.ranked_symbols();
  ranks.fill(static_cast<std::uint8_t>(ranked));
  for (std::uint32_t rank = 0; rank < ranked; ++rank) {
    ranks[code.symbols[rank]] = static_cast<std::uint8_t>(rank);
  }
  return ranks;
}

}  // namespace tensorstream
