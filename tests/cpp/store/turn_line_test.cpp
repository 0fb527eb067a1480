#include "store/turn_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace tensorstream::testing {
namespace {

TEST(TurnLine, EveryNumberHasItsTurnInOrder) {
  for (const unsigned threads : {0U, 1U, 2U, 7U, 60U}) {
    TurnLine line(200);
    std::vector<std::uint64_t> order;
    std::atomic<unsigned> workers = 0;
    line.run(threads, [&]() -> TurnLine::Work {
      ++workers;
      return [&](std::uint64_t number) {
        if (number % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
        line.in_turn(number, [&] { order.push_back(number); });
      };
    });
    ASSERT_EQ(order.size(), 200U);
    for (std::uint64_t i = 0; i < order.size(); ++i) EXPECT_EQ(order[i], i);
    EXPECT_EQ(workers, std::max(threads, 1U));
  }
}

TEST(TurnLine, NothingToDoStartsNothing) {
  TurnLine line(0);
  line.run(4, []() -> TurnLine::Work {
    ADD_FAILURE() << "a thread was started";
    return [](std::uint64_t) {};
  });
}

TEST(TurnLine, TheErrorOfTheLowestNumberIsRaised) {
  for (int round = 0; round < 50; ++round) {
    TurnLine line(100);
    try {
      line.run(4, [&]() -> TurnLine::Work {
        return [&](std::uint64_t number) {
          line.in_turn(number, [] {});
          // The lower one takes longer.
          if (number == 20) std::this_thread::sleep_for(std::chrono::microseconds(200));
          if (number == 20 || number == 21) throw std::runtime_error(std::to_string(number));
        };
      });
      FAIL() << "nothing was raised";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "20");
    }
  }
}

TEST(TurnLine, AnErrorWakesAllOfManyThreads) {
  for (std::uint64_t failing = 0; failing < 300; failing += 13) {
    TurnLine line(300);
    std::atomic<std::uint64_t> passed = 0;
    EXPECT_THROW(line.run(60,
                          [&]() -> TurnLine::Work {
                            return [&](std::uint64_t number) {
                              if (number == failing) throw std::runtime_error("failing");
                              line.in_turn(number, [&] { ++passed; });
                            };
                          }),
                 std::runtime_error);
    EXPECT_EQ(passed, failing);
  }
}

TEST(TurnLine, AnErrorStopsThoseAfterItAndNoneBefore) {
  TurnLine line(1000);
  std::atomic<bool> failed = false;
  std::atomic<std::uint64_t> passed = 0;
  EXPECT_THROW(line.run(4,
                        [&]() -> TurnLine::Work {
                          return [&](std::uint64_t number) {
                            if (number == 10) {
                              failed = true;
                              throw std::runtime_error("10");
                            }
                            // 9 waits for its turn when 10 fails, and long after.
                            if (number == 8) {
                              while (!failed) std::this_thread::yield();
                              std::this_thread::sleep_for(std::chrono::milliseconds(5));
                            }
                            line.in_turn(number, [&] { ++passed; });
                          };
                        }),
               std::runtime_error);
  EXPECT_EQ(passed, 10U);
}

}  // namespace
}  // namespace tensorstream::testing
