// Places for orders in which groups are used again: counted by a model of the arena of its own.
#include "scheduler/use_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/units.h"
#include "scheduler/arena_layout.h"
#include "scheduler/planned_groups.h"

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

Plan all_streamed(std::span<const GroupFootprint> groups, const ArenaLayout& layout,
                  std::uint64_t arena_bytes) {
  Plan plan;
  plan.arena_bytes = arena_bytes;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    plan.groups.push_back({.placement = Placement::kStreamed, .offset_bytes = layout.offsets[i]});
  }
  return plan;
}

std::vector<std::uint64_t> sizes_of(std::span<const GroupFootprint> groups) {
  std::vector<std::uint64_t> sizes;
  for (const GroupFootprint& group : groups) sizes.push_back(group.size_bytes);
  return sizes;
}

std::vector<std::uint64_t> offsets_of(const Plan& plan) {
  std::vector<std::uint64_t> offsets;
  for (const GroupPlacement& group : plan.groups) offsets.push_back(group.offset_bytes);
  return offsets;
}

/// Loads of these uses, one after the other, where nothing else goes than what shares bytes.
int loads_of(std::span<const GroupId> uses, std::span<const std::uint64_t> sizes,
             std::span<const std::uint64_t> offsets) {
  std::vector<bool> there(sizes.size(), false);
  int loads = 0;
  for (const GroupId group : uses) {
    if (there[group]) continue;
    ++loads;
    for (std::size_t other = 0; other < sizes.size(); ++other) {
      const bool shares = offsets[other] < offsets[group] + sizes[group] &&
                          offsets[group] < offsets[other] + sizes[other];
      if (shares) there[other] = false;
    }
    there[group] = true;
  }
  return loads;
}

TEST(UseLayout, APlainCycleDoesNotRepeat) {
  const std::vector<GroupFootprint> groups = equal_groups(4, 4096);
  const Plan plan = all_streamed(groups, ring_layout(sizes_of(groups), 8192), 8192);
  EXPECT_FALSE(uses_repeat(plan, std::vector<GroupId>{2, 3, 0, 1, 2, 3, 0, 1}));
  EXPECT_TRUE(uses_repeat(plan, std::vector<GroupId>{1, 0, 1, 2, 3}));
  EXPECT_FALSE(uses_repeat(plan, std::vector<GroupId>{0, 1, 0, 1, 2})) << "3 is never used";
}

TEST(UseLayout, WhatStaysResidentIsNotCounted) {
  const std::vector<GroupFootprint> groups = equal_groups(4, 4096);
  Plan plan = all_streamed(groups, ring_layout(sizes_of(groups), 8192), 8192);
  plan.groups[1].placement = Placement::kResident;
  EXPECT_FALSE(uses_repeat(plan, std::vector<GroupId>{0, 1, 1, 2, 3}));
  plan.groups[1].offset_bytes = 4096;
  // Of 0, 2 and 3 one pair has to share bytes: as they lie, 0 and 2 do, which are used in turn.
  const std::vector<GroupId> uses = {0, 2, 0, 2, 0, 2, 3};
  plan.groups[2].offset_bytes = 0;
  const auto offsets = offsets_for_uses(groups, plan, uses);
  ASSERT_TRUE(offsets);
  EXPECT_EQ((*offsets)[1], 4096U) << "where it would go if it gave way";
  EXPECT_NE((*offsets)[0], (*offsets)[2]);
}

/// Places in which neighbours of the forward share no bytes, and parts of one block do.
TEST(UseLayout, ABlockThatIsComputedAgainLiesSideBySide) {
  const std::vector<GroupFootprint> groups = llama_groups();
  const std::vector<std::uint64_t> sizes = sizes_of(groups);
  for (const std::uint64_t arena : {400_MiB, 464_MiB, 520_MiB, 700_MiB}) {
    SCOPED_TRACE(arena);
    const Plan plan = all_streamed(groups, two_ended_layout(sizes, arena), arena);
    const std::vector<GroupId> uses = steps(4);
    ASSERT_TRUE(uses_repeat(plan, uses));
    const auto offsets = offsets_for_uses(groups, plan, uses);
    ASSERT_TRUE(offsets);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_LE((*offsets)[i] + sizes[i], arena);
      EXPECT_EQ((*offsets)[i] % kGroupAlignment, 0U);
    }
    const int step = loads_of(uses, sizes, *offsets) / 4;
    EXPECT_LE(step, static_cast<int>(2 * groups.size())) << "once a forward, once a backward";
    EXPECT_GT(loads_of(uses, sizes, offsets_of(plan)) / 4, step + 2 * static_cast<int>(kBlocks));
  }
}

TEST(UseLayout, NothingMovesWhereHardlyLessIsLoaded) {
  const std::vector<GroupFootprint> groups = llama_groups();
  const std::vector<std::uint64_t> sizes = sizes_of(groups);
  const Plan plan = all_streamed(groups, two_ended_layout(sizes, 464_MiB), 464_MiB);
  const std::vector<GroupId> uses = steps(4);
  Plan moved = plan;
  const auto offsets = offsets_for_uses(groups, plan, uses);
  ASSERT_TRUE(offsets);
  for (std::size_t i = 0; i < sizes.size(); ++i) moved.groups[i].offset_bytes = (*offsets)[i];
  EXPECT_FALSE(offsets_for_uses(groups, moved, uses));
}

}  // namespace
}  // namespace tensorstream
