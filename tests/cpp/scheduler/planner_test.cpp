#include "scheduler/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/units.h"
#include "scheduler/planned_groups.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kBlock = 1_MiB;

// The rate at which one block takes a second.
Rates block_rates(double compute_seconds) { return {static_cast<double>(kBlock), compute_seconds}; }

TEST(Planner, NothingToPlan) {
  const Plan plan = make_plan({}, 0, {});
  EXPECT_EQ(plan.arena_bytes, 0U);
  EXPECT_EQ(plan.everything_fits_bytes, 0U);
  EXPECT_EQ(plan.bound, "nothing streamed");
}

TEST(Planner, WhatCrossesTheLinkCodedTakesLess) {
  std::vector<GroupFootprint> groups = equal_groups(6, kBlock);
  const Plan raw = make_plan(groups, 2 * kBlock, block_rates(0));
  EXPECT_EQ(raw.link_bytes, raw.streamed_bytes);
  for (GroupFootprint& group : groups) group.coded_bytes = kBlock / 2;
  Plan coded = make_plan(groups, 2 * kBlock, block_rates(0));
  EXPECT_EQ(coded.streamed_bytes, raw.streamed_bytes);
  EXPECT_EQ(coded.link_bytes, raw.streamed_bytes / 2);
  EXPECT_DOUBLE_EQ(coded.predicted_seconds, raw.predicted_seconds / 2);
  for (GroupFootprint& group : groups) group.coded_bytes = kBlock / 4;
  predict_pass(groups, block_rates(0), coded);
  EXPECT_EQ(coded.link_bytes, raw.streamed_bytes / 4);
  EXPECT_DOUBLE_EQ(coded.predicted_seconds, raw.predicted_seconds / 4);
}

// Residents of a plan are streamed: all but one.
TEST(Planner, OffsetsForWhatGaveWayExposeNoLoad) {
  const std::vector<GroupFootprint> groups = equal_groups(8, kBlock);
  Plan plan = make_plan(groups, 4 * kBlock, block_rates(0));
  ASSERT_EQ(plan.exposed_loads, 0U);
  EXPECT_EQ(better_offsets(groups, block_rates(0), plan), std::nullopt);
  for (GroupPlacement& group : plan.groups) group = {Placement::kStreamed, 0};
  plan.groups[2].placement = Placement::kResident;
  const auto offsets = better_offsets(groups, block_rates(0), plan);
  ASSERT_TRUE(offsets);
  // Seven in two places: the load that has to wait has the resident's work to hide behind.
  EXPECT_EQ((*offsets)[1], (*offsets)[3]);
  std::uint64_t before = (*offsets)[1];
  for (const std::size_t i : {0U, 7U, 6U, 5U, 4U, 3U}) {
    EXPECT_LE((*offsets)[i] + kBlock, plan.arena_bytes);
    EXPECT_NE((*offsets)[i], before);
    before = (*offsets)[i];
  }
  EXPECT_EQ((*offsets)[2], 0U);
}

/// Groups of a block's sizes, a plan for them, and the same with all residents at its beginning:
/// what gives way in a pass is what it uses last.
struct Uneven {
  explicit Uneven(double compute_seconds) : rates(block_rates(compute_seconds)) {
    for (std::size_t i = 0; i < groups.size(); i += 4) groups[i].size_bytes = 4 * kBlock;
    plan = spread = make_plan(groups, 40 * kBlock, rates);
    std::size_t residents = 0;
    for (GroupPlacement& group : plan.groups) {
      if (group.placement == Placement::kResident) ++residents;
      group = {Placement::kStreamed, 0};
    }
    for (std::size_t i = 0; i < residents; ++i) plan.groups[i].placement = Placement::kResident;
    const auto offsets = better_offsets(groups, rates, plan);
    for (std::size_t i = 0; i < groups.size(); ++i) plan.groups[i].offset_bytes = (*offsets)[i];
  }

  std::vector<GroupFootprint> groups = equal_groups(24, 3 * kBlock);
  Rates rates;
  Plan spread;
  Plan plan;
};

