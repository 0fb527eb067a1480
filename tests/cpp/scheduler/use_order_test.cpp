// Places for orders in which groups are used again: counted by a model of the arena of its own.
#include "scheduler/planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kAttention = 128_MiB;
constexpr std::uint64_t kMatrix = 86_MiB;
constexpr std::size_t kBlocks = 6;
constexpr std::size_t kParts = 4;

/// Blocks of a Llama of 7B shape, as a budget for half a block has them cut, and its head.
std::vector<GroupFootprint> llama_groups() {
  std::vector<GroupFootprint> groups;
  for (std::size_t block = 0; block < kBlocks; ++block) {
    for (const std::uint64_t size : {kAttention, kMatrix, kMatrix, kMatrix}) {
      groups.push_back({"part " + std::to_string(groups.size()), size});
    }
  }
  groups.push_back({"head", 250_MiB});
  return groups;
}

/// A forward, then backward with the blocks computed again.
std::vector<GroupId> training_step() {
  std::vector<GroupId> uses;
  for (GroupId group = 0; group <= kBlocks * kParts; ++group) uses.push_back(group);
  for (std::size_t block = kBlocks; block-- > 0;) {
    const auto first = static_cast<GroupId>(block * kParts);
    for (GroupId part = 0; part < kParts; ++part) uses.push_back(first + part);
    for (GroupId part = kParts - 1; part-- > 0;) uses.push_back(first + part);
  }
  return uses;
}

std::vector<GroupId> steps(int count) {
  std::vector<GroupId> uses;
  const std::vector<GroupId> step = training_step();
  for (int i = 0; i < count; ++i) uses.insert(uses.end(), step.begin(), step.end());
  return uses;
}

/// Bytes that these uses load by a plan, one after the other, where nothing else goes than what
/// shares bytes.
std::uint64_t loaded_by(const Plan& plan, std::span<const GroupFootprint> groups,
                        std::span<const GroupId> uses) {
  std::vector<bool> there(groups.size(), false);
  std::uint64_t bytes = 0;
  for (const GroupId group : uses) {
    if (plan.groups[group].placement != Placement::kStreamed || there[group]) continue;
    bytes += groups[group].size_bytes;
    const std::uint64_t offset = plan.groups[group].offset_bytes;
    for (std::size_t other = 0; other < groups.size(); ++other) {
      const std::uint64_t begin = plan.groups[other].offset_bytes;
      const bool shares =
          begin < offset + groups[group].size_bytes && offset < begin + groups[other].size_bytes;
      if (shares) there[other] = false;
    }
    there[group] = true;
  }
  return bytes;
}

Rates rates(std::vector<GroupId> uses) {
  Rates rates;
  rates.link_bytes_per_second = 54e9;
  rates.uses = std::move(uses);
  return rates;
}

TEST(UseOrder, PlansLoadLessForTheOrderThatTheyAreMadeFor) {
  const std::vector<GroupFootprint> groups = llama_groups();
  const std::vector<GroupId> uses = steps(4);
  double plain_bytes = 0;
  double bytes = 0;
  for (std::uint64_t budget = 400_MiB; budget < 2000_MiB; budget += 20_MiB) {
    SCOPED_TRACE(budget);
    const Plan plain = make_plan(groups, budget, rates({}));
    const Plan plan = make_plan(groups, budget, rates(uses));
    EXPECT_LE(plan.resident_bytes + plan.arena_bytes, budget);
    const auto loaded = static_cast<double>(loaded_by(plan, groups, uses));
    const auto loaded_plain = static_cast<double>(loaded_by(plain, groups, uses));
    EXPECT_LE(loaded, 1.1 * loaded_plain) << "what waits counts, too";
    bytes += loaded;
    plain_bytes += loaded_plain;
  }
  EXPECT_LT(bytes, 0.9 * plain_bytes);
}

/// The budget of a step of LoRA with a tenth of the weights: an arena of a block, and no resident.
TEST(UseOrder, ABlockThatIsComputedAgainIsLoadedOnce) {
  const std::vector<GroupFootprint> groups = llama_groups();
  const std::vector<GroupId> uses = steps(4);
  const Plan plan = make_plan(groups, 440_MiB, rates(uses));
  std::uint64_t all = 0;
  for (const GroupFootprint& group : groups) all += group.size_bytes;
  // The head is there still when backward begins.
  EXPECT_LE(loaded_by(plan, groups, uses), 4 * 2 * all);
  EXPECT_GT(loaded_by(make_plan(groups, 440_MiB, rates({})), groups, uses), 4 * 9 * all / 4);
}

TEST(UseOrder, GroupsAreMovedForAnOrderInTheArenaThatIs) {
  const std::vector<GroupFootprint> groups = llama_groups();
  const std::vector<GroupId> uses = steps(4);
  Plan plan = make_plan(groups, 464_MiB, rates({}));
  plan.arena_bytes = 464_MiB;
  const auto offsets = better_offsets(groups, rates(uses), plan);
  ASSERT_TRUE(offsets);
  Plan moved = plan;
  for (GroupId group = 0; group < groups.size(); ++group) {
    moved.groups[group].offset_bytes = (*offsets)[group];
    EXPECT_LE((*offsets)[group] + groups[group].size_bytes, plan.arena_bytes);
  }
  EXPECT_LT(loaded_by(moved, groups, uses), loaded_by(plan, groups, uses));
  EXPECT_FALSE(better_offsets(groups, rates(uses), moved));
}

TEST(UseOrder, ThePredictionIsOfAPlainPass) {
  const std::vector<GroupFootprint> groups = llama_groups();
  Plan plan = make_plan(groups, 600_MiB, rates({}));
  const double seconds = plan.predicted_seconds;
  predict_pass(groups, rates(steps(4)), plan);
  EXPECT_EQ(plan.predicted_seconds, seconds);
}

}  // namespace
}  // namespace tensorstream
