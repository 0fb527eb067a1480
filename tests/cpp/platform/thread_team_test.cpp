#include "platform/thread_team.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <latch>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace tensorstream {
namespace {

TEST(ThreadTeam, CallsWithEveryNumberOnceWhateverTheThreads) {
  for (const std::size_t threads : {0U, 1U, 3U}) {
    ThreadTeam team(threads);
    for (const std::size_t count : {0U, 1U, 2U, 7U, 500U}) {
      std::vector<std::atomic<int>> calls(count);
      team.share(count, [&](std::size_t number) { ++calls[number]; });
      for (const auto& one : calls) EXPECT_EQ(one, 1);
    }
  }
}

TEST(ThreadTeam, WorksOnSeveralThreadsAtOnce) {
  ThreadTeam team(2);
  std::latch together(3);
  team.share(3, [&](std::size_t /*number*/) { together.arrive_and_wait(); });
}

TEST(ThreadTeam, ReturnsWhenAllCallsHave) {
  ThreadTeam team(3);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> returned = 0;
    team.share(4, [&](std::size_t number) {
      std::this_thread::sleep_for(std::chrono::milliseconds(number == 0 ? 0 : 2));
      ++returned;
    });
    ASSERT_EQ(returned, 4);
  }
}

TEST(ThreadTeam, RaisesWhatTheFirstRaisedOnceAllAreOver) {
  ThreadTeam team(3);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> calls = 0;
    try {
      team.share(50, [&](std::size_t number) {
        ++calls;
        if (number % 10 == 7) throw std::runtime_error(std::to_string(number));
      });
      ADD_FAILURE() << "nothing was raised";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "7");
    }
    EXPECT_EQ(calls, 50);
  }
}

TEST(ThreadTeam, SeveralCallersTakeTurns) {
  ThreadTeam team(2);
  std::atomic<int> sum = 0;
  {
    std::vector<std::jthread> callers;
    for (int i = 0; i < 4; ++i) {
      callers.emplace_back([&] {
        for (int round = 0; round < 50; ++round) team.share(5, [&](std::size_t) { ++sum; });
      });
    }
  }
  EXPECT_EQ(sum, 4 * 50 * 5);
}

TEST(ThreadTeam, AForkedChildWorksByItself) {
  ThreadTeam team(2);
  team.share(4, [](std::size_t /*number*/) {});
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int calls = 0;
    team.share(4, [&](std::size_t /*number*/) { ++calls; });
    _exit(calls == 4 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace tensorstream