TEST(Planner, ResidentsAreExchangedWhereThatMakesAPassShorter) {
  const Uneven balanced(70);  // a little less than the link takes for all
  EXPECT_TRUE(is_worth_exchanging(balanced.groups, balanced.rates, balanced.plan, balanced.spread));
  EXPECT_FALSE(
      is_worth_exchanging(balanced.groups, balanced.rates, balanced.spread, balanced.plan));
  EXPECT_FALSE(
      is_worth_exchanging(balanced.groups, balanced.rates, balanced.spread, balanced.spread));
  for (const double compute_seconds : {5.0, 400.0}) {  // the link is all, or hidden anyway
    Uneven other(70);
    other.rates.compute_seconds = compute_seconds;
    EXPECT_FALSE(is_worth_exchanging(other.groups, other.rates, other.plan, other.spread))
        << compute_seconds;
  }
}

TEST(Planner, ResidentsAreExchangedWhereSomePassesMakeUpForTheirLoads) {
  Uneven of(70);
  of.rates.disk_bytes_per_second = of.rates.link_bytes_per_second / 100;
  EXPECT_TRUE(is_worth_exchanging(of.groups, of.rates, of.plan, of.spread));
  for (GroupFootprint& group : of.groups) group.in_files = true;
  EXPECT_FALSE(is_worth_exchanging(of.groups, of.rates, of.plan, of.spread)) << "read once";
  for (GroupFootprint& group : of.groups) group.home = HomeState::kThere;
  EXPECT_TRUE(is_worth_exchanging(of.groups, of.rates, of.plan, of.spread));
  for (GroupFootprint& group : of.groups) {
    group.home = HomeState::kOpen;
    group.frame_bytes = 1;  // which the host decodes
  }
  of.rates.host_decode_bytes_per_second = of.rates.disk_bytes_per_second;
  EXPECT_FALSE(is_worth_exchanging(of.groups, of.rates, of.plan, of.spread)) << "decoded once";
}

TEST(Planner, EverythingFitsStreamsNothing) {
  std::vector<GroupFootprint> groups = equal_groups(6, kBlock);
  groups[0].residency = Residency::kRequired;
  groups[5].residency = Residency::kByRows;
  const std::uint64_t everything = everything_fits_bytes(groups);
  EXPECT_EQ(everything, 6 * kBlock);
  const Plan all = make_plan(groups, everything, block_rates(3));
  EXPECT_EQ(all.resident_bytes, everything);
  EXPECT_EQ(all.arena_bytes + all.streamed_bytes + all.on_demand_bytes, 0U);
  EXPECT_DOUBLE_EQ(all.predicted_seconds, 3);
  EXPECT_EQ(all.bound, "nothing streamed");
  const Plan less = make_plan(groups, everything - 4096, block_rates(3));
  EXPECT_EQ(less.groups[5].placement, Placement::kOnDemand);
  EXPECT_EQ(less.on_demand_bytes, kBlock);
  EXPECT_EQ(less.streamed_bytes, 0U) << "tables give way before what is streamed";
}

TEST(Planner, TheSmallestBudgetLoadsOneGroupAfterTheOther) {
  std::vector<GroupFootprint> groups = equal_groups(4, kBlock);
  groups[0].residency = Residency::kRequired;
  groups[2].size_bytes = 3 * kBlock;
  EXPECT_EQ(smallest_budget_bytes(groups), 4 * kBlock);
  const Plan plan = make_plan(groups, 4 * kBlock, block_rates(6));
  EXPECT_EQ(plan.arena_bytes, 3 * kBlock);
  EXPECT_EQ(plan.groups[2].placement, Placement::kStreamed);
  EXPECT_EQ(plan.smallest_budget_bytes, 4 * kBlock);
  EXPECT_EQ(plan.everything_fits_bytes, 6 * kBlock);
}

TEST(Planner, RefusesLessThanTheSmallestBudgetWithTheNumbers) {
  std::vector<GroupFootprint> groups = equal_groups(3, kBlock);
  groups[0].residency = Residency::kRequired;
  groups[1].name = "decoder.large";
  groups[1].size_bytes = 3 * kBlock;
  try {
    make_plan(groups, 4 * kBlock - 1, {});
    FAIL() << "a budget below the smallest was accepted";
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), 4 * kBlock);
    EXPECT_EQ(error.budget_bytes(), 4 * kBlock - 1);
    EXPECT_THAT(error.what(), HasSubstr("'decoder.large'"));
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(3 * kBlock) + " bytes"));
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(4 * kBlock - 1) + " bytes"));
    EXPECT_THAT(error.what(), HasSubstr("smallest budget that works for this model is 4.00 MiB (" +
                                        std::to_string(4 * kBlock) + " bytes)"));
  }
}

