#include "memory/page_toucher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>

#include "platform/mapping.h"

namespace tensorstream {
namespace {

using ::testing::Each;

class PageToucherTest : public ::testing::TestWithParam<unsigned> {
 protected:
  static constexpr std::uint64_t kPages = 64;

  std::span<std::byte> bytes() const { return {mapping_.data(), mapping_.size_bytes()}; }
  /// Of the first pages so many, whether each is present.
  std::vector<unsigned char> present(std::uint64_t pages) const {
    std::vector<unsigned char> found(pages);
    EXPECT_EQ(::mincore(mapping_.data(), pages * page_size_bytes(), found.data()), 0);
    for (unsigned char& page : found) page &= 1U;
    return found;
  }

  const std::uint64_t page_ = page_size_bytes();
  const Mapping mapping_ = Mapping::anonymous(kPages * page_, HugePages::kNever);
};

TEST_P(PageToucherTest, WhatIsWaitedForIsPresentAndZero) {
  EXPECT_THAT(present(kPages), Each(0));
  PageToucher toucher(bytes(), {.chunk_bytes = page_, .most_threads = GetParam()});
  toucher.wait_for(0);
  toucher.wait_for(1);
  EXPECT_THAT(present(1), Each(1));
  toucher.wait_for(20 * page_);
  EXPECT_THAT(present(20), Each(1));
  toucher.wait_for(~0ULL);
  EXPECT_THAT(present(kPages), Each(1));
  EXPECT_TRUE(std::ranges::all_of(bytes(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_P(PageToucherTest, ChunksOfSeveralPagesAndATail) {
  PageToucher toucher(bytes(), {.chunk_bytes = 7 * page_, .most_threads = GetParam()});
  toucher.wait_for(kPages * page_);
  EXPECT_THAT(present(kPages), Each(1));
}

TEST_P(PageToucherTest, WhatWasWaitedForMayBeWrittenWhileTheRestIsTouched) {
  PageToucher toucher(bytes(), {.chunk_bytes = page_, .most_threads = GetParam()});
  for (std::uint64_t page = 0; page < kPages; ++page) {
    toucher.wait_for((page + 1) * page_);
    std::ranges::fill(bytes().subspan(page * page_, page_), std::byte{9});
  }
  EXPECT_TRUE(std::ranges::all_of(bytes(), [](std::byte b) { return b == std::byte{9}; }));
}

TEST_P(PageToucherTest, MayGoBeforeAllIsTouched) {
  for (int round = 0; round < 20; ++round) {
    PageToucher toucher(bytes(), {.chunk_bytes = page_, .most_threads = GetParam()});
    toucher.wait_for(page_);
  }
  PageToucher nothing({}, {.most_threads = GetParam()});
  nothing.wait_for(1);
}

INSTANTIATE_TEST_SUITE_P(Threads, PageToucherTest, ::testing::Values(0U, 1U, 2U, 5U, 100U));

}  // namespace
}  // namespace tensorstream
