#include "scheduler/arena_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace tensorstream {
namespace {

using Sizes = std::vector<std::uint64_t>;

bool share(const Sizes& sizes, const Sizes& offsets, std::size_t a, std::size_t b) {
  return offsets[a] < offsets[b] + sizes[b] && offsets[b] < offsets[a] + sizes[a];
}

std::uint32_t exposed_pairs(const Sizes& sizes, const Sizes& offsets) {
  std::uint32_t exposed = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    exposed += share(sizes, offsets, i, (i + 1) % sizes.size()) ? 1 : 0;
  }
  return exposed;
}

// The fewest exposed pairs of any layout, by trying all offsets.
std::uint32_t fewest_exposed(const Sizes& sizes, std::uint64_t capacity) {
  Sizes offsets(sizes.size(), 0);
  auto fewest = static_cast<std::uint32_t>(sizes.size());
  while (true) {
    fewest = std::min(fewest, exposed_pairs(sizes, offsets));
    std::size_t i = 0;
    while (i < sizes.size() && ++offsets[i] + sizes[i] > capacity) offsets[i++] = 0;
    if (i == sizes.size()) return fewest;
  }
}

void expect_sound(const Sizes& sizes, std::uint64_t capacity, const ArenaLayout& layout) {
  ASSERT_EQ(layout.offsets.size(), sizes.size());
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    end = std::max(end, layout.offsets[i] + sizes[i]);
  }
  EXPECT_EQ(layout.arena_bytes, end);
  EXPECT_LE(layout.arena_bytes, capacity);
  EXPECT_EQ(layout.exposed_pairs, exposed_pairs(sizes, layout.offsets));
}

TEST(TwoEndedLayout, NoLayoutExposesFewerPairs) {
  std::mt19937 random(3);
  int odd_and_exposed = 0;
  for (int round = 0; round < 400; ++round) {
    Sizes sizes(2 + random() % 4);
    for (std::uint64_t& size : sizes) size = 1 + random() % 4;
    const std::uint64_t largest = *std::max_element(sizes.begin(), sizes.end());
    const std::uint64_t capacity = largest + random() % 6;
    const ArenaLayout layout = two_ended_layout(sizes, capacity);
    expect_sound(sizes, capacity, layout);
    const std::uint32_t fewest = fewest_exposed(sizes, capacity);
    ASSERT_EQ(layout.exposed_pairs, fewest)
        << ::testing::PrintToString(sizes) << " in " << capacity;
    if (fewest == 0 && layout.arena_bytes > largest) {
      EXPECT_GT(fewest_exposed(sizes, layout.arena_bytes - 1), 0U) << "needs fewer bytes";
    }
    odd_and_exposed += sizes.size() % 2 == 1 && fewest == 1 ? 1 : 0;
  }
  EXPECT_GT(odd_and_exposed, 10) << "the cases have to include odd cycles over two places";
}

TEST(TwoEndedLayout, AnEvenNumberOfEqualGroupsNeedsTwoPlaces) {
  const Sizes sizes(12, 8);
  EXPECT_EQ(two_ended_layout(sizes, 15).exposed_pairs, 12U);
  EXPECT_EQ(two_ended_layout(sizes, 16).exposed_pairs, 0U);
  EXPECT_EQ(two_ended_layout(sizes, 100).arena_bytes, 16U);
}

TEST(TwoEndedLayout, AnOddNumberOfEqualGroupsNeedsThreePlaces) {
  const Sizes sizes(13, 8);
  EXPECT_EQ(two_ended_layout(sizes, 16).exposed_pairs, 1U);
  EXPECT_EQ(two_ended_layout(sizes, 23).exposed_pairs, 1U);
  EXPECT_EQ(two_ended_layout(sizes, 24).exposed_pairs, 0U);
  EXPECT_EQ(two_ended_layout(sizes, 100).arena_bytes, 24U);
}

TEST(TwoEndedLayout, AnOddCycleHidesItsThirdPlaceAmongSmallGroups) {
  // 10 + 2 is the largest pair; 2, 1 and 3 side by side are no more than that.
  const Sizes sizes{10, 2, 1, 3, 2};
  const ArenaLayout layout = two_ended_layout(sizes, 12);
  EXPECT_EQ(layout.exposed_pairs, 0U);
  EXPECT_EQ(layout.arena_bytes, 12U);
}

