// Several threads, several engines, and engines that go while they load.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "engine/held_reader.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"

namespace tensorstream {
namespace {

class EngineThread : public ::testing::TestWithParam<On> {
 protected:
  const std::unique_ptr<Device> device_ = checking_device(3, 5);
};

TEST_P(EngineThread, TwoThreadsRunTwoEnginesUnderOneBudget) {
  const std::vector<TestModel> models = {uneven_model(6, 1), uneven_model(7, 2)};
  const std::uint64_t first = budgets_of(models[0].in_memory(), 3)[1];
  const std::uint64_t second = budgets_of(models[1].in_memory(), 3)[1];
  const auto budget = Budget::create(first + second);
  // The first takes what there is, so it is opened while the second's share is reserved.
  auto share = budget->reserve(second, "the second engine");
  Engine one(*device_, budget, models[0].in_memory(), EngineOptions{});
  share.release();
  Engine two(*device_, budget, models[1].in_memory(), EngineOptions{});
  std::vector<Computation> computations = {{one, models[0]}, {two, models[1]}};
  {
    std::vector<std::jthread> threads;
    for (Computation& computation : computations) {
      threads.emplace_back([&] {
        const ComputeStream stream(*device_, GetParam());
        for (int pass = 0; pass < 15; ++pass) computation.pass(stream.get());
        stream.get().synchronize();
      });
    }
  }
  EXPECT_EQ(computations[0].right(), 15 * models[0].tensor_count());
  EXPECT_EQ(computations[1].right(), 15 * models[1].tensor_count());
  EXPECT_LE(budget->peak_bytes(), first + second);
}

TEST_P(EngineThread, TwoThreadsTakeTurnsOnOneEngine) {
  const TestModel model = uneven_model(7, 6);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_engine(*device_, spec, budgets_of(spec, 4)[1]);
  Computation computation(*engine, model);
  Mutex turn;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        const ComputeStream stream(*device_, GetParam());
        for (int pass = 0; pass < 15; ++pass) {
          const MutexLock lock(turn);
          computation.pass(stream.get());
        }
        stream.get().synchronize();
      });
    }
  }
  EXPECT_EQ(computation.right(), 30 * model.tensor_count());
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST_P(EngineThread, TwoThreadsUseGroupsOfTheirOwnAtTheSameTime) {
  const TestModel model = uneven_model(10, 7);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_engine(*device_, spec, budgets_of(spec, 4)[2]);
  Computation computation(*engine, model);
  {
    std::vector<std::jthread> threads;
    for (GroupId parity = 0; parity < 2; ++parity) {
      threads.emplace_back([&, parity] {
        const ComputeStream stream(*device_, GetParam());
        std::mt19937_64 random(parity);
        for (int step = 0; step < 300; ++step) {
          const auto group = static_cast<GroupId>(random() % 5 * 2 + parity);
          static_cast<void>(computation.use(group, stream.get()));  // may have no place now
        }
        stream.get().synchronize();
      });
    }
  }
  EXPECT_GT(computation.right(), 0U);
  EXPECT_EQ(computation.wrong(), 0U);
}

/// A writer and a user: the user sees, in its lease, what the tensor is then.
TEST_P(EngineThread, WritesDuringPassesAreWholeOrNotThere) {
  const TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_engine(*device_, spec, smallest_budget_of(spec));
  std::atomic<bool> done = false;
  std::jthread writer([&] {
    for (std::uint32_t i = 0; !done; ++i) {
      const auto bytes = std::make_shared<const Bytes>(6000, static_cast<std::byte>(i & 0xFFU));
      try {
        engine->replace_tensor(i % 4, *bytes, bytes);
      } catch (const LeaseError&) {
        std::this_thread::yield();
      }
    }
  });
  const ComputeStream stream(*device_, GetParam());
  std::atomic<int> torn = 0;
  for (GroupId step = 0; step < 200; ++step) {
    ASSERT_TRUE(engine->acquire(step % 4, stream.get()));
    const TensorPlace place = engine->places(step % 4).at(0);
    auto truth = std::make_shared<Bytes>(6000);
    engine->read_tensor(place.tensor, *truth);
    stream.get().run([&torn, place, truth] {
      torn += std::memcmp(place.data, truth->data(), truth->size()) == 0 ? 0 : 1;
    });
    engine->release(step % 4, stream.get());
  }
  stream.get().synchronize();
  done = true;
  EXPECT_EQ(torn, 0);
}

TEST_P(EngineThread, StatisticsAreReadDuringPasses) {
  const TestModel model = equal_model(5, 5000);
  const auto engine = open_engine(*device_, model.in_memory(), 3 * 8192);
  std::atomic<bool> done = false;
  std::jthread reader([&] {
    std::uint64_t acquires = 0;
    while (!done) {
      const Statistics statistics = engine->statistics();
      EXPECT_EQ(statistics.acquires, statistics.hits + statistics.partial_hits + statistics.misses);
      EXPECT_GE(statistics.acquires, acquires);
      acquires = statistics.acquires;
    }
  });
  Computation computation(*engine, model);
  const ComputeStream stream(*device_, GetParam());
  for (int pass = 0; pass < 20; ++pass) computation.pass(stream.get());
  stream.get().synchronize();
  done = true;
  EXPECT_EQ(computation.right(), 100U);
}

