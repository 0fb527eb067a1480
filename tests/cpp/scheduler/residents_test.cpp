#include "scheduler/residents.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace tensorstream {
namespace {

using Sizes = std::vector<std::uint64_t>;

std::size_t count(const std::vector<bool>& resident) {
  return static_cast<std::size_t>(std::count(resident.begin(), resident.end(), true));
}

// The longest run of equal values around the cycle, and the shortest.
std::size_t longest_run(const std::vector<bool>& values, bool value) {
  std::size_t longest = 0;
  std::size_t run = 0;
  for (std::size_t i = 0; i < 2 * values.size(); ++i) {
    run = values[i % values.size()] == value ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  return std::min(longest, values.size());
}

TEST(ChooseResidents, EqualGroupsAreSpreadAsEvenlyAsTheirNumberAllows) {
  for (std::size_t groups = 2; groups <= 40; ++groups) {
    for (std::size_t wanted = 1; wanted < groups; ++wanted) {
      const Sizes sizes(groups, 1000);
      const std::vector<bool> resident = choose_residents(sizes, {wanted * 1000 + 999, 1000, 0});
      ASSERT_EQ(count(resident), wanted);
      const std::size_t streamed = groups - wanted;
      ASSERT_LE(longest_run(resident, false), (streamed + wanted - 1) / wanted)
          << wanted << " of " << groups;
      ASSERT_LE(longest_run(resident, true), (wanted + streamed - 1) / streamed)
          << wanted << " of " << groups;
    }
  }
}

TEST(ChooseResidents, NoGroupThatFitsIsLeftOut) {
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    Sizes sizes(1 + random() % 30);
    std::uint64_t all = 0;
    for (std::uint64_t& size : sizes) all += size = 1 + random() % 1000;
    const std::uint64_t capacity = random() % (all + 1);
    const std::vector<bool> resident = choose_residents(sizes, {capacity, 1000, 0});
    std::uint64_t taken = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) taken += resident[i] ? sizes[i] : 0;
    ASSERT_LE(taken, capacity);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      ASSERT_TRUE(resident[i] || sizes[i] > capacity - taken);
    }
  }
}

TEST(ChooseResidents, GroupsThatTheArenaCannotHoldAreResident) {
  const std::vector<bool> resident = choose_residents(Sizes{5, 50, 5, 5}, {56, 5, 0});
  EXPECT_TRUE(resident[1]);
  EXPECT_EQ(count(resident), 2U);
}

TEST(ChooseResidents, SmallGroupsComeFirst) {
  const Sizes sizes{100, 2, 100, 2, 100, 2};
  const std::vector<bool> resident = choose_residents(sizes, {105, 100, 2});
  EXPECT_EQ(resident, (std::vector<bool>{false, true, false, true, false, true}));
}

}  // namespace
}  // namespace tensorstream
