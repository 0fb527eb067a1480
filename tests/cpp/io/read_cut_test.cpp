#include "io/read_cut.h"

#include <gtest/gtest.h>

#include <random>

#include "base/units.h"
#include "platform/disk_file.h"
#include "platform/mapping.h"

namespace tensorstream {
namespace {

class ReadCut : public ::testing::Test {
 protected:
  std::vector<ReadPiece> cut(const CutRules& rules, std::uint64_t offset, std::uint64_t size,
                             std::uint64_t shift) const {
    return cut_read(rules, offset, {memory_.data() + shift, size});
  }

  const Mapping memory_ = Mapping::anonymous(16_MiB);
};

TEST_F(ReadCut, PiecesAreWholeBlocksWithinARequestAndFillTheTargetInOrder) {
  std::mt19937_64 random(1);
  const auto any = [&](std::uint64_t most) {
    return std::uniform_int_distribution<std::uint64_t>(0, most)(random);
  };
  for (int i = 0; i < 5000; ++i) {
    const CutRules rules{std::uint64_t{1} << any(12), std::uint64_t{1} << any(12),
                         64_KiB << any(5)};
    const std::uint64_t offset = any(10'000);
    const std::uint64_t size = any(i % 2 == 0 ? 9_MiB : 10'000);
    const std::uint64_t shift = any(3) == 0 ? offset % 4096 : any(5000);
    const std::byte* next = memory_.data() + shift;
    std::uint64_t at = offset;
    for (const ReadPiece& piece : cut(rules, offset, size, shift)) {
      ASSERT_EQ(piece.offset_bytes % rules.block_bytes, 0U);
      ASSERT_EQ(piece.size_bytes % rules.block_bytes, 0U);
      ASSERT_LE(piece.size_bytes, rules.request_bytes);
      ASSERT_EQ(piece.offset_bytes + piece.skip_bytes, at);
      ASSERT_LE(piece.skip_bytes + piece.out.size(), piece.size_bytes);
      ASSERT_EQ(piece.out.data(), next);
      ASSERT_FALSE(piece.out.empty());
      if (piece.in_place) {
        ASSERT_EQ(piece.skip_bytes, 0U);
        ASSERT_EQ(piece.out.size(), piece.size_bytes);
        ASSERT_EQ(reinterpret_cast<std::uintptr_t>(next) % rules.memory_alignment_bytes, 0U);
      }
      at += piece.out.size();
      next += piece.out.size();
    }
    ASSERT_EQ(at, offset + size);
  }
}

TEST_F(ReadCut, WhereTheTargetLiesAsTheFileDoesAllButTheEdgesGoesThereByItself) {
  const auto pieces = cut({512, 512, 1_MiB}, 1000, 4_MiB, 1000);
  ASSERT_EQ(pieces.size(), 6U);
  EXPECT_FALSE(pieces.front().in_place);
  EXPECT_EQ(pieces.front().size_bytes, 512U);
  EXPECT_FALSE(pieces.back().in_place);
  EXPECT_EQ(pieces.back().size_bytes, 512U);
  for (std::size_t i = 1; i + 1 < pieces.size(); ++i) EXPECT_TRUE(pieces[i].in_place);
}

TEST_F(ReadCut, WhereItDoesNotNothingDoes) {
  const auto pieces = cut({512, 512, 1_MiB}, 1000, 4_MiB, 0);
  ASSERT_EQ(pieces.size(), 5U);
  for (const ReadPiece& piece : pieces) EXPECT_FALSE(piece.in_place);
}

TEST_F(ReadCut, WhereAnyOffsetWillDoAllPiecesButTheFirstBeginAtAPage) {
  const auto pieces = cut({1, 1, 1_MiB}, 1000, 4_MiB, 3);
  ASSERT_EQ(pieces.size(), 5U);
  for (const ReadPiece& piece : pieces) EXPECT_TRUE(piece.in_place);
  for (std::size_t i = 1; i < pieces.size(); ++i) EXPECT_EQ(pieces[i].offset_bytes, i * 1_MiB);
}

TEST_F(ReadCut, SmallReadsAreOneTransferWithTheirEdges) {
  const auto pieces = cut({512, 512, 1_MiB}, 1000, 100'000, 1000);
  ASSERT_EQ(pieces.size(), 1U);
  EXPECT_EQ(pieces[0].offset_bytes, 512U);
  EXPECT_EQ(pieces[0].skip_bytes, 488U);
}

TEST(NeededAlignment, IsNoMoreThanWhatWasSeenToBeTaken) {
  for (const std::uint64_t named : {1U, 4U, 512U, 4096U}) EXPECT_EQ(needed_alignment(named), named);
  for (const std::uint64_t named : {8_KiB, 128_KiB, 16_MiB}) {  // records of ZFS
    EXPECT_EQ(needed_alignment(named), 4096U);
  }
  EXPECT_EQ(needed_alignment(1536), 4096U);
}

}  // namespace
}  // namespace tensorstream
