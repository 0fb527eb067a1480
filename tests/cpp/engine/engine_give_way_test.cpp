// Residents that give way in the midst of a pass, and come back.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "device/gate.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kGroupBytes = 8192;  // what a group of 6000 bytes takes

class EngineGiveWay : public ::testing::TestWithParam<Prefetch> {
 protected:
  std::unique_ptr<Engine> open(const ModelSpec& spec, std::uint64_t limit_bytes) {
    EngineOptions options = with_prefetch(GetParam());
    options.residents = ResidentUse::kLeased;
    options.rates.link_bytes_per_second = link_bytes_per_second_;
    budget_ = Budget::create(limit_bytes);
    return std::make_unique<Engine>(*device_, budget_, spec, options);
  }

  /// A pass, and the end of its loads: what is on its way does not give way.
  void pass_and_settle(Engine& engine, Computation& computation, Stream& stream) {
    computation.pass(stream);
    settle(engine, stream);
  }
  void pass_and_settle(Engine& engine, Computation& computation, std::span<const GroupId> order,
                       Stream& stream) {
    computation.pass(order, stream);
    settle(engine, stream);
  }
  static void settle(Engine& engine, Stream& stream) {
    stream.synchronize();
    std::uint64_t loads = 0;
    ASSERT_TRUE(eventually([&] {
      const std::uint64_t before = std::exchange(loads, engine.statistics().loads);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      return before == loads && loads != 0;
    }));
  }

  const std::unique_ptr<Device> device_ = checking_device();
  std::shared_ptr<Budget> budget_;
  double link_bytes_per_second_ = 5e9;
};

TEST_P(EngineGiveWay, LeasedResidentsAreRightAndLoadedOnce) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(6, 6000);
  const ModelSpec spec = model.in_files(folder);
  const auto engine = open(spec, everything_of(spec));
  Computation computation(*engine, model);
  for (int pass = 0; pass < 4; ++pass) computation.pass(device_->caller_stream());
  EXPECT_EQ(computation.right(), 24U);
  EXPECT_TRUE(eventually([&] { return engine->statistics().loads == 6; }));
  for (GroupId group = 0; group < 6; ++group) EXPECT_FALSE(engine->settled(group));
}

TEST_P(EngineGiveWay, FreesWhatIsAskedForAndIsStreamedFromThenOn) {
  const TestModel model = equal_model(8, 6000);
  const ModelSpec spec = model.in_memory();
  const std::uint64_t limit = smallest_budget_of(spec) + 4 * kGroupBytes;
  const auto engine = open(spec, limit);
  Computation computation(*engine, model);
  pass_and_settle(*engine, computation, device_->caller_stream());
  const std::uint64_t held = engine->statistics().held_bytes;
  for (int step = 1; step <= 2; ++step) {
    EXPECT_EQ(engine->give_way(kGroupBytes - 100), kGroupBytes);
    EXPECT_EQ(engine->statistics().held_bytes, held - static_cast<unsigned>(step) * kGroupBytes);
    EXPECT_EQ(engine->statistics().given_way_bytes, static_cast<unsigned>(step) * kGroupBytes);
    for (int pass = 0; pass < 2; ++pass) computation.pass(device_->caller_stream());
  }
  EXPECT_EQ(computation.wrong(), 0U);
  EXPECT_EQ(engine->statistics().gave_way, 2U);
  EXPECT_LE(budget_->peak_bytes(), limit);
}

/// How many groups lie in the place of the one that is used before them, residents left out.
int neighbours_that_share(const Engine& engine) {
  int count = 0;
  const std::byte* before = nullptr;
  for (GroupId group = 0; group < engine.groups().size(); ++group) {
    if (engine.has_own_place(group)) continue;
    const std::byte* const place = engine.places(group).front().data;
    if (place == before) ++count;
    before = place;
  }
  return count;
}

