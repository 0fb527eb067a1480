#include "scheduler/pass_time.h"

#include <gtest/gtest.h>

#include <vector>

namespace tensorstream {
namespace {

using Steps = std::vector<PassStep>;

// Ten blocks of 10 bytes on a link of 10 bytes a second: a load takes a second.
constexpr double kLink = 10;

Steps blocks(int count, std::uint32_t sharing_distance) {
  return Steps(static_cast<std::size_t>(count), PassStep{10, true, sharing_distance});
}

TEST(PassSeconds, OnePlaceAddsLoadAndCompute) {
  EXPECT_DOUBLE_EQ(pass_seconds(blocks(10, 1), {kLink, 5}), 15);
}

TEST(PassSeconds, TwoPlacesOverlapThem) {
  EXPECT_DOUBLE_EQ(pass_seconds(blocks(10, 2), {kLink, 5}), 10);
  EXPECT_DOUBLE_EQ(pass_seconds(blocks(10, 2), {kLink, 40}), 40);
}

TEST(PassSeconds, ResidentsComputeWhileTheLinkWorks) {
  Steps steps(10, PassStep{10, false, 0});
  EXPECT_DOUBLE_EQ(pass_seconds(steps, {kLink, 20}), 20);
  // One place, and work of residents between its two users: both loads are hidden.
  steps[0] = steps[5] = PassStep{10, true, 1};
  EXPECT_DOUBLE_EQ(pass_seconds(steps, {kLink, 20}), 20);
  // Next to each other, the second waits for the first's use, then for its load.
  steps[5] = PassStep{10, false, 0};
  steps[1] = PassStep{10, true, 1};
  EXPECT_DOUBLE_EQ(pass_seconds(steps, {kLink, 20}), 21);
}

TEST(PassSeconds, OneExposedPairOfAnOddCycleCostsOneUse) {
  Steps steps = blocks(5, 2);
  steps[0].sharing_distance = 1;
  EXPECT_DOUBLE_EQ(pass_seconds(steps, {kLink, 2.5}), 5.5);
}

TEST(PassSeconds, ComputeIsSharedByBytes) {
  // The large group computes for 9 of 10 seconds, and its load takes 9.
  const Steps steps{{90, true, 1}, {10, false, 0}};
  EXPECT_DOUBLE_EQ(pass_seconds(steps, {kLink, 10}), 18);
}

TEST(PassSeconds, ALoadTakesWhatItMovesAndComputesWithAllOfIt) {
  Steps steps = blocks(10, 1);
  for (PassStep& step : steps) step.coded_bytes = 5;
  EXPECT_DOUBLE_EQ(pass_seconds(steps, {kLink, 5}), 10);
}

TEST(PassSeconds, NothingTakesNoTime) {
  EXPECT_DOUBLE_EQ(pass_seconds(Steps{}, {kLink, 0}), 0);
  EXPECT_DOUBLE_EQ(pass_seconds(blocks(4, 1), {kLink, 0}), 4);
}

}  // namespace
}  // namespace tensorstream
