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
  const Rates decodes_at_once{kLink, 5, 1e30};
  EXPECT_NEAR(pass_seconds(steps, decodes_at_once), 10 + 10 * kDecodeOverheadSeconds, 1e-12);
}

TEST(PassSeconds, DecodingTakesTurnsWithComputing) {
  Steps steps = blocks(10, 2);
  for (PassStep& step : steps) step.coded_bytes = 5;
  const double overhead = 10 * kDecodeOverheadSeconds;
  // 5 s on the link; 4 of compute and 2 of decoding are longer.
  EXPECT_NEAR(pass_seconds(steps, {kLink, 4, 50}), 6 + overhead, 1e-9);
  EXPECT_NEAR(pass_seconds(steps, {kLink, 1, 50}), 5, 0.2 + overhead);
}

TEST(PassSeconds, WhatIsKeptTakesNoTimeOnTheLink) {
  Steps steps(10, PassStep{10, false, 2, 5, true});
  const double overhead = 10 * kDecodeOverheadSeconds;
  EXPECT_NEAR(pass_seconds(steps, {kLink, 1, 50}), 3 + overhead, 1e-9);
  // Enqueued late, it waits for the host where that is not ahead: at the first one.
  for (PassStep& step : steps) step.sharing_distance = 1;
  const double late = 2 * Rates().lease_seconds;
  EXPECT_NEAR(pass_seconds(steps, {kLink, 1, 50}), 3 + overhead + late, 1e-9);
  // One of them streamed, to a place of its own: half a second on the link, while others compute.
  for (PassStep& step : steps) step.sharing_distance = 2;
  steps[3] = PassStep{10, true, 10, 5};
  EXPECT_NEAR(pass_seconds(steps, {kLink, 1, 50}), 3 + overhead, 1e-9);
}

// A disk of 5 bytes a second: a block of 10 takes 2.
Rates with_disk(double compute_seconds, std::uint64_t ahead_bytes) {
  Rates rates{kLink, compute_seconds};
  rates.disk_bytes_per_second = 5;
  rates.disk_ahead_bytes = ahead_bytes;
  return rates;
}

TEST(PassSeconds, TheDiskReadsWhileTheLinkMovesWhatIsAtHome) {
  Steps steps = blocks(10, 2);
  for (std::size_t i = 0; i < steps.size(); i += 2) steps[i].from_disk = true;
  // Five on the disk take 10 s, while five cross the link.
  EXPECT_NEAR(pass_seconds(steps, with_disk(0, 10)), 10, 1e-9);
  // Nothing is read ahead: the disk rests while the link works for the others.
  EXPECT_NEAR(pass_seconds(steps, with_disk(0, 0)), 15, 1e-9);
  // Half of a block is.
  EXPECT_NEAR(pass_seconds(steps, with_disk(0, 5)), 10, 1e-9);
  EXPECT_NEAR(pass_seconds(steps, with_disk(0, 2)), 13, 1e-9);
}

TEST(PassSeconds, ADiskThatIsFasterThanTheLinkCostsNothingMore) {
  Steps steps = blocks(10, 2);
  for (PassStep& step : steps) step.from_disk = true;
  Rates rates = with_disk(0, 10);
  rates.disk_bytes_per_second = 20;
  EXPECT_NEAR(pass_seconds(steps, rates), 10, 1e-9);
}

TEST(PassSeconds, WhatIsReadFromTheDiskIsNotDecoded) {
  Steps steps = blocks(10, 2);
  for (PassStep& step : steps) {
    step.coded_bytes = 1;
    step.from_disk = true;
  }
  EXPECT_NEAR(pass_seconds(steps, with_disk(0, 10)), 20, 1e-9);
}

TEST(PassSeconds, FramesOnTheDiskAreReadAndDecodedByTheDeviceOrTheHost) {
  Steps steps = blocks(10, 2);
  for (PassStep& step : steps) {
    step.from_disk = true;
    step.frame_bytes = 5;
    step.decodes_frames = true;
  }
  // A second each on the disk; half on the link, a tenth decoded.
  Rates rates = with_disk(0, 10);
  rates.decode_bytes_per_second = 100;
  EXPECT_NEAR(pass_seconds(steps, rates), 10, 1e-9);
  // The thread that loads has nothing else to do: 2 s each, or 0.1 beside 1 on the link.
  for (PassStep& step : steps) step.decodes_frames = false;
  rates.host_decode_bytes_per_second = 5;
  rates.link_bytes_per_second = 1e9;
  EXPECT_NEAR(pass_seconds(steps, rates), 20, 1e-6);
  rates.host_decode_bytes_per_second = 100;
  EXPECT_NEAR(pass_seconds(steps, rates), 10, 1);
}