// What gives way is put where it does not share bytes with the group before it, but with the one
// after it it may.
TEST_P(EngineGiveWay, AfterItGroupsAreArrangedAnewUntilTheyComeBack) {
  const TestModel model = equal_model(12, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, smallest_budget_of(spec) + 5 * kGroupBytes);
  const Plan before = engine->plan();
  Computation computation(*engine, model);
  Stream& stream = device_->caller_stream();
  pass_and_settle(*engine, computation, stream);
  std::vector<Reservation> others;
  int shared = 0;
  for (int step = 0; step < 3; ++step) {
    const std::uint64_t freed = engine->give_way(kGroupBytes);
    if (freed == 0) break;
    others.push_back(budget_->reserve(freed, "what they gave way to"));
    computation.pass(stream);
    shared = std::max(shared, neighbours_that_share(*engine));
    const std::uint64_t moves = engine->place_moves();
    ASSERT_TRUE(engine->acquire(0, stream));
    engine->adapt(0);  // not while somebody uses it
    EXPECT_EQ(engine->place_moves(), moves);
    engine->release(0, stream);
    engine->adapt(0);
    computation.pass(stream);
    EXPECT_EQ(computation.wrong(), 0U);
    if (GetParam() == Prefetch::kReadAhead) continue;  // all lie in one place
    EXPECT_LE(neighbours_that_share(*engine), 1) << "of an odd number one has to";
    const std::uint64_t moved = engine->place_moves();
    engine->adapt(0);
    EXPECT_EQ(engine->place_moves(), moved);
  }
  EXPECT_GT(shared, 1);
  EXPECT_GT(engine->statistics().given_way_bytes, 0U);
  others.clear();
  EXPECT_GT(engine->take_back(0), 0U);
  EXPECT_EQ(engine->plan().resident_bytes, before.resident_bytes);
  EXPECT_EQ(engine->statistics().given_way_bytes, 0U);
  computation.pass(stream);
  EXPECT_EQ(computation.wrong(), 0U);
  EXPECT_LE(budget_->peak_bytes(), budget_->limit_bytes());
}

TEST_P(EngineGiveWay, TheOrderIsKnownStillWhereGroupsFindOtherPlaces) {
  const TestModel model = equal_model(8, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, smallest_budget_of(spec) + 4 * kGroupBytes);
  Computation computation(*engine, model);
  Stream& stream = device_->caller_stream();
  const std::vector<GroupId> backwards = {7, 6, 5, 4, 3, 2, 1, 0};
  for (int pass = 0; pass < 3; ++pass) computation.pass(backwards, stream);
  const std::uint64_t surprises = engine->statistics().surprises;
  EXPECT_GT(surprises, 0U);
  ASSERT_TRUE(engine->make_room(2 * kGroupBytes));
  computation.pass(backwards, stream);
  EXPECT_EQ(engine->statistics().surprises, surprises);
  EXPECT_EQ(computation.wrong(), 0U);
}

// Places in which what follows each other in a forward shares no bytes, and a block's parts do.
TEST_P(EngineGiveWay, BackwardFindsABlockThatWasComputedAgain) {
  const TestModel model = llama_like_model();
  link_bytes_per_second_ = 54e6;  // leases would take longer than loads
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, 400_KiB);
  Computation computation(*engine, model);
  Stream& stream = device_->caller_stream();
  const std::vector<GroupId> step = llama_like_step();
  const auto loads_of_step = [&] {
    const std::uint64_t before = engine->statistics().loads;
    pass_and_settle(*engine, computation, step, stream);
    return engine->statistics().loads - before;
  };
  for (int i = 0; i < 3; ++i) loads_of_step();
  const std::uint64_t before = loads_of_step();
  const std::uint64_t moves = engine->place_moves();
  ASSERT_TRUE(engine->acquire(0, stream));
  const bool ahead = GetParam() != Prefetch::kReadAhead;  // else all lie in one place
  EXPECT_EQ(engine->adapt_to_order(0), !ahead) << "while somebody uses it";
  EXPECT_EQ(engine->place_moves(), moves);
  engine->release(0, stream);
  EXPECT_TRUE(engine->adapt_to_order(0));
  loads_of_step();
  const std::uint64_t after = loads_of_step();
  EXPECT_EQ(computation.wrong(), 0U);
  if (ahead) {
    EXPECT_LT(after, before);
  } else {
    EXPECT_EQ(engine->place_moves(), moves);
  }
}

