#include "platform/page_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstdint>

#include "base/units.h"
#include "made_bytes/weights.h"
#include "platform/dropped_pages.h"
#include "platform/file.h"
#include "platform/temporary_folder.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kPageBytes = 4_KiB;

/// A file of which nothing is in the page cache, where the file system lets its pages go.
class PageCache : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!drop_from_page_cache(file_, 0, kSize)) {
      GTEST_SKIP() << "this file system keeps its pages";
    }
  }

  static constexpr std::uint64_t kSize = 9_MiB + 5;
  const TemporaryFolder folder_;
  const File file_ = File::open_for_reading(folder_.write("a.bin", patterned_bytes(kSize)));
};

TEST_F(PageCache, AllOfARangeIsBrought) {
  read_into_page_cache(file_, 3_MiB + 7, 4_MiB);
  for (std::uint64_t page = 3_MiB; page < 7_MiB + 7; page += kPageBytes) {
    EXPECT_TRUE(ends_in_page_cache(file_, page, 1)) << page;
  }
}

TEST_F(PageCache, AWholeFileIsBroughtAlsoWhereMoreIsAskedFor) {
  read_into_page_cache(file_, 0, kSize + 3_MiB);
  for (std::uint64_t page = 0; page < kSize; page += kPageBytes) {
    EXPECT_TRUE(ends_in_page_cache(file_, page, 1)) << page;
  }
}

TEST_F(PageCache, BothEndsOfARangeCount) {
  ASSERT_EQ(::posix_fadvise(file_.descriptor(), 0, 0, POSIX_FADV_RANDOM), 0);  // no read-ahead
  std::byte byte{};
  ASSERT_EQ(::pread(file_.descriptor(), &byte, 1, 0), 1);
  EXPECT_TRUE(ends_in_page_cache(file_, 0, 1));
  EXPECT_FALSE(ends_in_page_cache(file_, 0, kSize));
  EXPECT_FALSE(ends_in_page_cache(file_, 5_MiB, kSize - 5_MiB));
}

TEST_F(PageCache, BytesAreCounted) {
  EXPECT_LE(bytes_in_page_cache(file_, 0, kSize), 128_KiB);  // what SetUp() has looked at
  EXPECT_FALSE(mostly_in_page_cache(file_, 0, kSize));
  read_into_page_cache(file_, 2_MiB, 4_MiB);
  EXPECT_EQ(bytes_in_page_cache(file_, 2_MiB, 4_MiB), 4_MiB);
  EXPECT_EQ(bytes_in_page_cache(file_, 3_MiB + 5, 1_MiB), 1_MiB);
  EXPECT_TRUE(mostly_in_page_cache(file_, 3_MiB + 5, 1_MiB));
  const std::uint64_t there = bytes_in_page_cache(file_, 0, kSize);
  EXPECT_GE(there, 4_MiB);  // the kernel may have read on
  EXPECT_LT(there, kSize);
  read_into_page_cache(file_, 0, kSize);
  EXPECT_EQ(bytes_in_page_cache(file_, 0, kSize), kSize);
  EXPECT_EQ(bytes_in_page_cache(file_, 0, 5 * kSize), kSize);
}

TEST_F(PageCache, ASixteenthMayBeMissing) {
  read_into_page_cache(file_, 0, kSize);
  ASSERT_TRUE(drop_from_page_cache(file_, 6_MiB, 2_MiB));
  ASSERT_EQ(bytes_in_page_cache(file_, 0, 8_MiB), 6_MiB);
  EXPECT_FALSE(mostly_in_page_cache(file_, 0, 8_MiB));
  EXPECT_TRUE(mostly_in_page_cache(file_, 0, 6_MiB + 300_KiB));
  EXPECT_FALSE(mostly_in_page_cache(file_, 6_MiB, 300_KiB));
}

TEST_F(PageCache, SamplesTellAllFromNothing) {
  EXPECT_EQ(sampled_in_page_cache(file_, 0, kSize), 0U);
  EXPECT_LE(bytes_in_page_cache(file_, 0, kSize), 4 * 128_KiB);  // what they missed
  read_into_page_cache(file_, 0, kSize);
  EXPECT_EQ(sampled_in_page_cache(file_, 0, kSize), kSize);
  EXPECT_EQ(sampled_in_page_cache(file_, kSize - 1, 1), 1U);
  EXPECT_EQ(sampled_in_page_cache(file_, 0, 0), 0U);
}

TEST_F(PageCache, NothingBehindTheEndIsAnError) {
  read_into_page_cache(file_, kSize, 1_MiB);
  read_into_page_cache(file_, 5 * kSize, 1_MiB);
  read_into_page_cache(file_, 0, 0);
  EXPECT_TRUE(ends_in_page_cache(file_, kSize, 0));
  EXPECT_FALSE(ends_in_page_cache(file_, kSize, 1));
  EXPECT_EQ(bytes_in_page_cache(file_, kSize, 1), 0U);
  EXPECT_EQ(bytes_in_page_cache(file_, 5 * kSize, 1), 0U);
  EXPECT_EQ(bytes_in_page_cache(file_, 0, 0), 0U);
}

/// Touching such pages would be a fatal signal.
TEST_F(PageCache, AFileThatWasTruncatedIsNoError) {
  ASSERT_EQ(::truncate(file_.path().c_str(), 3_MiB + 1), 0);
  read_into_page_cache(file_, 0, kSize);
  EXPECT_TRUE(ends_in_page_cache(file_, 0, 3_MiB));
}

}  // namespace
}  // namespace tensorstream