TEST(Planner, NamesTheResidentThatDoesNotFit) {
  std::vector<GroupFootprint> groups = equal_groups(3, kBlock);
  for (GroupFootprint& group : groups) group.residency = Residency::kRequired;
  groups[1].name = "embeddings";
  try {
    make_plan(groups, kBlock + 1, {});
    FAIL() << "residents beyond the budget were accepted";
  } catch (const BudgetError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'embeddings'"));
    EXPECT_EQ(error.needed_bytes(), 3 * kBlock);
  }
}

TEST(Planner, RefusesImpossibleSizesAndRates) {
  std::vector<GroupFootprint> groups = equal_groups(2, kBlock);
  EXPECT_THROW(make_plan(groups, kBlock, {0, 0}), ConfigError);
  EXPECT_THROW(make_plan(groups, kBlock, {-1, 0}), ConfigError);
  EXPECT_THROW(make_plan(groups, kBlock, {1, -1}), ConfigError);
  EXPECT_THROW(make_plan(groups, kBlock, {std::numeric_limits<double>::quiet_NaN(), 0}),
               ConfigError);
  groups[0].size_bytes = groups[1].size_bytes = std::uint64_t{3} << 62U;
  EXPECT_THROW(make_plan(groups, kBlock, {}), ConfigError);
  groups[0].size_bytes = std::numeric_limits<std::uint64_t>::max();
  EXPECT_THROW(smallest_budget_bytes(groups), ConfigError);
}

TEST(Planner, SizesCountAsMultiplesOfTheAlignment) {
  std::vector<GroupFootprint> groups = equal_groups(3, 1000);
  EXPECT_EQ(everything_fits_bytes(groups), 3 * kGroupAlignment);
  EXPECT_EQ(smallest_budget_bytes(groups), kGroupAlignment);
  EXPECT_GT(make_plan(groups, 3 * kGroupAlignment - 1, {}).streamed_bytes, 0U);
}

TEST(Planner, EmptyGroupsAreResident) {
  std::vector<GroupFootprint> groups = equal_groups(4, kBlock);
  groups[1].size_bytes = 0;
  const Plan plan = make_plan(groups, kBlock, {});
  EXPECT_EQ(plan.groups[1].placement, Placement::kResident);
  EXPECT_EQ(plan.exposed_loads, 3U);
}

TEST(Planner, TablesStayOnDemandWhileAnythingIsStreamed) {
  std::vector<GroupFootprint> groups = equal_groups(8, kBlock);
  groups[0].residency = Residency::kByRows;
  groups[0].size_bytes = 4096;
  const Plan plan = make_plan(groups, 4 * kBlock, {});
  EXPECT_GT(plan.streamed_bytes, 0U);
  EXPECT_GE(plan.budget_bytes - plan.resident_bytes - plan.arena_bytes, 4096U);
  EXPECT_EQ(plan.groups[0].placement, Placement::kOnDemand);
  EXPECT_EQ(plan.on_demand_bytes, 4096U);
}

TEST(Planner, EvenBlocksKeepAllButTwoPlacesForResidents) {
  const Plan plan = make_plan(equal_groups(12, kBlock), 8 * kBlock, block_rates(12));
  EXPECT_EQ(plan.exposed_loads, 0U);
  EXPECT_EQ(plan.resident_bytes, 6 * kBlock);
  EXPECT_EQ(plan.arena_bytes, 2 * kBlock);
  EXPECT_DOUBLE_EQ(plan.predicted_seconds, 12);
  EXPECT_EQ(plan.bound, "compute");
  // Every second block is streamed, so link and compute are busy all the time.
  for (std::size_t i = 0; i < 12; ++i) {
    EXPECT_NE(plan.groups[i].placement, plan.groups[(i + 1) % 12].placement) << i;
  }
}

