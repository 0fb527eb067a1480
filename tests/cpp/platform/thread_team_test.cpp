#include "platform/thread_team.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
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
    const auto team = ThreadTeam::create(threads);
    for (const std::size_t count : {0U, 1U, 2U, 7U, 500U}) {
      std::vector<std::atomic<int>> calls(count);
      team->share(count, [&](std::size_t number) { ++calls[number]; });
      for (const auto& one : calls) EXPECT_EQ(one, 1);
    }
  }
}

TEST(ThreadTeam, WorksOnSeveralThreadsAtOnce) {
  const auto team = ThreadTeam::create(2);
  std::latch together(3);
  team->share(3, [&](std::size_t /*number*/) { together.arrive_and_wait(); });
}

TEST(ThreadTeam, ReturnsWhenAllCallsHave) {
  const auto team = ThreadTeam::create(3);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> returned = 0;
    team->share(4, [&](std::size_t number) {
      std::this_thread::sleep_for(std::chrono::milliseconds(number == 0 ? 0 : 2));
      ++returned;
    });
    ASSERT_EQ(returned, 4);
  }
}

TEST(ThreadTeam, RaisesWhatTheFirstRaisedOnceAllAreOver) {
  const auto team = ThreadTeam::create(3);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> calls = 0;
    try {
      team->share(50, [&](std::size_t number) {
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
  const auto team = ThreadTeam::create(2);
  std::atomic<int> sum = 0;
  {
    std::vector<std::jthread> callers;
    for (int i = 0; i < 4; ++i) {
      callers.emplace_back([&] {
        for (int round = 0; round < 50; ++round) team->share(5, [&](std::size_t) { ++sum; });
      });
    }
  }
  EXPECT_EQ(sum, 4 * 50 * 5);
}

/// 0 where a forked child does that, and soon.
int status_of_child(const std::function<bool()>& act) {
  const pid_t child = fork();
  if (child == 0) {
    ::alarm(20);
    _exit(act() ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

bool works(ThreadTeam& team) {
  std::atomic<int> calls = 0;
  team.share(4, [&](std::size_t /*number*/) { ++calls; });
  return calls == 4;
}

TEST(ThreadTeam, AForkedChildWorksByItself) {
  const auto team = ThreadTeam::create(2);
  EXPECT_TRUE(works(*team));
  EXPECT_EQ(status_of_child([&] { return works(*team); }), 0);
}

// Locks that are held as a process is forked stay held in the child.
TEST(ThreadTeam, AChildThatIsForkedInTheMidstOfAUseWorksByItself) {
  const auto team = ThreadTeam::create(2);
  int status = -1;
  team->share(
      1, [&](std::size_t /*number*/) { status = status_of_child([&] { return works(*team); }); });
  EXPECT_EQ(status, 0);
}

TEST(ThreadTeam, AForkedChildRaisesWhatTheLowestNumberRaised) {
  const auto team = ThreadTeam::create(2);
  const auto raises = [&] {
    try {
      team->share(4, [](std::size_t number) {
        if (number > 0) throw static_cast<int>(number);
      });
    } catch (int number) {
      return number == 1;
    }
    return false;
  };
  EXPECT_TRUE(raises());
  EXPECT_EQ(status_of_child(raises), 0);
}

TEST(ThreadTeam, AForkedChildLetsItGo) {
  auto team = ThreadTeam::create(2);
  EXPECT_TRUE(works(*team));
  EXPECT_EQ(status_of_child([&] {
              team = nullptr;  // its threads are not there to be waited for
              return true;
            }),
            0);
}

}  // namespace
}  // namespace tensorstream
