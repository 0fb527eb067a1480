#include "engine/backend_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/units.h"
#include "engine/disk_rate.h"
#include "engine/model_plan.h"
#include "made_bytes/weights.h"
#include "platform/dropped_pages.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

Plan plan_of(std::uint64_t streamed, std::uint64_t disk, std::uint64_t homes) {
  Plan plan;
  plan.streamed_bytes = streamed;
  plan.disk_bytes = disk;
  plan.home_bytes = homes;
  return plan;
}

/// So much RAM is free, of which the page cache has `file_bytes`.
RamRoom room_of(std::uint64_t available_bytes, std::uint64_t file_bytes = 0) {
  return {.available_bytes = available_bytes, .file_bytes = file_bytes};
}

TEST(BackendChoice, BesideAGpuWhatHasNoHomeCounts) {
  const auto choose = [](const Plan& plan, std::uint64_t available) {
    return choose_backend(plan, ComputePlace::kAccelerator, room_of(available), {}).backend;
  };
  // A GiB is left to others.
  EXPECT_EQ(choose(plan_of(20_GiB, 4_GiB, 16_GiB), 21_GiB), FileBackend::kPread);
  EXPECT_EQ(choose(plan_of(20_GiB, 4_GiB, 16_GiB), 21_GiB - 1), FileBackend::kDirect);
  EXPECT_EQ(choose(plan_of(20_GiB, 4_GiB, 16_GiB), 1_GiB), FileBackend::kDirect);
  EXPECT_EQ(choose(plan_of(20_GiB, 0, 20_GiB), 0), FileBackend::kPread);
}

TEST(BackendChoice, GpudirectIsTakenWhereItIsProvenAlone) {
  const auto choose = [](const ProbeResult& gpudirect, ComputePlace place,
                         std::uint64_t available) {
    return choose_backend(plan_of(20_GiB, 4_GiB, 0), place, room_of(available),
                          {.file_bytes = 20_GiB}, gpudirect);
  };
  const ProbeResult proven{true, true, "from peer to peer"};
  EXPECT_EQ(choose(proven, ComputePlace::kAccelerator, 2_GiB).backend, FileBackend::kGpudirect);
  EXPECT_EQ(choose(proven, ComputePlace::kAccelerator, 90_GiB).backend, FileBackend::kPread);
  EXPECT_EQ(choose(proven, ComputePlace::kHost, 2_GiB).backend, FileBackend::kDirect);
  for (const ProbeResult& other : {ProbeResult{true, false, "compatibility mode"},
                                   ProbeResult{false, true, "compatibility mode"}}) {
    const BackendChoice choice = choose(other, ComputePlace::kAccelerator, 2_GiB);
    EXPECT_EQ(choice.backend, FileBackend::kDirect);
    EXPECT_THAT(choice.reason, HasSubstr("and not gpudirect: compatibility mode"));
  }
}

TEST(BackendChoice, OnAHostAllThatIsStreamedCounts) {
  Plan plan = plan_of(4_GiB, 0, 0);
  plan.resident_bytes = 1_GiB;
  plan.arena_bytes = 1_GiB;
  const auto choose = [&](std::uint64_t available) {
    return choose_backend(plan, ComputePlace::kHost, room_of(available), {.file_bytes = 8_GiB});
  };
  EXPECT_EQ(choose(7_GiB).backend, FileBackend::kPread);
  EXPECT_EQ(choose(7_GiB - 1).backend, FileBackend::kDirect);
  EXPECT_THAT(choose(7_GiB - 1).reason, HasSubstr("each pass reads 4.00 GiB"));
}

TEST(BackendChoice, OnAHostPackedFilesCountAsTheyAre) {
  const BackendChoice choice = choose_backend(plan_of(4_GiB, 0, 0), ComputePlace::kHost,
                                              room_of(6_GiB), {.file_bytes = 3_GiB});
  EXPECT_EQ(choice.backend, FileBackend::kPread);
  EXPECT_THAT(choice.reason, HasSubstr("each pass reads 3.00 GiB"));
}

TEST(BackendChoice, OfAModelInRamNoPassReadsFiles) {
  const BackendChoice choice =
      choose_backend(plan_of(4_GiB, 0, 0), ComputePlace::kHost, room_of(1_GiB), {});
  EXPECT_EQ(choice.backend, FileBackend::kPread);
  EXPECT_EQ(choice.reason, "no pass reads files");
}

