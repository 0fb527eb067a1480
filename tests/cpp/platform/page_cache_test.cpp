#include "platform/page_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>

#include "base/units.h"
#include "platform/file.h"
#include "platform/temporary_folder.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kPageBytes = 4_KiB;

/// A file of which nothing is in the page cache, where the file system lets its pages go.
class PageCache : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::fsync(file_.descriptor()), 0);
    ASSERT_EQ(::posix_fadvise(file_.descriptor(), 0, 0, POSIX_FADV_DONTNEED), 0);
    if (ends_in_page_cache(file_, 0, 1)) GTEST_SKIP() << "this file system keeps its pages";
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

TEST_F(PageCache, NothingBehindTheEndIsAnError) {
  read_into_page_cache(file_, kSize, 1_MiB);
  read_into_page_cache(file_, 5 * kSize, 1_MiB);
  read_into_page_cache(file_, 0, 0);
  EXPECT_TRUE(ends_in_page_cache(file_, kSize, 0));
  EXPECT_FALSE(ends_in_page_cache(file_, kSize, 1));
}

/// Touching such pages would be a fatal signal.
TEST_F(PageCache, AFileThatWasTruncatedIsNoError) {
  ASSERT_EQ(::truncate(file_.path().c_str(), 3_MiB + 1), 0);
  read_into_page_cache(file_, 0, kSize);
  EXPECT_TRUE(ends_in_page_cache(file_, 0, 3_MiB));
}

}  // namespace
}  // namespace tensorstream
