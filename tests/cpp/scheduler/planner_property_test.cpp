#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/units.h"
#include "made_bytes/rounds.h"
#include "scheduler/arena_layout.h"
#include "scheduler/pass_time.h"
#include "scheduler/planned_groups.h"
#include "scheduler/planner.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

struct Case {
  std::vector<GroupFootprint> groups;
  std::uint64_t budget = 0;
  Rates rates;
};

std::uint64_t placed(const GroupFootprint& group) {
  return align_up(group.size_bytes, kGroupAlignment);
}

std::uint64_t random_size(std::mt19937& random, std::uint32_t kind) {
  if (kind == 0) return 1_MiB;
  if (kind == 1) return 1 + random() % 4_MiB;
  if (kind == 2) return random() % 8 == 0 ? 10_MiB : 1_MiB;
  return (1 + random() % 3) * 1_MiB + random() % 512;
}

Case random_case(std::mt19937& random) {
  Case made;
  const std::uint32_t kind = static_cast<std::uint32_t>(random() % 4);
  const std::size_t count = 1 + random() % 40;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t dice = static_cast<std::uint32_t>(random() % 10);
    const Residency residency = dice == 0   ? Residency::kRequired
                                : dice == 1 ? Residency::kByRows
                                            : Residency::kAny;
    made.groups.push_back({"group." + std::to_string(i), random_size(random, kind), residency});
  }
  const std::uint64_t smallest = smallest_budget_bytes(made.groups);
  const std::uint64_t all = everything_fits_bytes(made.groups);
  made.budget = smallest + random() % (all - smallest + 2_MiB);
  made.rates = {1e6, static_cast<double>(random() % 4) * 1e-6 * static_cast<double>(all)};
  return made;
}

std::vector<std::size_t> streamed_groups(const Plan& plan) {
  std::vector<std::size_t> streamed;
  for (std::size_t i = 0; i < plan.groups.size(); ++i) {
    if (plan.groups[i].placement == Placement::kStreamed) streamed.push_back(i);
  }
  return streamed;
}

void expect_sums(const Case& made, const Plan& plan) {
  std::uint64_t resident = 0;
  std::uint64_t streamed = 0;
  std::uint64_t on_demand = 0;
  for (std::size_t i = 0; i < made.groups.size(); ++i) {
    const GroupFootprint& group = made.groups[i];
    switch (plan.groups[i].placement) {
      case Placement::kResident:
        resident += placed(group);
        break;
      case Placement::kStreamed:
        EXPECT_EQ(group.residency, Residency::kAny);
        streamed += group.size_bytes;
        break;
      case Placement::kResidentCoded:
        ADD_FAILURE() << "no group may stay coded";
        break;
      case Placement::kOnDemand:
        EXPECT_EQ(group.residency, Residency::kByRows);
        on_demand += group.size_bytes;
        break;
    }
  }
  EXPECT_EQ(plan.resident_bytes, resident);
  EXPECT_EQ(plan.streamed_bytes, streamed);
  EXPECT_EQ(plan.on_demand_bytes, on_demand);
  EXPECT_EQ(plan.budget_bytes, made.budget);
  EXPECT_LE(plan.resident_bytes + plan.arena_bytes, made.budget);
}

void expect_places(const Case& made, const Plan& plan) {
  const std::vector<std::size_t> streamed = streamed_groups(plan);
  EXPECT_NE(streamed.size(), 1U) << "a single streamed group could have stayed";
  std::uint64_t end = 0;
  std::uint32_t exposed = 0;
  for (std::size_t at = 0; at < streamed.size(); ++at) {
    const std::uint64_t begin = plan.groups[streamed[at]].offset_bytes;
    const std::uint64_t size = placed(made.groups[streamed[at]]);
    EXPECT_EQ(begin % kGroupAlignment, 0U);
    end = std::max(end, begin + size);
    const std::size_t next = streamed[(at + 1) % streamed.size()];
    const std::uint64_t next_begin = plan.groups[next].offset_bytes;
    exposed += begin < next_begin + placed(made.groups[next]) && next_begin < begin + size ? 1 : 0;
  }
  EXPECT_EQ(plan.arena_bytes, end);
  EXPECT_EQ(plan.exposed_loads, exposed);
}

// Time of a pass with the groups at `streamed` in `layout`, by the model of time.
double seconds_with(const Case& made, const std::vector<std::size_t>& streamed,
                    const ArenaLayout& layout, const Rates& rates) {
  std::vector<std::uint64_t> sizes;
  for (const std::size_t i : streamed) sizes.push_back(placed(made.groups[i]));
  const std::vector<std::uint32_t> distances = sharing_distances(sizes, layout.offsets);
  std::vector<PassStep> steps;
  for (std::size_t i = 0; i < made.groups.size(); ++i) {
    if (made.groups[i].residency == Residency::kByRows) continue;
    const auto at = std::find(streamed.begin(), streamed.end(), i);
    PassStep step{placed(made.groups[i]), at != streamed.end(), 0};
    if (step.streamed) {
      step.sharing_distance = distances[static_cast<std::size_t>(at - streamed.begin())];
    }
    steps.push_back(step);
  }
  return pass_seconds(steps, rates);
}

