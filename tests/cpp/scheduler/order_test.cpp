#include "scheduler/order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <vector>

namespace tensorstream {
namespace {

using Ids = std::vector<GroupId>;

// Observes `passes` times `order`; how many of the uses were surprises.
int surprises_of(OrderTable& table, const Ids& order, int passes = 1) {
  int surprises = 0;
  for (int pass = 0; pass < passes; ++pass) {
    for (const GroupId group : order) surprises += table.observe(group) ? 0 : 1;
  }
  return surprises;
}

TEST(OrderTable, FollowsThePlannedCycleFromItsStart) {
  const OrderTable table({4, 2, 7});
  EXPECT_EQ(table.upcoming(5), (Ids{4, 2, 7, 4, 2}));
  EXPECT_EQ(table.upcoming(0), Ids{});
}

TEST(OrderTable, ThePlannedOrderIsNoSurprise) {
  OrderTable table({0, 1, 2, 3, 4});
  EXPECT_EQ(surprises_of(table, {0, 1, 2, 3, 4}, 3), 0);
  EXPECT_EQ(table.upcoming(3), (Ids{0, 1, 2}));
  EXPECT_EQ(table.surprises(), 0U);
}

TEST(OrderTable, TheFirstUseIsNoSurpriseWhereverItIs) {
  OrderTable table({0, 1, 2});
  EXPECT_TRUE(table.observe(2));
  EXPECT_TRUE(table.observe(0));
}

TEST(OrderTable, LearnsASurpriseAtOnce) {
  OrderTable table({0, 1, 2, 3});
  EXPECT_EQ(surprises_of(table, {0, 1, 3}), 1);
  EXPECT_EQ(surprises_of(table, {0, 1, 3}, 4), 0);
  EXPECT_EQ(table.upcoming(4), (Ids{0, 1, 3, 0}));
  EXPECT_EQ(table.surprises(), 1U);
}

TEST(OrderTable, ReversedOrderSurprisesOnceForEachStep) {
  OrderTable table({0, 1, 2, 3});
  EXPECT_EQ(surprises_of(table, {3, 2, 1, 0}), 3);
  // The way back to the start of the reversed order is the last thing to learn.
  EXPECT_EQ(surprises_of(table, {3, 2, 1, 0}), 1);
  EXPECT_EQ(surprises_of(table, {3, 2, 1, 0}, 3), 0);
}

TEST(OrderTable, EncoderOnceThenDecoderLoops) {
  OrderTable table({0, 1, 2, 3});
  EXPECT_EQ(surprises_of(table, {0, 1}), 0);
  EXPECT_EQ(surprises_of(table, {2, 3}, 10), 1);
  EXPECT_EQ(table.upcoming(4), (Ids{2, 3, 2, 3}));
  // Leaving the loop for the next prompt is one surprise, entering it again another, by two groups
  // and by eight.
  EXPECT_EQ(surprises_of(table, {0, 1}), 1);
  EXPECT_EQ(surprises_of(table, {2, 3}, 10), 2);
}

TEST(OrderTable, ALayerUsedTwiceIsToldApartByWhatCameBefore) {
  OrderTable table({0, 1, 2});
  EXPECT_EQ(surprises_of(table, {0, 1, 0, 2}), 2);
  EXPECT_EQ(surprises_of(table, {0, 1, 0, 2}), 1);
  EXPECT_EQ(surprises_of(table, {0, 1, 0, 2}, 5), 0);
  EXPECT_EQ(table.upcoming(8), (Ids{0, 1, 0, 2, 0, 1, 0, 2}));
}

TEST(OrderTable, PathsThroughASharedGroupAreToldApart) {
  OrderTable table({0, 1, 2, 3, 4});
  EXPECT_EQ(surprises_of(table, {0, 2, 3, 1, 2, 4}), 3);
  EXPECT_EQ(surprises_of(table, {0, 2, 3, 1, 2, 4}, 5), 0);
  table.observe(0);
  EXPECT_EQ(table.upcoming(6), (Ids{2, 3, 1, 2, 4, 0}));
}

TEST(OrderTable, AlternatingPathsAreToldApartByTheOneBefore) {
  OrderTable table({0, 1, 2, 3});
  EXPECT_EQ(surprises_of(table, {0, 1, 2}), 0);
  EXPECT_EQ(surprises_of(table, {0, 1, 3}), 2);
  const Ids both = {0, 1, 2, 0, 1, 3};
  EXPECT_EQ(surprises_of(table, both, 3), 2);
  EXPECT_EQ(surprises_of(table, both, 3), 0);
}

// Blocks of four parts: a forward, then, from the last block to the first, the parts again in the
// order of the forward, and each part's weights in backward's.
TEST(OrderTable, PartsThatBackwardComputesAgainAreToldApartFromTheForwards) {
  constexpr GroupId kBlocks = 5;
  constexpr GroupId kParts = 4;
  Ids forward;
  for (GroupId group = 0; group < kBlocks * kParts; ++group) forward.push_back(group);
  Ids step = forward;
  for (GroupId block = kBlocks; block-- > 0;) {
    for (GroupId part = 0; part < kParts; ++part) step.push_back(block * kParts + part);
    for (GroupId part = kParts; part-- > 0;) step.push_back(block * kParts + part);
  }
  OrderTable table(forward);
  surprises_of(table, step, 2);
  EXPECT_EQ(surprises_of(table, step, 3), 0);
  for (std::size_t use = 0; use < step.size(); ++use) {
    table.observe(step[use]);
    const bool follows = step[(use + 1) % step.size()] == step[use];
    const bool followed = step[(use + step.size() - 1) % step.size()] == step[use];
    EXPECT_EQ(table.expected_again().has_value(), follows || followed) << "use " << use;
  }
}

TEST(OrderTable, AGroupUsedManyTimesInARowChangesNothing) {
  OrderTable table({0, 1, 2});
  EXPECT_EQ(surprises_of(table, {0, 1, 1, 1, 1, 2}, 3), 0);
  table.observe(0);
  table.observe(0);
  EXPECT_EQ(table.upcoming(2), (Ids{1, 2}));
}

TEST(OrderTable, AGroupThatWasUsedAgainIsExpectedAgain) {
  OrderTable table({0, 1, 2});
  const Ids there_and_back = {0, 1, 2, 2, 1, 1, 1, 0, 0};
  surprises_of(table, there_and_back);
  const auto expected = [&](const Ids& order) {
    Ids again;
    for (const GroupId group : order) {
      table.observe(group);
      if (table.expected_again()) again.push_back(group);
    }
    return again;
  };
  EXPECT_EQ(expected(there_and_back), (Ids{2, 2, 1, 1, 1, 0, 0}))
      << "what is used again on the way back is used once on the way there";
  EXPECT_EQ(expected({1, 2, 1, 0}), (Ids{2, 1, 0})) << "expected, and not used again";
  EXPECT_EQ(expected({1, 2, 1, 0}), Ids{}) << "learnt";
  table.restart();
  EXPECT_EQ(table.expected_again(), std::nullopt);
}

TEST(OrderTable, OneGroupFollowsItself) {
  OrderTable table({9});
  EXPECT_EQ(surprises_of(table, {9, 9, 9}), 0);
  EXPECT_EQ(table.upcoming(3), (Ids{9, 9, 9}));
}

TEST(OrderTable, GroupsOutsideTheCycleAreLearnt) {
  OrderTable table({0, 1});
  table.observe(0);
  EXPECT_FALSE(table.observe(5));
  EXPECT_EQ(table.upcoming(2), Ids{}) << "nothing is known of what follows an unplanned group";
  EXPECT_TRUE(table.observe(1));
  EXPECT_EQ(surprises_of(table, {0, 5, 1}, 3), 0);
  EXPECT_EQ(table.upcoming(3), (Ids{0, 5, 1}));
}

TEST(OrderTable, AnEmptyCycleExpectsNothing) {
  OrderTable table({});
  EXPECT_EQ(table.upcoming(3), Ids{});
  EXPECT_EQ(surprises_of(table, {1, 2, 1}), 0);
  EXPECT_EQ(table.upcoming(3), (Ids{2, 1, 2}));
}

TEST(OrderTable, RestartForgetsThePlaceButNotTheOrder) {
  OrderTable table({0, 1, 2, 3});
  EXPECT_EQ(surprises_of(table, {0, 2, 0, 2}), 2);
  table.restart();
  EXPECT_EQ(table.upcoming(3), (Ids{0, 2, 0}));
  EXPECT_TRUE(table.observe(3)) << "after a restart any group may come first";
  table.restart();
  EXPECT_TRUE(table.observe(0));
  EXPECT_TRUE(table.observe(2));
  EXPECT_EQ(table.surprises(), 2U);
}

TEST(OrderTable, RestartDoesNotLearnTheStepAcrossIt) {
  OrderTable table({0, 1, 2, 3});
  table.observe(0);
  table.restart();
  table.observe(2);
  table.restart();
  table.observe(0);
  EXPECT_EQ(table.upcoming(3), (Ids{1, 2, 3}));
}

TEST(OrderTable, MemoryIsBoundedOverRandomOrders) {
  constexpr GroupId kGroups = 100;
  Ids cycle;
  for (GroupId group = 0; group < kGroups; ++group) cycle.push_back(group);
  OrderTable table(cycle);
  std::mt19937 random(7);
  std::size_t most = 0;
  bool dropped = false;
  std::size_t before = 0;
  for (int use = 0; use < 60'000; ++use) {
    table.observe(static_cast<GroupId>(random() % kGroups));
    most = std::max(most, table.learnt_pairs());
    dropped = dropped || table.learnt_pairs() < before;
    before = table.learnt_pairs();
  }
  EXPECT_EQ(most, 64U * kGroups);
  EXPECT_TRUE(dropped);
  // What is dropped is learnt again.
  surprises_of(table, cycle, 3);
  EXPECT_EQ(surprises_of(table, cycle, 3), 0);
}

}  // namespace
}  // namespace tensorstream
