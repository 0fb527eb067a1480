#include "base/nearest_name.h"

#include <gtest/gtest.h>

#include <vector>

namespace tensorstream {
namespace {

const std::vector<std::string>& names() {
  static const std::vector<std::string> known = {"vram_budget", "ram_budget", "device", "prefetch"};
  return known;
}

TEST(NearestName, FindsEachKindOfSlip) {
  EXPECT_EQ(nearest_name("vram_budgt", names()), "vram_budget");    // a letter less
  EXPECT_EQ(nearest_name("vram_budgett", names()), "vram_budget");  // a letter more
  EXPECT_EQ(nearest_name("prefatch", names()), "prefetch");         // another letter
  EXPECT_EQ(nearest_name("deivce", names()), "device");             // neighbours swapped
}

TEST(NearestName, ASwapOfNeighboursIsOneEdit) {
  const std::vector<std::string> known = {"ab"};
  EXPECT_EQ(nearest_name("ba", known), "ab");
}

TEST(NearestName, TakesTheNearestOfSeveral) {
  EXPECT_EQ(nearest_name("ram_budge", names()), "ram_budget");
  EXPECT_EQ(nearest_name("device", names()), "device");
}

TEST(NearestName, IsEmptyBeyondAThirdOfTheLength) {
  EXPECT_EQ(nearest_name("dexxce", names()), "device");  // 2 edits of 6
  EXPECT_EQ(nearest_name("dexxxe", names()), "");        // 3 edits of 6
  EXPECT_EQ(nearest_name("backend", {}), "");
}

TEST(NearestName, DidYouMeanQuotesTheNameOrSaysNothing) {
  EXPECT_EQ(did_you_mean("devise", names()), " (did you mean 'device'?)");
  EXPECT_EQ(did_you_mean("compression", names()), "");
}

}  // namespace
}  // namespace tensorstream