// A streamed group that would fit beside everything stays streamed only where without it loads
// would be exposed, or passes be slower once compute keeps up.
void expect_residents_maximal(const Case& made, const Plan& plan) {
  const std::vector<std::size_t> streamed = streamed_groups(plan);
  const std::uint64_t left = made.budget - plan.resident_bytes - plan.arena_bytes;
  double all_bytes = 0;
  for (const GroupFootprint& group : made.groups) {
    if (group.residency != Residency::kByRows) all_bytes += static_cast<double>(placed(group));
  }
  Rates balanced = made.rates;
  balanced.compute_seconds =
      std::max(balanced.compute_seconds, all_bytes / balanced.link_bytes_per_second);
  ArenaLayout planned;
  for (const std::size_t i : streamed) planned.offsets.push_back(plan.groups[i].offset_bytes);
  for (const std::size_t fits : streamed) {
    const std::uint64_t size = placed(made.groups[fits]);
    if (size > left) continue;
    std::vector<std::size_t> rest;
    std::vector<std::uint64_t> sizes;
    for (const std::size_t i : streamed) {
      if (i == fits) continue;
      rest.push_back(i);
      sizes.push_back(placed(made.groups[i]));
    }
    const ArenaLayout layout = two_ended_layout(sizes, made.budget - plan.resident_bytes - size);
    if (layout.exposed_pairs > plan.exposed_loads) continue;
    EXPECT_GT(seconds_with(made, rest, layout, balanced),
              seconds_with(made, streamed, planned, balanced))
        << made.groups[fits].name << " of " << size << " bytes fits in " << left;
  }
}

bool same(const Plan& a, const Plan& b) {
  if (a.groups.size() != b.groups.size()) return false;
  for (std::size_t i = 0; i < a.groups.size(); ++i) {
    if (a.groups[i].placement != b.groups[i].placement) return false;
    if (a.groups[i].offset_bytes != b.groups[i].offset_bytes) return false;
  }
  return std::bit_cast<std::uint64_t>(a.predicted_seconds) ==
         std::bit_cast<std::uint64_t>(b.predicted_seconds);
}

TEST(PlannerProperties, HoldForRandomGroupsAndBudgets) {
  std::mt19937 random(2024);
  for (int round = 0; round < rounds(2000); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const Case made = random_case(random);
    const Plan plan = make_plan(made.groups, made.budget, made.rates);
    expect_sums(made, plan);
    expect_places(made, plan);
    expect_residents_maximal(made, plan);
    EXPECT_TRUE(same(plan, make_plan(made.groups, made.budget, made.rates)));
    const double link = static_cast<double>(plan.streamed_bytes) / made.rates.link_bytes_per_second;
    EXPECT_GE(plan.predicted_seconds, std::max(link, made.rates.compute_seconds) * (1 - 1e-9));
    EXPECT_LE(plan.predicted_seconds, (link + made.rates.compute_seconds) * (1 + 1e-9));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(PlannerProperties, LoadedAtUseGroupsShareOnePlaceAndNothingIsLeftForAnother) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    Case made = random_case(random);
    made.rates.loading = Loading::kAtUse;
    const Plan plan = make_plan(made.groups, made.budget, made.rates);
    expect_sums(made, plan);
    EXPECT_EQ(plan.exposed_loads, 0U);
    std::uint64_t largest = 0;
    std::uint64_t smallest = made.budget;
    for (const std::size_t group : streamed_groups(plan)) {
      EXPECT_EQ(plan.groups[group].offset_bytes, 0U);
      largest = std::max(largest, placed(made.groups[group]));
      smallest = std::min(smallest, placed(made.groups[group]));
    }
    EXPECT_EQ(plan.arena_bytes, largest);
    if (plan.streamed_bytes > 0) {
      EXPECT_GT(plan.resident_bytes + plan.arena_bytes + smallest, made.budget);
    }
    made.rates.loading = Loading::kAhead;
    const Plan ahead = make_plan(made.groups, made.budget, made.rates);
    EXPECT_LE(plan.streamed_bytes, ahead.streamed_bytes + largest);
  }
}

TEST(PlannerProperties, TheSmallestBudgetWorksAndOneByteLessDoesNot) {
  std::mt19937 random(5);
  for (int round = 0; round < 500; ++round) {
    const Case made = random_case(random);
    const std::uint64_t smallest = smallest_budget_bytes(made.groups);
    const Plan plan = make_plan(made.groups, smallest, made.rates);
    EXPECT_EQ(plan.smallest_budget_bytes, smallest);
    EXPECT_LE(plan.resident_bytes + plan.arena_bytes, smallest);
    if (smallest == 0) continue;
    EXPECT_THROW(make_plan(made.groups, smallest - 1, made.rates), BudgetError);
  }
}

