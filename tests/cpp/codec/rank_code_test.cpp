#include "codec/rank_code.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "codec/compression_level.h"
#include "codec/tile_kernels.h"

namespace tensorstream {
namespace {

using ::testing::ElementsAre;

constexpr LevelWidths kShallow{2, {2, 1}};
constexpr LevelWidths kDeep{3, {2, 2, 3}};

TEST(RankCode, SymbolsAreRankedByTheirCounts) {
  SymbolCounts counts{};
  counts[9] = 5;
  counts[3] = 50;
  counts[200] = 7;
  counts[4] = 7;
  const RankCode code = best_code(counts, 8, std::array{kShallow});
  // Equals in the order of their values.
  EXPECT_THAT(std::span(code.symbols).first(4), ElementsAre(3, 4, 200, 9));
  const auto ranks = ranks_of(code);
  EXPECT_EQ(ranks[200], 2);
  EXPECT_EQ(ranks[9], 3);
  EXPECT_EQ(ranks[77], 4);
}

TEST(RankCode, TheCheaperWidthsAreTaken) {
  SymbolCounts few{};
  for (const std::size_t symbol : {1U, 2U, 3U, 4U}) few[symbol] = 100;
  EXPECT_EQ(best_code(few, 8, std::array{kDeep, kShallow}).widths.count, 2U);
  SymbolCounts many{};
  for (std::size_t symbol = 0; symbol < 13; ++symbol) many[symbol] = 100;
  EXPECT_EQ(best_code(many, 8, std::array{kShallow, kDeep}).widths.count, 3U);
}

TEST(RankCode, ShortSymbolsAreRankedAlone) {
  const RankCode code = best_code({}, 4, CompressionLevel(9).widths());
  for (const std::uint8_t symbol : code.symbols) EXPECT_LT(symbol, 16);
}

TEST(RankCode, EveryLevelsWidthsKeepTheLimits) {
  for (std::uint32_t level = 1; level <= 9; ++level) {
    for (const LevelWidths& widths : CompressionLevel(level).widths()) {
      EXPECT_LE(widths.count, kMostLevels);
      EXPECT_EQ(widths.bits[0], kFirstWidth);
      EXPECT_LE(widths.ranked_symbols(), kMostRankedSymbols);
      std::uint32_t lower = 0;
      for (std::uint32_t i = 1; i < widths.count; ++i) lower += widths.bits[i];
      EXPECT_LE(lower, kMostLowerPlanes);
    }
  }
}

TEST(BitWriter, BitsAreReadBackFromAnyPlace) {
  std::array<std::byte, 64> plane{};
  BitWriter writer;
  writer.begin(plane.data());
  std::uint32_t end = 0;
  for (std::uint32_t count = 0; count <= 20; ++count) {
    writer.append((1U << count) - 1, count);
    writer.append(0, 1);
    end += count + 1;
  }
  writer.end();
  std::uint32_t at = 0;
  for (std::uint32_t count = 0; count <= 20; ++count) {
    EXPECT_EQ(read_bits(plane.data(), at, count + 1), (1U << count) - 1) << count;
    at += count + 1;
  }
  EXPECT_EQ(at, end);
  writer.begin(plane.data());
  writer.append(5, 3);
  writer.append(~std::uint64_t{0}, 64);
  writer.append(0x123456789abcdef0, 64);
  writer.end();
  EXPECT_EQ(read_bits(plane.data(), 3, 64), ~std::uint64_t{0});
  EXPECT_EQ(read_bits(plane.data(), 67, 64), 0x123456789abcdef0U);
}

}  // namespace
}  // namespace tensorstream
