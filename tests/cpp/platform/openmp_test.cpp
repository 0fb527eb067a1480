#include "platform/openmp.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "platform/openmp_team.h"

namespace tensorstream {
namespace {

/// Who ran, and how often.
struct Runs {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  int count = 0;

  void note() {
    const std::scoped_lock lock(mutex);
    threads.insert(std::this_thread::get_id());
    ++count;
  }
};

TEST(RunOnTeam, EveryThreadOfTheCallersTeamRunsItOnce) {
  for (const int size : {1, 2, 5}) {
    omp_set_num_threads(size);
    Runs runs;
    run_on_team([&] { runs.note(); });
    EXPECT_EQ(runs.count, size);
    EXPECT_EQ(runs.threads.size(), static_cast<std::size_t>(size));
    EXPECT_TRUE(runs.threads.contains(std::this_thread::get_id()));
  }
}

TEST(RunOnTeam, ThreadsOfTheirOwnTeamsMayCallAtTheSameTime) {
  Runs runs;
  {
    std::vector<std::jthread> callers;
    for (int i = 0; i < 3; ++i) {
      callers.emplace_back([&] {
        omp_set_num_threads(2);
        for (int round = 0; round < 20; ++round) run_on_team([&] { runs.note(); });
      });
    }
  }
  EXPECT_EQ(runs.count, 3 * 20 * 2);
}

}  // namespace
}  // namespace tensorstream
