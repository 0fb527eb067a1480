#include "memory/budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <limits>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kLargest = std::numeric_limits<std::uint64_t>::max();

TEST(Budget, CountsUpToItsLimitAndNotBeyond) {
  const auto budget = Budget::create(100);
  EXPECT_EQ(budget->limit_bytes(), 100U);
  auto first = budget->try_reserve(60);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->size_bytes(), 60U);
  EXPECT_FALSE(budget->try_reserve(41));
  EXPECT_EQ(budget->used_bytes(), 60U);
  EXPECT_EQ(budget->free_bytes(), 40U);
  const auto second = budget->try_reserve(40);
  ASSERT_TRUE(second);
  EXPECT_EQ(budget->used_bytes(), 100U);
  EXPECT_FALSE(budget->try_reserve(1));
  EXPECT_TRUE(budget->try_reserve(0));
  first->release();
  EXPECT_EQ(budget->used_bytes(), 40U);
  EXPECT_EQ(budget->peak_bytes(), 100U);
}

TEST(Budget, SizesNearTheLargestNumberDoNotWrap) {
  const auto budget = Budget::create(kLargest);
  const auto most = budget->try_reserve(kLargest - 5);
  ASSERT_TRUE(most);
  EXPECT_FALSE(budget->try_reserve(6));
  EXPECT_FALSE(budget->try_reserve(kLargest));
  EXPECT_TRUE(budget->try_reserve(5));
}

TEST(Budget, ARefusedReserveSaysTheNumbers) {
  const auto budget = Budget::create(100);
  const Reservation held = budget->reserve(70, "arena");
  try {
    const Reservation refused = budget->reserve(50, "scratch");
    FAIL() << "reserved " << refused.size_bytes();
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), 120U);
    EXPECT_EQ(error.budget_bytes(), 100U);
    EXPECT_THAT(error.what(), HasSubstr("scratch needs 50 B"));
    EXPECT_THAT(error.what(), HasSubstr("30 B of 100 B"));
  }
  EXPECT_EQ(budget->used_bytes(), 70U);
  try {
    const Reservation refused = budget->reserve(kLargest, "everything");
    FAIL() << "reserved " << refused.size_bytes();
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), kLargest);
  }
}

TEST(Reservation, GivesBackWhenItGoes) {
  const auto budget = Budget::create(100);
  {
    const Reservation reservation = budget->reserve(30, "x");
    EXPECT_EQ(budget->used_bytes(), 30U);
  }
  EXPECT_EQ(budget->used_bytes(), 0U);
  EXPECT_EQ(budget->peak_bytes(), 30U);
}

TEST(Reservation, GivesBackOnce) {
  const auto budget = Budget::create(100);
  Reservation reservation = budget->reserve(30, "x");
  reservation.release();
  reservation.release();
  EXPECT_EQ(reservation.size_bytes(), 0U);
  EXPECT_EQ(budget->used_bytes(), 0U);
  Reservation().release();
}

TEST(Reservation, MovesCarryTheBytes) {
  const auto budget = Budget::create(100);
  Reservation first = budget->reserve(30, "x");
  Reservation second = std::move(first);
  EXPECT_EQ(second.size_bytes(), 30U);
  EXPECT_EQ(budget->used_bytes(), 30U);
  Reservation third = budget->reserve(50, "y");
  third = std::move(second);
  EXPECT_EQ(third.size_bytes(), 30U);
  EXPECT_EQ(budget->used_bytes(), 30U);
  Reservation& self = third;
  third = std::move(self);
  EXPECT_EQ(budget->used_bytes(), 30U);
  third = Reservation();
  EXPECT_EQ(budget->used_bytes(), 0U);
}

TEST(Reservation, KeepsItsBudgetAlive) {
  auto budget = Budget::create(100);
  const std::weak_ptr<Budget> watched = budget;
  auto reservation = budget->try_reserve(30);
  budget.reset();
  EXPECT_FALSE(watched.expired());
  reservation.reset();
  EXPECT_TRUE(watched.expired());
}

TEST(Budget, ThreadsNeverPassTheLimitAndEndAtNothing) {
  constexpr std::uint64_t kLimit = 1000;
  const auto budget = Budget::create(kLimit);
  std::atomic<std::uint64_t> held = 0;
  std::atomic<std::uint64_t> most_held = 0;
  std::atomic<int> refused = 0;
  std::latch start(8);
  {
    std::vector<std::jthread> threads;
    for (unsigned seed = 0; seed < 8; ++seed) {
      threads.emplace_back([&, seed] {
        start.arrive_and_wait();
        std::mt19937 random(seed);
        std::uniform_int_distribution<std::uint64_t> size(1, kLimit / 2);
        std::vector<Reservation> mine;
        for (int i = 0; i < 2000; ++i) {
          if (mine.size() < 3) {
            auto reservation = budget->try_reserve(size(random));
            if (!reservation) {
              ++refused;
            } else {
              const std::uint64_t now = held += reservation->size_bytes();
              std::uint64_t most = most_held;
              while (now > most && !most_held.compare_exchange_weak(most, now)) {
              }
              mine.push_back(*std::move(reservation));
              continue;
            }
          }
          if (mine.empty()) continue;
          held -= mine.back().size_bytes();
          mine.pop_back();
        }
        for (const Reservation& reservation : mine) held -= reservation.size_bytes();
      });
    }
  }
  EXPECT_LE(most_held, kLimit);
  EXPECT_LE(budget->peak_bytes(), kLimit);
  EXPECT_GE(budget->peak_bytes(), most_held);
  EXPECT_GT(refused, 0);
  EXPECT_EQ(budget->used_bytes(), 0U);
}

TEST(BudgetLimit, MovesWhereWhatIsInUseFits) {
  const auto budget = Budget::create(100);
  const auto taken = budget->try_reserve(60);
  EXPECT_FALSE(budget->try_set_limit(59));
  EXPECT_EQ(budget->limit_bytes(), 100U);
  EXPECT_TRUE(budget->try_set_limit(60));
  EXPECT_EQ(budget->free_bytes(), 0U);
  EXPECT_FALSE(budget->try_reserve(1));
  EXPECT_TRUE(budget->try_set_limit(70));
  EXPECT_EQ(budget->free_bytes(), 10U);
  EXPECT_TRUE(budget->try_reserve(10));
}

TEST(BudgetLimit, IsPassedByWhatIsReservedBeyondItAndByNothingElse) {
  const auto budget = Budget::create(100);
  auto beyond = budget->reserve_beyond(130);
  EXPECT_EQ(budget->used_bytes(), 130U);
  EXPECT_EQ(budget->free_bytes(), 0U);
  EXPECT_FALSE(budget->try_reserve(1));
  EXPECT_THROW(static_cast<void>(budget->reserve(1, "a test")), BudgetError);
  beyond.release();
  EXPECT_EQ(budget->free_bytes(), 100U);
}

}  // namespace
}  // namespace tensorstream