TEST(Planner, OddBlocksOverTwoPlacesDoNotExposeTheWrapAround) {
  // Three places' worth of room: one resident leaves an even number of streamed blocks.
  const Plan plan = make_plan(equal_groups(13, kBlock), 3 * kBlock, block_rates(13));
  EXPECT_EQ(plan.exposed_loads, 0U);
  EXPECT_DOUBLE_EQ(plan.predicted_seconds, 13);
}

TEST(Planner, OneBlockShortHalvesTheTrafficInOnePlace) {
  // Without exposed loads four blocks have to be streamed; two, far from each other, are hidden by
  // the compute of the residents between.
  const Plan plan = make_plan(equal_groups(32, kBlock), 31 * kBlock, block_rates(1));
  EXPECT_EQ(plan.streamed_bytes, 2 * kBlock);
  EXPECT_EQ(plan.exposed_loads, 2U);
  EXPECT_NEAR(plan.predicted_seconds, 2 + 2.0 / 32, 1e-9);
  EXPECT_EQ(plan.bound, "link");
}

TEST(Planner, AMuchLargerGroupIsResidentWhereThatSavesTraffic) {
  std::vector<GroupFootprint> groups = equal_groups(11, kBlock);
  groups[4].size_bytes = 10 * kBlock;
  const Plan plan = make_plan(groups, 13 * kBlock, {});
  EXPECT_EQ(plan.groups[4].placement, Placement::kResident);
  EXPECT_EQ(plan.exposed_loads, 0U);
  EXPECT_LE(plan.streamed_bytes, 10 * kBlock);
}

TEST(Planner, AMuchLargerGroupThatCannotStayIsStreamedBesideItsNeighbours) {
  std::vector<GroupFootprint> groups = equal_groups(11, kBlock);
  groups[4].size_bytes = 10 * kBlock;
  groups[0].residency = Residency::kRequired;
  const Plan plan = make_plan(groups, 12 * kBlock, block_rates(20));
  EXPECT_EQ(plan.groups[4].placement, Placement::kStreamed);
  EXPECT_EQ(plan.exposed_loads, 0U);
  EXPECT_EQ(plan.arena_bytes, 11 * kBlock);
}

TEST(Planner, SmallGroupsAreNotStreamedBesideLargeOnes) {
  std::vector<GroupFootprint> groups = equal_groups(12, 64 * kBlock);
  for (std::size_t i = 0; i < 12; i += 3) groups[i].size_bytes = 64_KiB;
  const Plan plan = make_plan(groups, 5 * 64 * kBlock, {});
  for (std::size_t i = 0; i < 12; i += 3) {
    EXPECT_EQ(plan.groups[i].placement, Placement::kResident) << i;
  }
}

/// What gives way goes into the arena, beside the group before it where both fit.
TEST(PlannerSpares, ResidentsHaveAPlaceInTheArena) {
  for (std::uint64_t room = 2; room <= 9; ++room) {
    const std::vector<GroupFootprint> groups = equal_groups(10, kBlock);
    const Plan plan = make_plan(groups, room * kBlock, {});
    EXPECT_EQ(plan.spare_arena_bytes, plan.arena_bytes);
    for (std::size_t i = 0; i < 10; ++i) {
      EXPECT_LE(plan.groups[i].offset_bytes + kBlock, plan.spare_arena_bytes) << i;
      EXPECT_EQ(plan.groups[i].offset_bytes % kGroupAlignment, 0U);
      if (i == 0 || plan.groups[i].placement != Placement::kResident) continue;
      if (plan.spare_arena_bytes < 2 * kBlock) continue;
      EXPECT_NE(plan.groups[i].offset_bytes, plan.groups[i - 1].offset_bytes) << i;
    }
  }
}

TEST(PlannerSpares, WhereNothingIsStreamedTheArenaFitsTheLargest) {
  std::vector<GroupFootprint> groups = equal_groups(5, kBlock);
  groups[2].size_bytes = 3 * kBlock;
  const Plan plan = make_plan(groups, 100 * kBlock, {});
  EXPECT_EQ(plan.arena_bytes, 0U);
  EXPECT_EQ(plan.spare_arena_bytes, 3 * kBlock);
}

}  // namespace
}  // namespace tensorstream