Rates with_host(double compute_seconds, double host_seconds) {
  Rates rates{kLink, compute_seconds, 1e30};
  rates.host_seconds = host_seconds;
  return rates;
}

TEST(PassSeconds, TheHostWorksBesideTheLinkAndTheDevice) {
  const Steps steps = blocks(10, 2);
  EXPECT_DOUBLE_EQ(pass_seconds(steps, with_host(0, 8)), 10);
  EXPECT_DOUBLE_EQ(pass_seconds(steps, with_host(30, 8)), 30);
  EXPECT_NEAR(pass_seconds(steps, with_host(20, 30)), 30 + 10 * Rates().lease_seconds, 1e-9);
}

TEST(PassSeconds, LeasesTakeTimeOfTheHost) {
  Steps steps = blocks(10, 2);
  Rates rates = with_host(0, 0);
  rates.lease_seconds = 3;
  EXPECT_NEAR(pass_seconds(steps, rates), 30, 1e-9);
  for (std::size_t i = 0; i < 5; ++i) steps[i] = PassStep{10, false, 0};
  EXPECT_NEAR(pass_seconds(steps, rates), 20, 1e-9) << "a resident's takes a third";
  for (PassStep& step : steps) step.settled = !step.streamed;
  EXPECT_NEAR(pass_seconds(steps, rates), 15, 1e-9);
  EXPECT_NEAR(leases_seconds(steps, rates), 15, 1e-9);
  for (PassStep& step : steps) step.tensors = 4;
  rates.lend_seconds = 0.5;
  EXPECT_NEAR(leases_seconds(steps, rates), 5 * (3 + 4 * 0.5), 1e-9);
  for (PassStep& step : steps) step.settled = false;
  EXPECT_NEAR(leases_seconds(steps, rates), 5 * 5 + 5 * 5 / 3.0, 1e-9);
  for (PassStep& step : steps) step.kept = !step.streamed;
  EXPECT_NEAR(leases_seconds(steps, rates), 5 * 5 + 5 * (2 * 3 + 4 * 0.5), 1e-9);
}

TEST(PassSeconds, WhatIsDecodedLateDoesNotHoldTheHostUp) {
  Steps steps(10, PassStep{10, false, 1, 5, true});
  const double leases = 10 * 2 * Rates().lease_seconds;  // who leases one enqueues its decoding
  for (const std::uint32_t distance : {1U, 2U}) {
    for (PassStep& step : steps) step.sharing_distance = distance;
    EXPECT_NEAR(pass_seconds(steps, with_host(0, 30)), 30 + leases, 1e-9);
  }
}

TEST(PassSeconds, TheHostIsAheadOfTheDeviceByTwoLoads) {
  // Four share one place, a second each on the link; then the host has much to do. It begins that
  // once the second load is done, and only the first was made while it did so last.
  Steps steps(4, PassStep{10, true, 1});
  steps.push_back(PassStep{1000, false, 0});
  const double use = 10.0 / 1040 * 10;
  EXPECT_NEAR(pass_seconds(steps, with_host(0, 10)), use + 1 + use + 100 * use, 1e-3);
}

TEST(PassSeconds, WhereGroupsAreLoadedAtTheirUseTheHostComputes) {
  Rates rates = with_host(5, 50);
  rates.loading = Loading::kAtUse;
  EXPECT_DOUBLE_EQ(pass_seconds(blocks(10, 1), rates), 15);
}

TEST(PassSeconds, NothingTakesNoTime) {
  EXPECT_DOUBLE_EQ(pass_seconds(Steps{}, {kLink, 0}), 0);
  EXPECT_DOUBLE_EQ(pass_seconds(blocks(4, 1), {kLink, 0}), 4);
}

}  // namespace
}  // namespace tensorstream
