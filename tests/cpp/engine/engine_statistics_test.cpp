// Counters, exactly, in scripted runs.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "engine/held_reader.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"

namespace tensorstream {
namespace {

/// Waits until every load that an acquire started is counted: a copy's end is counted just after
/// it.
void settle(const Engine& engine) {
  EXPECT_TRUE(eventually([&] {
    const Statistics statistics = engine.statistics();
    return statistics.loads == statistics.misses;
  }));
}

/// Four equal groups in one place, nothing loaded ahead.
class EngineStatistics : public ::testing::Test {
 protected:
  void use(std::initializer_list<GroupId> order) {
    for (const GroupId group : order) {
      ASSERT_TRUE(engine_->acquire(group, stream_));
      engine_->release(group, stream_);
      settle(*engine_);
    }
  }

  const TestModel model_ = equal_model(4, 5000);
  const ModelSpec spec_ = model_.in_memory();
  const std::unique_ptr<Device> device_ = checking_device();
  Stream& stream_ = device_->caller_stream();
  const std::unique_ptr<Engine> engine_ =
      open_engine(*device_, spec_, smallest_budget_of(spec_), with_prefetch(Prefetch::kNone));
};

TEST_F(EngineStatistics, BeforeTheFirstUse) {
  const Statistics statistics = engine_->statistics();
  EXPECT_EQ(statistics.budget_bytes, 8192U);
  EXPECT_EQ(statistics.held_bytes, 8192U);
  EXPECT_EQ(statistics.peak_held_bytes, 8192U);
  EXPECT_EQ(statistics.source_ram_bytes, 20'000U);
  EXPECT_EQ(statistics.acquires, 0U);
  EXPECT_EQ(statistics.loads, 0U);
  EXPECT_EQ(statistics.active_seconds, 0);
  EXPECT_EQ(statistics.stalled_share(), 0);
  EXPECT_EQ(statistics.streamed_bytes_per_second(), 0);
}

TEST_F(EngineStatistics, EveryUseInOnePlaceIsAMiss) {
  use({0, 1, 2, 3, 0, 1, 2, 3});
  const Statistics statistics = engine_->statistics();
  EXPECT_EQ(statistics.acquires, 8U);
  EXPECT_EQ(statistics.misses, 8U);
  EXPECT_EQ(statistics.hits, 0U);
  EXPECT_EQ(statistics.partial_hits, 0U);
  EXPECT_EQ(statistics.loads, 8U);
  EXPECT_EQ(statistics.streamed_bytes, 40'000U);
  EXPECT_EQ(statistics.streamed_ram_bytes, 40'000U);
  EXPECT_EQ(statistics.streamed_disk_bytes, 0U);
  EXPECT_EQ(statistics.surprises, 0U);
  EXPECT_GT(statistics.load_seconds, 0);
  EXPECT_GT(statistics.stalled_seconds, 0);
  EXPECT_LE(statistics.stalled_seconds, statistics.active_seconds);
  EXPECT_DOUBLE_EQ(statistics.streamed_bytes_per_second(), 40'000 / statistics.load_seconds);
}

TEST_F(EngineStatistics, AGroupStillInItsPlaceIsAHit) {
  use({0, 0, 0, 1, 1});
  const Statistics statistics = engine_->statistics();
  EXPECT_EQ(statistics.hits, 3U);
  EXPECT_EQ(statistics.misses, 2U);
  EXPECT_EQ(statistics.loads, 2U);
  EXPECT_EQ(statistics.streamed_bytes, 10'000U);
}

TEST_F(EngineStatistics, ANestedLeaseIsAHit) {
  ASSERT_TRUE(engine_->acquire(2, stream_));
  settle(*engine_);
  use({2, 2});
  EXPECT_FALSE(engine_->acquire(3, stream_));  // counts as nothing
  engine_->release(2, stream_);
  const Statistics statistics = engine_->statistics();
  EXPECT_EQ(statistics.acquires, 3U);
  EXPECT_EQ(statistics.hits, 2U);
  EXPECT_EQ(statistics.misses, 1U);
}

TEST_F(EngineStatistics, UsesInAnotherOrderAreSurprises) {
  use({0, 1, 2, 3});
  EXPECT_EQ(engine_->statistics().surprises, 0U);
  use({0, 2});  // 2 instead of 1
  EXPECT_EQ(engine_->statistics().surprises, 1U);
  use({3, 0, 2, 3, 0, 2});  // as learnt
  EXPECT_EQ(engine_->statistics().surprises, 1U);
}

TEST_F(EngineStatistics, ReplacedBytesAreLoadedAgain) {
  use({0, 0});
  engine_->replace_tensor(0, *model_.bytes(0), model_.bytes(0));
  use({0});
  const Statistics statistics = engine_->statistics();
  EXPECT_EQ(statistics.hits, 1U);
  EXPECT_EQ(statistics.misses, 2U);
  EXPECT_EQ(statistics.loads, 2U);
  EXPECT_EQ(statistics.source_ram_bytes, 20'000U);
}

TEST_F(EngineStatistics, ActiveTimeBeginsWithTheFirstUse) {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const Clock::time_point start = Clock::now();
  use({0});
  const double active = engine_->statistics().active_seconds;
  EXPECT_GT(active, 0);
  EXPECT_LE(active, seconds_since(start));
}

TEST(EngineStatisticsTiers, BytesAreCountedByTier) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(3, 5000);
  const ModelSpec files = model.in_files(folder);
  ModelSpec spec = model.in_memory();
  spec.sources[1] = files.sources[1];
  const auto device = checking_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
  Computation computation(*engine, model);
  for (int pass = 0; pass < 4; ++pass) computation.pass(device->caller_stream());
  settle(*engine);
  const Statistics statistics = engine->statistics();
  EXPECT_EQ(statistics.streamed_ram_bytes, 4 * 2 * 5000U);
  EXPECT_EQ(statistics.streamed_disk_bytes, 4 * 5000U);
  EXPECT_EQ(statistics.streamed_bytes, 4 * 3 * 5000U);
  EXPECT_EQ(statistics.source_ram_bytes, 2 * 5000U);
}

TEST(EngineStatisticsTiers, FailedLoadsMoveNothing) {
  const TestModel model = equal_model(2, 5000);
  ModelSpec spec = model.in_memory();
  const auto bytes = model.bytes(0);
  spec.sources[0] = std::make_shared<FaultyReader>(create_memory_reader("a disk", *bytes, bytes),
                                                   Faults{.failing_read = 1});
  const auto device = checking_device();
  Stream& stream = device->caller_stream();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
  EXPECT_THROW(static_cast<void>(engine->acquire(0, stream)), IoError);
  EXPECT_EQ(engine->statistics().streamed_bytes, 0U);
  ASSERT_TRUE(engine->acquire(0, stream));
  engine->release(0, stream);
  settle(*engine);
  const Statistics statistics = engine->statistics();
  EXPECT_EQ(statistics.misses, 2U);
  EXPECT_EQ(statistics.streamed_bytes, 5000U);
}

TEST(EngineStatisticsResidents, UsesOfResidentsAreHits) {
  const TestModel model = equal_model(3, 5000);
  const auto device = checking_device();
  const auto engine = open_engine(*device, model.in_memory(), everything_of(model.in_memory()));
  Computation computation(*engine, model);
  for (int pass = 0; pass < 2; ++pass) computation.pass(device->caller_stream());
  const Statistics statistics = engine->statistics();
  EXPECT_EQ(statistics.acquires, 6U);
  EXPECT_EQ(statistics.hits, 6U);
  EXPECT_EQ(statistics.loads, 0U);
  EXPECT_EQ(statistics.held_bytes, 3 * 8192U);
  EXPECT_EQ(statistics.stalled_seconds, 0);
}

TEST(EngineStatisticsAhead, AnAcquireDuringItsLoadIsAPartialHit) {
  const TestModel model = equal_model(2, 5000);
  ModelSpec spec = model.in_memory();
  const auto held = std::make_shared<HeldReader>(spec.sources[0]);
  spec.sources[0] = held;
  const auto device = checking_device();
  Stream& stream = device->caller_stream();
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  held->wait_until_begun();
  std::jthread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    held->open();
  });
  ASSERT_TRUE(engine->acquire(0, stream));
  engine->release(0, stream);
  const Statistics statistics = engine->statistics();
  EXPECT_EQ(statistics.acquires, 1U);
  EXPECT_EQ(statistics.partial_hits, 1U);
  EXPECT_EQ(statistics.hits + statistics.misses, 0U);
}

/// Half of the places that a pass needs: loading ahead must not take what is needed sooner, so that
/// each group is loaded once for each use.
TEST(EngineStatisticsAhead, EachUseNeedsOneLoad) {
  for (const Prefetch prefetch : {Prefetch::kNext, Prefetch::kAhead}) {
    const TestModel model = equal_model(8, 5000);
    const ModelSpec spec = model.in_memory();
    const auto device = checking_device();
    const auto engine =
        open_engine(*device, spec, 3 * smallest_budget_of(spec), with_prefetch(prefetch));
    ASSERT_EQ(engine->plan().exposed_loads, 0U);
    std::uint64_t streamed = 0;
    const Plan plan = engine->plan();
    for (const GroupPlacement& group : plan.groups) {
      streamed += group.placement == Placement::kStreamed ? 1U : 0U;
    }
    ASSERT_GT(streamed, 2U);
    Computation computation(*engine, model);
    for (int pass = 0; pass < 5; ++pass) {
      for (GroupId group = 0; group < 8; ++group) {
        ASSERT_TRUE(engine->acquire(group, device->caller_stream()));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // time to load ahead
        engine->release(group, device->caller_stream());
      }
    }
    const Statistics statistics = engine->statistics();
    EXPECT_GE(statistics.loads, 5 * streamed - 1);
    EXPECT_LE(statistics.loads, 5 * streamed + streamed);
    EXPECT_EQ(statistics.surprises, 0U);
  }
}

/// All groups but the last are loaded before they are asked for, once there was time.
TEST(EngineStatisticsAhead, WithTimeToLoadEveryUseIsAHit) {
  const TestModel model = equal_model(7, 5000);
  const ModelSpec spec = model.in_memory();
  const auto device = checking_device();
  const auto engine = open_engine(*device, spec, 3 * smallest_budget_of(spec));
  Stream& stream = device->caller_stream();
  std::vector<GroupId> streamed;
  for (GroupId group = 0; group < 7; ++group) {
    if (engine->plan().groups[group].placement == Placement::kStreamed) streamed.push_back(group);
  }
  std::uint64_t loads = 1;
  for (int pass = 0; pass < 4; ++pass) {
    for (const GroupId group : streamed) {
      ASSERT_TRUE(eventually([&] { return engine->statistics().loads >= loads; }));
      ++loads;
      ASSERT_TRUE(engine->acquire(group, stream));
      engine->release(group, stream);
    }
  }
  const Statistics statistics = engine->statistics();
  EXPECT_EQ(statistics.hits, 4 * streamed.size());
  EXPECT_EQ(statistics.misses + statistics.partial_hits, 0U);
}

}  // namespace
}  // namespace tensorstream
