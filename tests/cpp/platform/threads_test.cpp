#include "platform/threads.h"

#include <gtest/gtest.h>

#include <atomic>

#include "platform/no_threads.h"

namespace tensorstream {
namespace {

TEST(StartThreads, EachCallsTheWorkOnce) {
  std::atomic<int> calls = 0;
  for (const std::size_t wanted : {0U, 1U, 5U}) {
    calls = 0;
    {
      const auto threads = start_threads(wanted, "numbers are counted", [&] { ++calls; });
    }
    EXPECT_EQ(calls, static_cast<int>(wanted));
  }
}

TEST(StartThreads, AreFewerWhereTheSystemHasNoMore) {
  const NoThreads none;
  EXPECT_TRUE(start_threads(5, "numbers are counted", [] {}).empty());
}

}  // namespace
}  // namespace tensorstream
