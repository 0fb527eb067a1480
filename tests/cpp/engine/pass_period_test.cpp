#include "engine/pass_period.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace tensorstream {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kGroups = 4;

HostTime::Counted counted(std::uint64_t acquires, std::uint64_t moved_bytes) {
  return {.acquires = acquires, .moved_bytes = moved_bytes};
}

TEST(PassPeriod, IsFromTheBeginningOfAPassToThatOfTheNext) {
  PassPeriod period;
  const Clock::time_point start{};
  EXPECT_FALSE(period.last());
  period.begin(start, counted(10, 100), kGroups);
  EXPECT_FALSE(period.last());
  period.begin(start + milliseconds(250), counted(14, 350), kGroups);
  ASSERT_TRUE(period.last());
  EXPECT_DOUBLE_EQ(period.last()->seconds, 0.25);
  EXPECT_EQ(period.last()->moved_bytes, 250U);
  period.begin(start + milliseconds(350), counted(19, 350), kGroups);
  ASSERT_TRUE(period.last());
  EXPECT_DOUBLE_EQ(period.last()->seconds, 0.1);
  EXPECT_EQ(period.last()->moved_bytes, 0U);
}

/// As of one model of a pipeline, which says nothing of the others.
TEST(PassPeriod, OfAPartOfTheGroupsIsNone) {
  PassPeriod period;
  const Clock::time_point start{};
  period.begin(start, counted(0, 0), kGroups);
  period.begin(start + milliseconds(1), counted(4, 9), kGroups);
  ASSERT_TRUE(period.last());
  period.begin(start + milliseconds(2), counted(7, 9), kGroups);
  EXPECT_FALSE(period.last());
}

}  // namespace
}  // namespace tensorstream
