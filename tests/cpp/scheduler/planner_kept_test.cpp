// Plans in which groups stay on the device coded.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/units.h"
#include "made_bytes/rounds.h"
#include "scheduler/pass_time.h"
#include "scheduler/planned_groups.h"
#include "scheduler/planner.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using Groups = std::vector<GroupFootprint>;

std::uint64_t placed(const GroupFootprint& group) {
  return align_up(group.size_bytes, kGroupAlignment);
}

/// Blocks of a 7B model in bf16, which takes 0.669 of its bytes coded.
Groups blocks_of_7b() {
  Groups groups = equal_groups(32, 404'766'720);
  for (GroupFootprint& group : groups) {
    group.coded_bytes = group.size_bytes / 1000 * 669;
    group.kept_bytes = *group.coded_bytes;
  }
  return groups;
}

Groups never_kept(Groups groups) {
  for (GroupFootprint& group : groups) group.kept_bytes = 0;
  return groups;
}

std::int64_t count(const Plan& plan, Placement placement) {
  return std::ranges::count(plan.groups, placement, &GroupPlacement::placement);
}

/// Percents of what all groups take.
std::uint64_t share_of(const Groups& groups, std::uint64_t percent) {
  return everything_fits_bytes(groups) / 100 * percent;
}

const Rates kPcie5{48e9, 0.008};

TEST(PlannerKept, AtFourFifthsNothingHasToCrossTheLink) {
  const Groups groups = blocks_of_7b();
  const Plan plan = make_plan(groups, share_of(groups, 80), kPcie5);
  EXPECT_EQ(plan.streamed_bytes, 0U);
  EXPECT_EQ(plan.link_bytes, 0U);
  EXPECT_GT(count(plan, Placement::kResidentCoded), 20);
  EXPECT_GT(count(plan, Placement::kResident), 0) << "what is left is for residents";
  const double decoding = static_cast<double>(plan.kept_weights_bytes) / 1.5e12 +
                          50e-6 * static_cast<double>(count(plan, Placement::kResidentCoded));
  const double late = 2 * Rates().lease_seconds;  // of the first, at most
  EXPECT_NEAR(plan.predicted_seconds, 0.008 + decoding, late);
  EXPECT_EQ(plan.bound, decoding > 0.008 ? "decode" : "compute");
  EXPECT_LT(plan.predicted_seconds,
            0.4 * make_plan(never_kept(groups), share_of(groups, 80), kPcie5).predicted_seconds);
}

TEST(PlannerKept, AtHalfFewerBytesCrossTheLink) {
  const Groups groups = blocks_of_7b();
  const Plan plan = make_plan(groups, share_of(groups, 50), kPcie5);
  const Plan without = make_plan(never_kept(groups), share_of(groups, 50), kPcie5);
  EXPECT_GT(count(plan, Placement::kResidentCoded), 10);
  EXPECT_GT(plan.streamed_bytes, 0U);
  EXPECT_LT(plan.predicted_seconds, 0.8 * without.predicted_seconds);
  EXPECT_EQ(plan.bound, "link");
  EXPECT_EQ(plan.exposed_loads, 0U);
  EXPECT_EQ(without.kept_bytes, 0U);
}

TEST(PlannerKept, WhereDecodingIsSlowNothingIsKept) {
  const Groups groups = blocks_of_7b();
  for (const std::uint64_t percent : {25U, 50U, 75U}) {
    const Plan plan = make_plan(groups, share_of(groups, percent), {48e9, 0.008, 10e9});
    EXPECT_EQ(plan.kept_bytes, 0U) << percent;
  }
}

/// A pass that computes for longer than the link needs waits for no load, but for each decoding.
TEST(PlannerKept, WhereComputeIsTheBoundResidentsAreAsTheyAre) {
  const Groups groups = blocks_of_7b();
  for (const std::uint64_t percent : {25U, 50U, 75U}) {
    const Plan plan = make_plan(groups, share_of(groups, percent), {48e9, 1.0});
    EXPECT_EQ(plan.kept_bytes, 0U) << percent;
    EXPECT_EQ(plan.bound, "compute");
  }
}

TEST(PlannerKept, WhereTheHostTakesLongestItIsTheBound) {
  const Groups groups = blocks_of_7b();
  Rates rates = kPcie5;
  rates.host_seconds = 0.023;
  const Plan plan = make_plan(groups, share_of(groups, 80), rates);
  EXPECT_EQ(plan.bound, "host");
  EXPECT_GT(plan.predicted_seconds, 0.023);
  EXPECT_LT(plan.predicted_seconds, 0.023 + 2 * 32 * rates.lease_seconds);
  const Plan all = make_plan(groups, everything_fits_bytes(groups), rates);
  EXPECT_DOUBLE_EQ(all.predicted_seconds, 0.023);
  const Plan half = make_plan(groups, share_of(groups, 50), rates);
  EXPECT_EQ(half.bound, "link");
  EXPECT_NEAR(half.predicted_seconds, static_cast<double>(half.link_bytes) / 48e9, 0.002);
}

