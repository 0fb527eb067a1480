#include "platform/threads.h"

#include <gtest/gtest.h>

#include <atomic>

#include "platform/no_threads.h"

namespace tensorstream {
namespace {

TEST(StartHelpers, EachCallsTheWorkOnceAndTheCallerIsOneOfThem) {
  std::atomic<int> calls = 0;
  for (const std::size_t threads : {0U, 1U, 2U, 5U}) {
    calls = 0;
    {
      const auto helpers = start_helpers(threads, "numbers are counted", [&] { ++calls; });
    }
    EXPECT_EQ(calls, threads == 0 ? 0 : static_cast<int>(threads) - 1);
  }
}

TEST(StartHelpers, AreFewerWhereTheSystemHasNoMore) {
  const NoThreads none;
  EXPECT_TRUE(start_helpers(5, "numbers are counted", [] {}).empty());
}

}  // namespace
}  // namespace tensorstream