TEST_P(EngineGiveWay, GivesAllThatMayGoAndNoMore) {
  TestModel model = equal_model(6, 6000);
  const GroupId kept = model.add_group({6000}, Residency::kRequired);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec));
  Computation computation(*engine, model);
  pass_and_settle(*engine, computation, device_->caller_stream());
  // Nothing was streamed: what gives way also pays for the arena that it is streamed through.
  EXPECT_EQ(engine->give_way(1_GiB), 5 * kGroupBytes);
  EXPECT_EQ(engine->give_way(1), 0U);
  EXPECT_EQ(engine->statistics().held_bytes, smallest_budget_of(spec));
  EXPECT_TRUE(engine->settled(kept));
  for (int pass = 0; pass < 2; ++pass) computation.pass(device_->caller_stream());
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST_P(EngineGiveWay, WorkThatUsesWhatGoesIsDoneFirst) {
  const TestModel model = equal_model(3, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec));
  Computation computation(*engine, model);
  const auto stream = device_->create_stream();
  pass_and_settle(*engine, computation, *stream);
  ASSERT_TRUE(engine->acquire(0, *stream));
  Gate gate(*stream);
  computation.compute(0, *stream);
  engine->release(0, *stream);
  std::atomic<bool> gone = false;
  std::jthread giving_way([&] {
    static_cast<void>(engine->give_way(1_GiB));
    gone = true;
  });
  EXPECT_TRUE(stays_false([&] { return gone.load(); }));
  gate.open();
  giving_way.join();
  stream->synchronize();
  EXPECT_EQ(computation.right(), 4U);
}

TEST_P(EngineGiveWay, WhatIsLeasedStays) {
  const TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec));
  Computation computation(*engine, model);
  Stream& stream = device_->caller_stream();
  pass_and_settle(*engine, computation, stream);
  ASSERT_TRUE(engine->acquire(1, stream));
  EXPECT_EQ(engine->give_way(1_GiB), 2 * kGroupBytes);
  computation.compute(1, stream);
  engine->release(1, stream);
  EXPECT_EQ(engine->give_way(1_GiB), kGroupBytes);
  computation.pass(stream);
  EXPECT_EQ(computation.wrong(), 0U);
}

/// The group that was used last is needed last.
TEST_P(EngineGiveWay, TheFurthestNextUseGoesFirst) {
  const TestModel model = equal_model(5, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec) + 4 * kGroupBytes);
  Computation computation(*engine, model);
  Stream& stream = device_->caller_stream();
  pass_and_settle(*engine, computation, stream);
  for (GroupId group = 0; group < 3; ++group) ASSERT_TRUE(computation.use(group, stream));
  const std::uint32_t number = engine->place_number(2);
  EXPECT_EQ(engine->give_way(1), kGroupBytes);
  EXPECT_NE(engine->place_number(2), number);
}

/// The memory goes when the last work that reads it is done, not before.
TEST_P(EngineGiveWay, WaitsForTheLastUse) {
  const TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec));
  const auto stream = device_->create_stream();
  Computation computation(*engine, model);
  pass_and_settle(*engine, computation, *stream);
  Gate gate(*stream);
  computation.pass(*stream);  // reads once the gate is open
  const std::jthread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    gate.open();
  });
  EXPECT_EQ(engine->give_way(1_GiB), 3 * kGroupBytes);
  stream->synchronize();
  EXPECT_EQ(computation.right(), 8U);
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST_P(EngineGiveWay, ComesBackWhereThereIsRoom) {
  const TestModel model = equal_model(6, 6000);
  const ModelSpec spec = model.in_memory();
  const std::uint64_t limit = smallest_budget_of(spec) + 3 * kGroupBytes;
  const auto engine = open(spec, limit);
  const auto stream = device_->create_stream();
  Computation computation(*engine, model);
  pass_and_settle(*engine, computation, *stream);
  const std::uint64_t held = engine->statistics().held_bytes;
  {
    const std::uint64_t freed = engine->give_way(2 * kGroupBytes);
    const auto taken = budget_->try_reserve(freed);  // as activations are
    ASSERT_TRUE(taken);
    computation.pass(*stream);
    EXPECT_EQ(engine->take_back(0), 0U);
    EXPECT_EQ(engine->statistics().given_way_bytes, freed);
  }
  computation.pass(*stream);
  EXPECT_EQ(engine->take_back(2 * kGroupBytes), 0U) << "what is to be spared is not taken";
  EXPECT_EQ(engine->take_back(kGroupBytes), kGroupBytes);
  computation.pass(*stream);
  EXPECT_EQ(engine->take_back(0), kGroupBytes);
  EXPECT_EQ(engine->statistics().held_bytes, held);
  EXPECT_EQ(engine->statistics().given_way_bytes, 0U);
  for (int pass = 0; pass < 2; ++pass) computation.pass(*stream);
  stream->synchronize();
  EXPECT_EQ(computation.wrong(), 0U);
  EXPECT_LE(budget_->peak_bytes(), limit);
}