TEST_P(EngineThread, AnEngineGoesWhileItLoads) {
  const TestModel model = uneven_model(8, 8);
  const TemporaryFolder folder;
  for (const ModelSpec& spec : {model.in_memory(), model.in_files(folder)}) {
    for (int round = 0; round < 25; ++round) {
      const ComputeStream stream(*device_, GetParam());
      auto engine = open_engine(*device_, spec, budgets_of(spec, 6)[3]);
      Computation computation(*engine, model);
      for (GroupId group = 0; group < static_cast<GroupId>(round % 8); ++group) {
        ASSERT_TRUE(computation.use(group, stream.get()));
      }
      engine.reset();
      stream.get().synchronize();
      EXPECT_EQ(computation.wrong(), 0U);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Streams, EngineThread, ::testing::Values(On::kCaller, On::kQueue),
                         on_name);

TEST(EngineWaiter, KeepsTheLeaseThatItWaitsForWhenAllAreReleased) {
  const TestModel model = equal_model(2, 5000);
  ModelSpec spec = model.in_memory();
  const auto held = std::make_shared<HeldReader>(spec.sources[0]);
  spec.sources[0] = held;
  const auto device = checking_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
  Computation computation(*engine, model);
  std::jthread waiter(
      [&] { EXPECT_NO_THROW(EXPECT_TRUE(computation.use(0, device->caller_stream()))); });
  held->wait_until_begun();
  engine->release_all(device->caller_stream());
  EXPECT_FALSE(engine->acquire(1, device->caller_stream()));
  held->open();
  waiter.join();
  EXPECT_TRUE(computation.use(1, device->caller_stream()));
  EXPECT_EQ(computation.right(), 2U);
}

TEST(EngineSetBudgetBesideLeases, WaitsForTheLastOfThem) {
  const TestModel model = equal_model(4, 5000);
  const ModelSpec spec = model.in_memory();
  const auto device = checking_device();
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  Stream& caller = device->caller_stream();
  ASSERT_TRUE(engine->acquire(0, caller));
  ASSERT_TRUE(engine->acquire(0, caller));
  std::atomic<int> asked = 0;
  std::atomic<bool> is_set = false;
  std::jthread mover([&] {
    engine->set_budget(everything_of(spec),
                       {.longest = std::chrono::seconds(60), .check = [&] { ++asked; }});
    is_set = true;
  });
  EXPECT_TRUE(eventually([&] { return asked > 2; }));
  engine->release(0, caller);
  EXPECT_TRUE(stays_false([&] { return is_set.load(); }));
  engine->release(0, caller);
  mover.join();
  EXPECT_TRUE(engine->settled(0));
  EXPECT_EQ(engine->statistics().budget_bytes, everything_of(spec));
}

TEST(EngineSetBudgetBesideLeases, GivesUpWhereItIsToldToOrHasWaitedForLong) {
  const TestModel model = equal_model(4, 5000);
  const ModelSpec spec = model.in_memory();
  const auto device = checking_device();
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  ASSERT_TRUE(engine->acquire(0, device->caller_stream()));
  int asked = 0;
  const auto check = [&] {
    if (++asked == 3) throw UnsupportedError("given up");
  };
  EXPECT_THROW(engine->set_budget(everything_of(spec), {.check = check}), UnsupportedError);
  EXPECT_THROW(engine->set_budget(everything_of(spec),
                                  {.longest = std::chrono::milliseconds(30), .check = {}}),
               LeaseError);
  EXPECT_EQ(engine->statistics().budget_bytes, smallest_budget_of(spec));
  engine->release(0, device->caller_stream());
  Computation computation(*engine, model);
  computation.pass(device->caller_stream());
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST(EngineDestruction, WaitsForAReadUnderWay) {
  const TestModel model = equal_model(3, 5000);
  ModelSpec spec = model.in_memory();
  const auto held = std::make_shared<HeldReader>(spec.sources[0]);
  spec.sources[0] = held;
  const auto device = checking_device();
  auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  held->wait_until_begun();
  std::atomic<bool> gone = false;
  std::jthread closer([&] {
    engine.reset();
    gone = true;
  });
  EXPECT_TRUE(stays_false([&] { return gone.load(); }));
  held->open();
}

TEST(EngineDestruction, GivesItsBytesBack) {
  const TestModel model = equal_model(5, 5000);
  const auto device = checking_device();
  const auto budget = Budget::create(3 * 8192);
  EngineOptions options;
  options.fixed_bytes = 4000;
  for (int round = 0; round < 3; ++round) {
    Engine engine(*device, budget, model.in_memory(), options);
    EXPECT_GT(budget->used_bytes(), 4000U + 8192U);
  }
  EXPECT_EQ(budget->used_bytes(), 0U);
}

}  // namespace
}  // namespace tensorstream
