#include "scheduler/homes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "base/units.h"
#include "scheduler/planned_groups.h"
#include "scheduler/planner.h"

namespace tensorstream {
namespace {

using ::testing::ElementsAre;

std::vector<HomeCandidate> candidates(std::size_t count, std::uint64_t bytes) {
  return std::vector<HomeCandidate>(count, HomeCandidate{bytes});
}

TEST(Homes, AllAreAtHomeWhereThereIsRoom) {
  EXPECT_THAT(*choose_homes(candidates(3, 10), 30), ElementsAre(true, true, true));
  EXPECT_TRUE(choose_homes({}, 0)->empty());
}

TEST(Homes, WhatFindsNoneIsSpreadEvenly) {
  for (const std::uint64_t at_home : {0U, 1U, 3U, 4U, 6U, 8U, 11U, 12U}) {
    const std::vector<bool> homes = *choose_homes(candidates(12, 10), 10 * at_home + 9);
    ASSERT_EQ(std::ranges::count(homes, true), at_home);
    const std::size_t others = 12 - at_home;
    // In every stretch of the cycle as many are read from the disk as in any other, or one more.
    for (std::size_t length = 1; length < 12; ++length) {
      for (std::size_t begin = 0; begin < 12; ++begin) {
        std::size_t count = 0;
        for (std::size_t i = 0; i < length; ++i) count += homes[(begin + i) % 12] ? 0 : 1;
        EXPECT_LE(count, others * length / 12 + 2) << at_home << " from " << begin;
        EXPECT_GE(count + 2, others * length / 12) << at_home << " from " << begin;
      }
    }
  }
}

TEST(Homes, WhatIsThereStaysAndWhatWasRefusedIsNotAskedAgain) {
  std::vector<HomeCandidate> groups = candidates(4, 10);
  groups[0].state = HomeState::kThere;
  groups[2].state = HomeState::kRefused;
  EXPECT_THAT(*choose_homes(groups, 0), ElementsAre(true, false, false, false));
  EXPECT_THAT(*choose_homes(groups, 100), ElementsAre(true, true, false, true));
}

TEST(Homes, WhatNeedsOneComesFirstOrNothingIsChosen) {
  std::vector<HomeCandidate> groups = candidates(4, 10);
  groups[3].needed = true;
  EXPECT_THAT(*choose_homes(groups, 15), ElementsAre(false, false, false, true));
  EXPECT_FALSE(choose_homes(groups, 9));
  groups[3].state = HomeState::kRefused;
  EXPECT_FALSE(choose_homes(groups, 100));
}

class PlanOfTiers : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kBlock = 1_MiB;
  /// A block takes a second on the link and ten on the disk.
  static Rates rates(std::uint64_t home_bytes) {
    Rates made{static_cast<double>(kBlock), 0};
    made.disk_bytes_per_second = static_cast<double>(kBlock) / 10;
    made.disk_ahead_bytes = kBlock;
    made.home_bytes = home_bytes;
    return made;
  }
  static std::vector<GroupFootprint> blocks_in_files(std::size_t count) {
    std::vector<GroupFootprint> groups = equal_groups(count, kBlock);
    for (GroupFootprint& group : groups) group.in_files = true;
    return groups;
  }
  static std::vector<GroupId> from_disk(const Plan& plan) {
    std::vector<GroupId> found;
    for (GroupId i = 0; i < plan.groups.size(); ++i) {
      if (plan.groups[i].from_disk) found.push_back(i);
    }
    return found;
  }
};

TEST_F(PlanOfTiers, GroupsWithoutAHomeAreReadFromTheDiskWhichBoundsThePass) {
  const auto groups = blocks_in_files(12);
  const Plan all = make_plan(groups, 3 * kBlock, rates(100 * kBlock));
  EXPECT_EQ(all.disk_bytes, 0U);
  EXPECT_EQ(all.home_bytes, all.streamed_bytes);
  EXPECT_EQ(all.bound, "link");
  const Plan some = make_plan(groups, 3 * kBlock, rates(6 * kBlock));
  EXPECT_EQ(some.home_bytes, 6 * kBlock);
  EXPECT_EQ(some.disk_bytes, some.streamed_bytes - 6 * kBlock);
  EXPECT_EQ(some.bound, "disk");
  const double disk_seconds = 10.0 * static_cast<double>(some.disk_bytes / kBlock);
  EXPECT_GE(some.predicted_seconds, disk_seconds);
  // What is read ahead hides all of the link's work but the rest of a block.
  EXPECT_LE(some.predicted_seconds, disk_seconds * 1.05);
  const std::vector<GroupId> disk = from_disk(some);
  for (std::size_t i = 1; i < disk.size(); ++i) EXPECT_GT(disk[i], disk[i - 1] + 1);
}

TEST_F(PlanOfTiers, FramesAreWhatIsReadAndCrossesTheLinkWhereTheDeviceDecodes) {
  auto groups = blocks_in_files(12);
  for (GroupFootprint& group : groups) group.frame_bytes = kBlock / 2;
  const Plan host = make_plan(groups, 3 * kBlock, rates(0));
  EXPECT_EQ(host.disk_bytes, host.streamed_bytes / 2);
  EXPECT_EQ(host.link_bytes, host.streamed_bytes);
  for (GroupFootprint& group : groups) group.decodes_frames = true;
  const Plan device = make_plan(groups, 3 * kBlock, rates(0));
  EXPECT_EQ(device.disk_bytes, device.streamed_bytes / 2);
  EXPECT_EQ(device.link_bytes, device.disk_bytes);
  EXPECT_EQ(device.bound, "disk");
  // Where the host decodes less than the disk gives, that is the bound.
  for (GroupFootprint& group : groups) group.decodes_frames = false;
  Rates slow = rates(0);
  slow.host_decode_bytes_per_second = static_cast<double>(kBlock) / 20;
  const Plan decoding = make_plan(groups, 3 * kBlock, slow);
  EXPECT_GE(decoding.predicted_seconds,
            20.0 * static_cast<double>(decoding.streamed_bytes / kBlock));
  EXPECT_EQ(decoding.bound, "disk");
}

TEST_F(PlanOfTiers, NothingIsReadFromTheDiskThatIsInRamOrOnTheDevice) {
  EXPECT_EQ(make_plan(equal_groups(12, kBlock), 3 * kBlock, rates(0)).disk_bytes, 0U);
  const Plan resident = make_plan(blocks_in_files(12), 12 * kBlock, rates(0));
  EXPECT_EQ(resident.disk_bytes + resident.home_bytes, 0U);
}

TEST_F(PlanOfTiers, CodedHomesTakeLessAndWhatHasNoneCrossesTheLinkAsItIs) {
  auto groups = blocks_in_files(12);
  for (GroupFootprint& group : groups) group.coded_bytes = kBlock / 2;
  const Plan plan = make_plan(groups, 3 * kBlock, rates(3 * kBlock));
  EXPECT_EQ(plan.home_bytes, 3 * kBlock);
  EXPECT_EQ(plan.disk_bytes, plan.streamed_bytes - 6 * kBlock);
  EXPECT_EQ(plan.link_bytes, plan.disk_bytes + 3 * kBlock);
}

TEST_F(PlanOfTiers, WhatStaysCodedHasAHome) {
  auto groups = blocks_in_files(12);
  for (GroupFootprint& group : groups) {
    group.coded_bytes = kBlock / 2;
    group.kept_bytes = kBlock / 2;
  }
  for (const std::uint64_t room : {0U, 1U, 3U, 6U, 100U}) {
    const Plan plan = make_plan(groups, 6 * kBlock, rates(room * kBlock));
    std::uint64_t kept = 0;
    for (std::size_t i = 0; i < groups.size(); ++i) {
      if (plan.groups[i].placement != Placement::kResidentCoded) continue;
      EXPECT_FALSE(plan.groups[i].from_disk);
      kept += kBlock / 2;
    }
    EXPECT_LE(kept, room * kBlock);
    EXPECT_LE(plan.home_bytes, room * kBlock);
  }
  EXPECT_GT(make_plan(groups, 6 * kBlock, rates(100 * kBlock)).kept_bytes, 0U);
}

TEST_F(PlanOfTiers, HomesAreAsTheyCame) {
  auto groups = blocks_in_files(12);
  Plan plan = make_plan(groups, 3 * kBlock, rates(100 * kBlock));
  ASSERT_EQ(from_disk(plan).size(), 0U);
  for (GroupFootprint& group : groups) group.home = HomeState::kThere;
  groups[4].home = HomeState::kRefused;
  groups[5].home = HomeState::kOpen;
  note_homes(groups, plan);
  EXPECT_THAT(from_disk(plan), ElementsAre(4, 5));
  EXPECT_EQ(plan.disk_bytes, 2 * kBlock);
  EXPECT_EQ(plan.home_bytes, plan.streamed_bytes - 2 * kBlock);
  const double before = plan.predicted_seconds;
  predict_pass(groups, rates(0), plan);
  EXPECT_GT(plan.predicted_seconds, before);
}

}  // namespace
}  // namespace tensorstream
