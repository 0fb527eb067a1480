#include "base/units.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kLargest = std::numeric_limits<std::uint64_t>::max();

TEST(ParseSize, UnitsOf1024AndOf1000) {
  EXPECT_EQ(parse_size("4096", "x", 0), 4096U);
  EXPECT_EQ(parse_size("7b", "x", 0), 7U);
  EXPECT_EQ(parse_size("4GiB", "x", 0), 4_GiB);
  EXPECT_EQ(parse_size("3MiB", "x", 0), 3_MiB);
  EXPECT_EQ(parse_size("2KiB", "x", 0), 2_KiB);
  EXPECT_EQ(parse_size("1TiB", "x", 0), 1024_GiB);
  EXPECT_EQ(parse_size("1.5G", "x", 0), 1536_MiB);
  EXPECT_EQ(parse_size("2K", "x", 0), 2_KiB);
  EXPECT_EQ(parse_size("500MB", "x", 0), 500'000'000U);
  EXPECT_EQ(parse_size("1kB", "x", 0), 1000U);
  EXPECT_EQ(parse_size("2GB", "x", 0), 2'000'000'000U);
  EXPECT_EQ(parse_size("1TB", "x", 0), 1'000'000'000'000U);
}

TEST(ParseSize, SpacesAndCaseDoNotMatter) {
  EXPECT_EQ(parse_size(" 500 MB ", "x", 0), 500'000'000U);
  EXPECT_EQ(parse_size("4gib", "x", 0), 4_GiB);
  EXPECT_EQ(parse_size("4 gIb", "x", 0), 4_GiB);
}

TEST(ParseSize, AShareOfTheWhole) {
  EXPECT_EQ(parse_size("60%", "x", 1000), 600U);
  EXPECT_EQ(parse_size("100 %", "x", 24_GiB), 24_GiB);
  EXPECT_EQ(parse_size("12.5%", "x", 800), 100U);
}

TEST(ParseSize, WhatIsNoSizeIsAConfigErrorNamingTheOption) {
  const char* const wrong[] = {"",     " ",  "GiB",  "four", "4 XB",   "4GiBs", "0",
                               "0GiB", "-1", "-4G",  "nan",  "inf",    "0.4",   "1e30",
                               "101%", "0%", "-10%", "4%%",  "4 G iB", "0x10",  "1,5GiB"};
  for (const char* text : wrong) {
    try {
      const std::uint64_t size = parse_size(text, "vram_budget", 1000);
      ADD_FAILURE() << "'" << text << "' gave " << size;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("vram_budget"));
      EXPECT_THAT(error.what(), HasSubstr("'" + std::string(text) + "'"));
    }
  }
}

TEST(ParseSize, AMessageGoesOnBehindAZeroByte) {
  using namespace std::string_view_literals;
  for (const std::string_view text : {"4GiB\0"sv, "\0"sv}) {
    try {
      parse_size(text, "vram_budget", 1000);
      ADD_FAILURE();
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("give bytes or text"));
    }
  }
}

TEST(ParseSize, NothingToTakeAShareOfIsAConfigError) {
  EXPECT_THROW(parse_size("60%", "ram_budget", 0), ConfigError);
}

TEST(FormatSize, ThreeDigitsInTheLargestUnit) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(512), "512 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(1_KiB), "1.00 KiB");
  EXPECT_EQ(format_size(28'731'000), "27.4 MiB");
  EXPECT_EQ(format_size(300_MiB), "300 MiB");
  EXPECT_EQ(format_size(4_GiB), "4.00 GiB");
  EXPECT_EQ(format_size(2048_GiB), "2.00 TiB");
  EXPECT_EQ(format_size(5000 * 1024_GiB), "5000 TiB");
}

TEST(CheckedArithmetic, GivesTheResultOrNothing) {
  EXPECT_EQ(checked_add(2, 3), 5U);
  EXPECT_EQ(checked_add(kLargest - 1, 1), kLargest);
  EXPECT_EQ(checked_add(kLargest, 1), std::nullopt);
  EXPECT_EQ(checked_mul(1ULL << 32U, (1ULL << 32U) - 1), 0xFFFF'FFFF'0000'0000U);
  EXPECT_EQ(checked_mul(1ULL << 32U, 1ULL << 32U), std::nullopt);
  EXPECT_EQ(checked_mul(kLargest, 0), 0U);
}

TEST(Alignment, RoundsUpToMultiples) {
  EXPECT_EQ(align_up(0, 512), 0U);
  EXPECT_EQ(align_up(1, 512), 512U);
  EXPECT_EQ(align_up(512, 512), 512U);
  EXPECT_EQ(align_up(513, 512), 1024U);
}

TEST(Alignment, PowersOfTwo) {
  EXPECT_TRUE(is_power_of_two(1));
  EXPECT_TRUE(is_power_of_two(1ULL << 63U));
  EXPECT_FALSE(is_power_of_two(0));
  EXPECT_FALSE(is_power_of_two(3));
  EXPECT_FALSE(is_power_of_two(kLargest));
}

}  // namespace
}  // namespace tensorstream
