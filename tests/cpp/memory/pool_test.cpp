#include "memory/pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <latch>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "device/host_device.h"
#include "memory/fake_device.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

class PoolTest : public ::testing::Test {
 protected:
  FakeDevice device_;
  const std::shared_ptr<Budget> budget_ = Budget::create(10'000);
  Pool pool_{device_, budget_};
};

TEST_F(PoolTest, ChargesWhatTheDeviceHolds) {
  {
    const Block block = pool_.allocate(1000, 512, "arena");
    EXPECT_NE(block.data(), nullptr);
    EXPECT_EQ(block.size_bytes(), 1024U);
    EXPECT_EQ(budget_->used_bytes(), 1024U);
    EXPECT_EQ(device_.live_bytes(), 1024U);
  }
  EXPECT_EQ(budget_->used_bytes(), 0U);
  EXPECT_EQ(device_.live_bytes(), 0U);
  EXPECT_EQ(budget_->peak_bytes(), 1024U);
}

TEST_F(PoolTest, KnowsItsDeviceAndBudget) {
  EXPECT_EQ(&pool_.device(), &device_);
  EXPECT_EQ(&pool_.budget(), budget_.get());
}

TEST_F(PoolTest, GivesEveryAlignment) {
  for (std::uint64_t alignment = 1; alignment <= kGroupAlignment; alignment *= 2) {
    const Block block = pool_.allocate(alignment + 1, alignment, "x");
    EXPECT_EQ(std::bit_cast<std::uint64_t>(block.data()) % alignment, 0U);
    EXPECT_EQ(block.size_bytes(), alignment == 1 ? 2 : 2 * alignment);
  }
}

TEST_F(PoolTest, AnAlignmentThatCannotBeHadIsAConfigError) {
  for (const std::uint64_t alignment : {0ULL, 3ULL, 768ULL, 8192ULL, 1ULL << 63U}) {
    EXPECT_THROW(pool_.allocate(100, alignment, "x"), ConfigError) << alignment;
  }
  EXPECT_EQ(device_.allocations(), 0);
  EXPECT_EQ(budget_->peak_bytes(), 0U);
}

TEST_F(PoolTest, NothingIsAnEmptyBlockThatCostsNothing) {
  const Block block = pool_.allocate(0, 512, "x");
  EXPECT_EQ(block.data(), nullptr);
  EXPECT_EQ(block.size_bytes(), 0U);
  EXPECT_EQ(device_.allocations(), 0);
  EXPECT_EQ(budget_->peak_bytes(), 0U);
}

TEST_F(PoolTest, ABudgetWithoutRoomIsNotOverdrawn) {
  const Block held = pool_.allocate(8'000, 512, "arena");
  try {
    const Block refused = pool_.allocate(4'000, 512, "scratch");
    FAIL() << "allocated " << refused.size_bytes();
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), 8'192U + 4'096U);
    EXPECT_THAT(error.what(), HasSubstr("scratch"));
  }
  EXPECT_EQ(device_.allocations(), 1);
  EXPECT_EQ(budget_->used_bytes(), 8'192U);
}

TEST_F(PoolTest, ASizeThatWrapsIsABudgetError) {
  EXPECT_THROW(pool_.allocate(~0ULL, 512, "x"), BudgetError);
  EXPECT_THROW(pool_.allocate(~0ULL - 100, 512, "x"), BudgetError);
  EXPECT_EQ(device_.allocations(), 0);
}

TEST_F(PoolTest, ADeviceThatFailsIsNotCharged) {
  device_.failing_allocation = 2;
  const Block first = pool_.allocate(1'000, 512, "a");
  EXPECT_THROW(pool_.allocate(2'000, 512, "b"), BudgetError);
  EXPECT_EQ(budget_->used_bytes(), 1'024U);
  EXPECT_EQ(budget_->peak_bytes(), 1'024U + 2'048U);
  const Block third = pool_.allocate(2'000, 512, "b");
  EXPECT_EQ(budget_->used_bytes(), 1'024U + 2'048U);
}

TEST_F(PoolTest, MisalignedMemoryOfADeviceIsGivenBack) {
  device_.misalignment_bytes = 256;
  EXPECT_THROW(pool_.allocate(1'000, 512, "x"), Error);
  EXPECT_EQ(device_.live_bytes(), 0U);
  EXPECT_EQ(budget_->used_bytes(), 0U);
  EXPECT_EQ(pool_.allocate(1'000, 256, "x").size_bytes(), 1'024U);
}

TEST_F(PoolTest, TheBudgetIsChargedUntilTheMemoryIsGone) {
  std::vector<std::uint64_t> used_when_freed;
  device_.on_free = [&](std::uint64_t) { used_when_freed.push_back(budget_->used_bytes()); };
  {
    Block block = pool_.allocate(1'024, 512, "old");
    block = pool_.allocate(512, 512, "new");
    EXPECT_EQ(used_when_freed, (std::vector<std::uint64_t>{1'536}));
    EXPECT_EQ(budget_->used_bytes(), 512U);
  }
  EXPECT_EQ(used_when_freed, (std::vector<std::uint64_t>{1'536, 512}));
  EXPECT_EQ(budget_->used_bytes(), 0U);
}

TEST_F(PoolTest, MovedBlocksKeepTheirMemory) {
  Block first = pool_.allocate(600, 512, "x");
  std::byte* const data = first.data();
  Block second = std::move(first);
  EXPECT_EQ(second.data(), data);
  Block& self = second;
  second = std::move(self);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(budget_->used_bytes(), 1'024U);
}

TEST(Pool, ThreadsShareADeviceAndNeverPassTheBudget) {
  const auto device = create_host_device();
  const auto budget = Budget::create(128_KiB);
  Pool pool(*device, budget);
  std::atomic<int> refused = 0;
  std::atomic<int> clobbered = 0;
  std::latch start(8);
  {
    std::vector<std::jthread> threads;
    for (unsigned seed = 0; seed < 8; ++seed) {
      threads.emplace_back([&, seed] {
        start.arrive_and_wait();
        std::mt19937 random(seed);
        std::uniform_int_distribution<std::uint64_t> size(1, 64_KiB);
        std::vector<Block> mine;
        for (int i = 0; i < 200; ++i) {
          try {
            mine.push_back(pool.allocate(size(random), kTensorAlignment, "x"));
            mine.back().data()[0] = static_cast<std::byte>(seed);
          } catch (const BudgetError&) {
            ++refused;
          }
          if (mine.size() < 4) continue;
          clobbered += mine.front().data()[0] == static_cast<std::byte>(seed) ? 0 : 1;
          mine.erase(mine.begin());
        }
      });
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_EQ(clobbered, 0);
  EXPECT_LE(budget->peak_bytes(), budget->limit_bytes());
  EXPECT_EQ(budget->used_bytes(), 0U);
}

}  // namespace
}  // namespace tensorstream