TEST_P(EngineGiveWay, WrittenBytesSurviveEveryMove) {
  TestModel model = equal_model(5, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec));
  Computation computation(*engine, model);
  Stream& stream = device_->caller_stream();
  for (int round = 0; round < 6; ++round) {
    const auto tensor = static_cast<TensorId>(round % 5);
    const auto bytes = model.change(tensor);
    engine->replace_tensor(tensor, *bytes, bytes);
    computation.pass(stream);
    if (round % 3 == 1) static_cast<void>(engine->give_way(2 * kGroupBytes));
    if (round % 3 == 2) static_cast<void>(engine->take_back(0));
    computation.pass(stream);
  }
  EXPECT_EQ(computation.wrong(), 0U);
}

/// From a thread that is not the one that uses the engine, as an allocator's may be.
TEST_P(EngineGiveWay, WhileAnotherThreadComputes) {
  const TestModel model = uneven_model(9, 8);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, budgets_of(spec, 4)[2]);
  Computation computation(*engine, model);
  const auto stream = device_->create_stream();
  std::jthread other([&](const std::stop_token& stop) {
    std::mt19937_64 random(3);
    while (!stop.stop_requested()) {
      static_cast<void>(engine->give_way(1 + random() % 20'000));
      static_cast<void>(engine->take_back(random() % 9000));
      static_cast<void>(engine->statistics());
    }
  });
  for (int pass = 0; pass < 20; ++pass) {
    for (GroupId group = 0; group < 9; ++group) {
      // False where the arena could not be had; it is made again by the next that gives way.
      static_cast<void>(computation.use(group, *stream));
    }
  }
  other.request_stop();
  other.join();
  stream->synchronize();
  EXPECT_EQ(computation.wrong(), 0U);
  EXPECT_GT(computation.right(), 9U);
}

TEST_P(EngineGiveWay, ANewBudgetPlacesAllAnew) {
  const TestModel model = equal_model(6, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec));
  Computation computation(*engine, model);
  Stream& stream = device_->caller_stream();
  for (const std::uint64_t limit : budgets_of(spec, 4)) {
    computation.pass(stream);
    static_cast<void>(engine->give_way(2 * kGroupBytes));
    computation.pass(stream);
    engine->set_budget(limit);
    EXPECT_EQ(engine->statistics().given_way_bytes, 0U);
    EXPECT_LE(budget_->used_bytes(), limit);
    computation.pass(stream);
  }
  EXPECT_EQ(computation.wrong(), 0U);
}

/// Where all fits and as much again is free, nobody pays for leases.
TEST_P(EngineGiveWay, WithRoomForAsMuchAgainAllIsSettled) {
  const TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_memory();
  for (const bool roomy : {false, true}) {
    const auto engine = open(spec, 2 * everything_of(spec) - (roomy ? 0 : 1));
    for (GroupId group = 0; group < 4; ++group) EXPECT_EQ(engine->settled(group), roomy);
  }
}

/// From settled residents, which may have been written to, to leased ones and back.
TEST_P(EngineGiveWay, ABudgetThatMovesChangesWhetherResidentsAreLeased) {
  const TemporaryFolder folder;
  TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_files(folder);
  const auto engine = open(spec, 2 * everything_of(spec));
  Computation computation(*engine, model);
  for (int round = 0; round < 3; ++round) {
    const auto bytes = model.change(2);
    std::memcpy(engine->places(2)[0].data, bytes->data(), bytes->size());
    engine->set_budget(everything_of(spec));
    EXPECT_FALSE(engine->settled(2));
    computation.pass(device_->caller_stream());
    engine->set_budget(2 * everything_of(spec));
    EXPECT_TRUE(engine->settled(2));
    computation.pass(device_->caller_stream());
  }
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST(EngineGiveWaySettled, SettledResidentsStay) {
  const TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_memory();
  const auto device = checking_device();
  const auto engine = open_engine(*device, spec, everything_of(spec));
  EXPECT_EQ(engine->give_way(1), 0U);
  EXPECT_EQ(engine->take_back(0), 0U);
}

INSTANTIATE_TEST_SUITE_P(Loading, EngineGiveWay,
                         ::testing::Values(Prefetch::kNone, Prefetch::kAhead, Prefetch::kReadAhead),
                         loading_name);

}  // namespace
}  // namespace tensorstream