/// A pass reads 6 GiB of files of 8 GiB, and the page cache has room for 1 GiB.
TEST(BackendChoice, WhatOthersHaveInThePageCacheIsUsedThere) {
  const auto choose = [](std::uint64_t cached, std::uint64_t own) {
    return choose_backend(plan_of(6_GiB, 0, 0), ComputePlace::kHost, room_of(2_GiB, own),
                          {.file_bytes = 8_GiB, .cached_bytes = cached});
  };
  EXPECT_EQ(choose(8_GiB, 0).backend, FileBackend::kCached);
  EXPECT_THAT(choose(8_GiB, 1_GiB).reason,
              HasSubstr("but has 8.00 GiB of the 8.00 GiB of files, 7.00 GiB charged to others"));
  // Of 6 GiB no more than 1 may be missing.
  EXPECT_EQ(choose(7_GiB, 0).backend, FileBackend::kCached);
  EXPECT_EQ(choose(6_GiB, 0).backend, FileBackend::kDirect);
  EXPECT_THAT(choose(6_GiB, 0).reason, HasSubstr("6.00 GiB charged to others"));
  EXPECT_EQ(choose(8_GiB, 2_GiB).backend, FileBackend::kDirect);
  // All of it is this process's own, and goes as it reads on.
  EXPECT_EQ(choose(8_GiB, 8_GiB).backend, FileBackend::kDirect);
  EXPECT_EQ(choose(8_GiB, 20_GiB).backend, FileBackend::kDirect);
}

TEST(BackendChoice, WhatFitsGoesThroughThePageCacheWhoeverHasIt) {
  for (const std::uint64_t cached : {std::uint64_t{0}, 8_GiB}) {
    const BackendChoice choice =
        choose_backend(plan_of(1_GiB, 0, 0), ComputePlace::kHost, room_of(2_GiB),
                       {.file_bytes = 8_GiB, .cached_bytes = cached});
    EXPECT_EQ(choice.backend, FileBackend::kPread);
  }
}

TEST(CachedFiles, AreCountedTogether) {
  const TemporaryFolder folder;
  const std::string cold = folder.write("cold", patterned_bytes(3_MiB));
  const std::string warm = folder.write("warm", patterned_bytes(2_MiB));
  if (!drop_from_page_cache(cold)) GTEST_SKIP() << "this file system keeps its pages";
  const CachedFiles files = cached_files({cold, warm});
  EXPECT_EQ(files.file_bytes, 5_MiB);
  EXPECT_EQ(files.cached_bytes, 2_MiB);
  EXPECT_THROW(cached_files({folder.path("none")}), IoError);
}

TEST(HomeRoom, IsWhatTheCeilingLeavesBesideStaging) {
  ModelTree tree;
  EXPECT_EQ(home_room(tree, 1_GiB, 100_GiB), 1_GiB - 64_MiB);
  EXPECT_EQ(home_room(tree, 32_MiB, 100_GiB), 0U);
  EXPECT_EQ(home_room(tree, 200_GiB, 101_GiB), 100_GiB - 64_MiB);
  EXPECT_EQ(home_room(tree, std::nullopt, 101_GiB), 100_GiB - 64_MiB);
  // What is in RAM already frees that as it gets a home.
  tree.in_ram = {0};
  EXPECT_EQ(home_room(tree, 200_GiB, 101_GiB), 200_GiB - 64_MiB);
  EXPECT_EQ(home_room(tree, std::nullopt, 1_GiB), kLargestBudgetBytes);
}

TEST(DiskRate, IsThatOfALargeFile) {
  const TemporaryFolder folder;
  const auto rate = measure_disk(folder.write("large", patterned_bytes(64_MiB)));
  ASSERT_TRUE(rate);
  EXPECT_GT(*rate, 1e6);
  EXPECT_LT(*rate, 1e12);
}

TEST(DiskRate, IsNotKnownOfASmallFileAndAnErrorOfNone) {
  const TemporaryFolder folder;
  EXPECT_EQ(measure_disk(folder.write("small", patterned_bytes(1_MiB))), std::nullopt);
  EXPECT_THROW(static_cast<void>(measure_disk(folder.path("none"))), IoError);
}

}  // namespace
}  // namespace tensorstream