TEST(PlannerProperties, EverythingFitsAndOnePageLessDoesNot) {
  std::mt19937 random(6);
  for (int round = 0; round < 500; ++round) {
    const Case made = random_case(random);
    const std::uint64_t everything = everything_fits_bytes(made.groups);
    const Plan all = make_plan(made.groups, everything, made.rates);
    EXPECT_EQ(all.streamed_bytes + all.on_demand_bytes + all.arena_bytes, 0U);
    EXPECT_EQ(all.resident_bytes, everything);
    if (everything - 4096 < smallest_budget_bytes(made.groups)) continue;
    const Plan less = make_plan(made.groups, everything - 4096, made.rates);
    EXPECT_GT(less.streamed_bytes + less.on_demand_bytes, 0U);
  }
}

// A larger budget may pay for loads that are not exposed any more with the traffic of two groups:
// an even number of streamed groups, and a place beside each.
TEST(PlannerProperties, MoreBudgetStreamsNoMoreThanTwoGroupsMore) {
  std::mt19937 random(8);
  for (int round = 0; round < 150; ++round) {
    const Case made = random_case(random);
    const std::uint64_t smallest = smallest_budget_bytes(made.groups);
    const std::uint64_t all = everything_fits_bytes(made.groups);
    std::uint64_t largest = 0;
    for (const GroupFootprint& group : made.groups) {
      if (group.residency == Residency::kAny) largest = std::max(largest, placed(group));
    }
    Plan least = make_plan(made.groups, smallest, made.rates);
    for (std::uint64_t step = 1; step <= 24; ++step) {
      const Plan plan = make_plan(made.groups, smallest + (all - smallest) * step / 24, made.rates);
      ASSERT_LE(plan.streamed_bytes, least.streamed_bytes + 2 * largest)
          << "round " << round << ", step " << step;
      if (plan.streamed_bytes < least.streamed_bytes) least = plan;
    }
  }
}

// Blocks that are resident, and places of the arena, for equal blocks; the planner's other choices
// follow from them.
std::uint64_t fewest_streamed_unexposed(std::uint64_t blocks, std::uint64_t held) {
  for (std::uint64_t streamed = 1; streamed <= blocks; ++streamed) {
    const std::uint64_t places = streamed % 2 == 0 ? 2 : 3;
    if (blocks - streamed + std::min(places, streamed) <= held) return streamed;
  }
  return blocks + 1;
}

TEST(PlannerProperties, EqualBlocksAreExposedOnlyWhereItPays) {
  for (const std::uint64_t blocks : {5U, 6U, 7U, 12U, 13U}) {
    for (std::uint64_t step = 0; step < 12; ++step) {
      const std::uint64_t budget = kGroupAlignment * (256 + (blocks - 1) * 256 * step / 12);
      SCOPED_TRACE(std::to_string(blocks) + " blocks, budget of " +
                   std::to_string(budget / kGroupAlignment) + " pages");
      const std::uint64_t held = budget / 1_MiB;
      const Plan plan = make_plan(equal_groups(blocks, 1_MiB), budget, {1_MiB, 0});
      const std::uint64_t unexposed = fewest_streamed_unexposed(blocks, held);
      if (plan.exposed_loads == 0) {
        EXPECT_EQ(plan.streamed_bytes, unexposed * 1_MiB);
      } else if (unexposed > blocks) {
        EXPECT_TRUE(held < 2 || blocks % 2 == 1) << "two places were enough";
        EXPECT_EQ(plan.exposed_loads, held < 2 ? blocks : 1U);
      } else {
        // Only where the residents between hide the loads, and more than a quarter of the traffic
        // goes.
        EXPECT_LT(plan.streamed_bytes * 4, unexposed * 3 * 1_MiB);
        EXPECT_GE(plan.resident_bytes, plan.streamed_bytes);
      }
    }
  }
}

TEST(PlannerProperties, WhereComputeKeepsUpEqualBlocksAreNeverExposedWithRoomForThreePlaces) {
  for (const std::uint64_t blocks : {5U, 6U, 7U, 12U, 13U}) {
    for (std::uint64_t pages = 3 * 256; pages < blocks * 256; pages += 64) {
      const Plan plan = make_plan(equal_groups(blocks, 1_MiB), pages * kGroupAlignment,
                                  {1_MiB, static_cast<double>(blocks)});
      EXPECT_EQ(plan.exposed_loads, 0U) << blocks << " blocks, " << pages << " pages";
      EXPECT_NEAR(plan.predicted_seconds, static_cast<double>(blocks), 1e-9);
    }
  }
}

}  // namespace
}  // namespace tensorstream