TEST(TwoEndedLayout, AGroupTenTimesLargerTakesItsNeighboursBeside) {
  const Sizes sizes{1, 1, 10, 1, 1, 1};
  EXPECT_EQ(two_ended_layout(sizes, 10).exposed_pairs, 2U);
  EXPECT_EQ(two_ended_layout(sizes, 11).exposed_pairs, 0U);
}

TEST(TwoEndedLayout, AnExposedPairIsOneWithWorkBetween) {
  const Sizes sizes(5, 4);
  for (std::size_t widest = 0; widest < 5; ++widest) {
    Sizes gaps(5, 1);
    gaps[widest] = 9;
    const ArenaLayout layout = two_ended_layout(sizes, 8, gaps);
    EXPECT_EQ(layout.exposed_pairs, 1U);
    EXPECT_EQ(layout.offsets[widest], layout.offsets[(widest + 1) % 5]);
  }
}

TEST(TwoEndedLayout, OneAndTwoGroups) {
  EXPECT_EQ(two_ended_layout(Sizes{}, 8).arena_bytes, 0U);
  const ArenaLayout one = two_ended_layout(Sizes{8}, 100);
  EXPECT_EQ(one.arena_bytes, 8U);
  EXPECT_EQ(one.offsets, Sizes{0});
  EXPECT_EQ(two_ended_layout(Sizes{8, 3}, 10).exposed_pairs, 2U);
  EXPECT_EQ(two_ended_layout(Sizes{8, 3}, 11).exposed_pairs, 0U);
}

TEST(WindowedLayout, KeepsItsDistanceOrFindsNothing) {
  std::mt19937 random(5);
  int found = 0;
  for (int round = 0; round < 500; ++round) {
    Sizes sizes(3 + random() % 20);
    for (std::uint64_t& size : sizes) size = 1 + random() % 20;
    const std::uint32_t distance = 2 + static_cast<std::uint32_t>(random() % 2);
    const std::uint64_t capacity = 20 + random() % 80;
    const auto layout = windowed_layout(sizes, capacity, distance);
    if (!layout) continue;
    ++found;
    expect_sound(sizes, capacity, *layout);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      for (std::size_t d = 1; d <= distance; ++d) {
        const std::size_t other = (i + d) % sizes.size();
        ASSERT_TRUE(other == i || !share(sizes, layout->offsets, i, other));
      }
    }
  }
  EXPECT_GT(found, 50);
}

TEST(WindowedLayout, ThreePlacesForGroupsInThrees) {
  const auto layout = windowed_layout(Sizes(12, 8), 24, 2);
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->arena_bytes, 24U);
  EXPECT_FALSE(windowed_layout(Sizes(12, 8), 23, 2));
}

TEST(RingLayout, IsSound) {
  std::mt19937 random(5);
  for (int round = 0; round < 400; ++round) {
    Sizes sizes(1 + random() % 9);
    for (std::uint64_t& size : sizes) size = 1 + random() % 4;
    const std::uint64_t capacity = 4 + random() % 12;
    expect_sound(sizes, capacity, ring_layout(sizes, capacity));
  }
}

// Blocks of a matrix of 128 and three of 86, in 352: no window of three keeps its distance there in
// places that repeat.
TEST(RingLayout, LoadsOfUnlikeGroupsRunAsFarAheadAsTheyFit) {
  Sizes sizes;
  for (int block = 0; block < 6; ++block) sizes.insert(sizes.end(), {128, 86, 86, 86});
  EXPECT_FALSE(windowed_layout(sizes, 352, 2));
  const ArenaLayout layout = ring_layout(sizes, 352);
  EXPECT_EQ(layout.exposed_pairs, 0U);
  const std::vector<std::uint32_t> distances = sharing_distances(sizes, layout.offsets);
  EXPECT_GE(std::ranges::count_if(distances, [](std::uint32_t far) { return far >= 3; }), 20);
  EXPECT_GE(std::ranges::min(distances), 2U);
}

TEST(SharingDistances, CountBackToTheNearestGroupInTheSamePlace) {
  const Sizes sizes(4, 8);
  EXPECT_EQ(sharing_distances(sizes, Sizes{0, 8, 0, 8}), (std::vector<std::uint32_t>{2, 2, 2, 2}));
  EXPECT_EQ(sharing_distances(sizes, Sizes{0, 8, 16, 4}), (std::vector<std::uint32_t>{1, 2, 4, 2}));
  EXPECT_EQ(sharing_distances(sizes, Sizes{0, 8, 16, 24}),
            (std::vector<std::uint32_t>{4, 4, 4, 4}));
}

}  // namespace
}  // namespace tensorstream
