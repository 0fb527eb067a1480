#include "engine/backend_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/units.h"
#include "engine/disk_rate.h"
#include "engine/model_plan.h"
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

TEST(BackendChoice, BesideAGpuWhatHasNoHomeCounts) {
  const auto choose = [](const Plan& plan, std::uint64_t available) {
    return choose_backend(plan, ComputePlace::kAccelerator, available).backend;
  };
  // A GiB is left to others.
  EXPECT_EQ(choose(plan_of(20_GiB, 4_GiB, 16_GiB), 21_GiB), FileBackend::kPread);
  EXPECT_EQ(choose(plan_of(20_GiB, 4_GiB, 16_GiB), 21_GiB - 1), FileBackend::kDirect);
  EXPECT_EQ(choose(plan_of(20_GiB, 4_GiB, 16_GiB), 1_GiB), FileBackend::kDirect);
  EXPECT_EQ(choose(plan_of(20_GiB, 0, 20_GiB), 0), FileBackend::kPread);
}

TEST(BackendChoice, OnAHostAllThatIsStreamedCounts) {
  Plan plan = plan_of(4_GiB, 0, 0);
  plan.resident_bytes = 1_GiB;
  plan.arena_bytes = 1_GiB;
  EXPECT_EQ(choose_backend(plan, ComputePlace::kHost, 7_GiB).backend, FileBackend::kPread);
  const BackendChoice choice = choose_backend(plan, ComputePlace::kHost, 7_GiB - 1);
  EXPECT_EQ(choice.backend, FileBackend::kDirect);
  EXPECT_THAT(choice.reason, HasSubstr("each pass reads 4.00 GiB"));
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