TEST(PlannerKept, TimesOfTheHostHaveToBeTimes) {
  for (const double seconds : {-1.0, std::numeric_limits<double>::infinity()}) {
    Rates rates = kPcie5;
    rates.host_seconds = seconds;
    EXPECT_THROW(make_plan(blocks_of_7b(), 1_GiB, rates), ConfigError);
    rates = kPcie5;
    rates.lease_seconds = seconds;
    EXPECT_THROW(make_plan(blocks_of_7b(), 1_GiB, rates), ConfigError);
    rates = kPcie5;
    rates.lend_seconds = seconds;
    EXPECT_THROW(make_plan(blocks_of_7b(), 1_GiB, rates), ConfigError);
  }
}

TEST(PlannerKept, MoreBudgetIsNeverMuchSlower) {
  const Groups groups = blocks_of_7b();
  double best = 1e9;
  for (std::uint64_t percent = 8; percent <= 100; ++percent) {
    const Plan plan = make_plan(groups, share_of(groups, percent), kPcie5);
    EXPECT_LT(plan.predicted_seconds, 1.2 * best) << percent;
    best = std::min(best, plan.predicted_seconds);
  }
}

TEST(PlannerKept, RatesOfDecodingHaveToBePositive) {
  for (const double rate : {0.0, -1.0}) {
    EXPECT_THROW(make_plan(blocks_of_7b(), 1_GiB, {1e9, 0, rate}), ConfigError);
  }
}

struct Case {
  Groups groups;
  std::uint64_t budget = 0;
  Rates rates;
};

Case random_case(std::mt19937& random) {
  Case made;
  const std::size_t count = 1 + random() % 40;
  const bool alike = random() % 2 == 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto dice = random() % 12;
    GroupFootprint group{"group." + std::to_string(i), alike ? 2_MiB : 1 + random() % 6_MiB,
                         dice == 0   ? Residency::kRequired
                         : dice == 1 ? Residency::kByRows
                                     : Residency::kAny};
    if (dice > 3) {
      group.coded_bytes = group.size_bytes * (50 + random() % 60) / 100;  // more, now and then
      group.kept_bytes = dice > 4 ? *group.coded_bytes + random() % 64_KiB : 0;
    }
    made.groups.push_back(group);
  }
  const std::uint64_t smallest = smallest_budget_bytes(made.groups);
  made.budget = smallest + random() % (everything_fits_bytes(made.groups) - smallest + 2_MiB);
  made.rates = {1e9, static_cast<double>(random() % 3) * 0.02, random() % 4 == 0 ? 3e9 : 1e11};
  return made;
}

/// Of groups that are in the arena: kept and streamed ones never share bytes, and all is inside.
void expect_places(const Case& made, const Plan& plan) {
  std::uint64_t streamed_end = 0;
  std::uint64_t kept_begin = plan.arena_bytes;
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < made.groups.size(); ++i) {
    const GroupPlacement& group = plan.groups[i];
    const std::uint64_t group_end = group.offset_bytes + placed(made.groups[i]);
    if (group.placement == Placement::kStreamed) streamed_end = std::max(streamed_end, group_end);
    if (group.placement == Placement::kResidentCoded) {
      kept_begin = std::min(kept_begin, group.offset_bytes);
    } else if (group.placement != Placement::kStreamed) {
      continue;
    }
    EXPECT_EQ(group.offset_bytes % kGroupAlignment, 0U);
    end = std::max(end, group_end);
  }
  EXPECT_EQ(end, plan.arena_bytes);
  EXPECT_LE(streamed_end, kept_begin);
}

TEST(PlannerKept, PropertiesHoldForRandomGroupsAndBudgets) {
  std::mt19937 random(11);
  int kept = 0;
  for (int round = 0; round < rounds(2000); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const Case made = random_case(random);
    const Plan plan = make_plan(made.groups, made.budget, made.rates);
    std::uint64_t resident_bytes = 0;
    std::uint64_t kept_bytes = 0;
    for (std::size_t i = 0; i < made.groups.size(); ++i) {
      const GroupFootprint& group = made.groups[i];
      const bool stays_coded = plan.groups[i].placement == Placement::kResidentCoded;
      if (plan.groups[i].placement == Placement::kResident) resident_bytes += placed(group);
      kept_bytes += plan.groups[i].kept_bytes;
      EXPECT_EQ(plan.groups[i].kept_bytes != 0, stays_coded);
      if (!stays_coded) continue;
      EXPECT_TRUE(group.kept_bytes != 0 && group.residency == Residency::kAny);
      EXPECT_GE(plan.groups[i].kept_bytes, group.kept_bytes);
      EXPECT_LT(plan.groups[i].kept_bytes, placed(group));
    }
    EXPECT_EQ(plan.resident_bytes, resident_bytes);
    EXPECT_EQ(plan.kept_bytes, kept_bytes);
    EXPECT_LE(plan.resident_bytes + plan.kept_bytes + plan.arena_bytes, made.budget);
    if (plan.kept_bytes != 0) expect_places(made, plan);
    kept += plan.kept_bytes != 0 ? 1 : 0;
    const double link = static_cast<double>(plan.link_bytes) / made.rates.link_bytes_per_second;
    EXPECT_GE(plan.predicted_seconds, std::max(link, made.rates.compute_seconds) * (1 - 1e-9));
    const Plan again = make_plan(made.groups, made.budget, made.rates);
    EXPECT_EQ(again.predicted_seconds, plan.predicted_seconds);
    EXPECT_EQ(make_plan(never_kept(made.groups), made.budget, made.rates).kept_bytes, 0U);
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(kept, rounds(150));
}

}  // namespace
}  // namespace tensorstream
