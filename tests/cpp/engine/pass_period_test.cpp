#include "engine/pass_period.h"

#include <gtest/gtest.h>

#include <chrono>

namespace tensorstream {
namespace {

using std::chrono::milliseconds;

TEST(PassPeriod, IsFromTheBeginningOfAPassToThatOfTheNext) {
  PassPeriod period;
  const Clock::time_point start{};
  EXPECT_FALSE(period.last());
  period.begin(start, 100);
  EXPECT_FALSE(period.last());
  period.begin(start + milliseconds(250), 350);
  ASSERT_TRUE(period.last());
  EXPECT_DOUBLE_EQ(period.last()->seconds, 0.25);
  EXPECT_EQ(period.last()->moved_bytes, 250U);
  period.begin(start + milliseconds(350), 350);
  EXPECT_DOUBLE_EQ(period.last()->seconds, 0.1);
  EXPECT_EQ(period.last()->moved_bytes, 0U);
}

}  // namespace
}  // namespace tensorstream
