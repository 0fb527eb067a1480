// A budget that moves while the engine lives: groups find other places, and their bytes are right.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

class EngineSetBudget : public ::testing::TestWithParam<Prefetch> {
 protected:
  std::unique_ptr<Engine> open(const ModelSpec& spec, std::uint64_t limit_bytes) {
    budget_ = Budget::create(limit_bytes);
    return std::make_unique<Engine>(*device_, budget_, spec, with_prefetch(GetParam()));
  }

  const std::unique_ptr<Device> device_ = checking_device();
  std::shared_ptr<Budget> budget_;
};

std::uint64_t residents_of(const Engine& engine) {
  std::uint64_t count = 0;
  for (GroupId group = 0; group < engine.groups().size(); ++group) {
    if (engine.settled(group)) ++count;
  }
  return count;
}

TEST_P(EngineSetBudget, EveryBudgetGivesTheSameBytes) {
  const TemporaryFolder folder;
  TestModel model = uneven_model(9, 6);
  for (const ModelSpec& spec :
       {model.in_memory(), model.in_files(folder), model.in_pieces(folder)}) {
    const std::vector<std::uint64_t> budgets = budgets_of(spec, 6);
    const auto engine = open(spec, budgets[2]);
    Computation computation(*engine, model);
    computation.pass(device_->caller_stream());
    for (const std::size_t step : {5U, 0U, 3U, 1U, 5U, 4U, 0U}) {
      SCOPED_TRACE("budget " + std::to_string(step));
      engine->set_budget(budgets[step]);
      EXPECT_EQ(budget_->limit_bytes(), budgets[step]);
      EXPECT_LE(engine->statistics().held_bytes, budgets[step]);
      EXPECT_EQ(budget_->used_bytes(), engine->statistics().held_bytes);
      for (int i = 0; i < 2; ++i) computation.pass(device_->caller_stream());
    }
    EXPECT_EQ(computation.wrong(), 0U);
  }
}

TEST_P(EngineSetBudget, IsFilledAsIfItHadBeenOpenedWithIt) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(10, 6000);
  const ModelSpec spec = model.in_files(folder);
  const auto engine = open(spec, smallest_budget_of(spec));
  std::uint64_t before = residents_of(*engine);
  for (const std::uint64_t limit : budgets_of(spec, 5)) {
    engine->set_budget(limit);
    const auto opened = open_engine(*device_, spec, limit, with_prefetch(GetParam()));
    EXPECT_EQ(residents_of(*engine), residents_of(*opened));
    EXPECT_EQ(engine->plan().streamed_bytes, opened->plan().streamed_bytes);
    EXPECT_GE(residents_of(*engine), before);
    before = residents_of(*engine);
  }
  EXPECT_EQ(before, 10U);
}

/// Where groups find places, and leave them, while others read weights without a lease.
TEST_P(EngineSetBudget, WhoReadsMeanwhileGetsTheBytes) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(8, 1'000'000);
  const ModelSpec spec = model.in_files(folder);
  const std::uint64_t smallest = smallest_budget_of(spec);
  const auto engine = open(spec, smallest);
  std::atomic<bool> over{false};
  std::atomic<int> reads{0};
  std::atomic<int> wrong{0};
  std::vector<std::jthread> readers;
  for (TensorId first = 0; first < 2; ++first) {
    readers.emplace_back([&, first] {
      for (TensorId tensor = first; !over; tensor = (tensor + 1) % 8) {
        std::vector<std::byte> out(spec.tensors[tensor].size_bytes);
        engine->read_tensor(tensor, out);
        ++reads;
        if (!std::ranges::equal(out, *model.bytes(tensor))) ++wrong;
      }
    });
  }
  for (int turn = 0; turn < 25 || reads < 100; ++turn) {
    engine->set_budget(everything_of(spec));
    engine->set_budget(smallest);
  }
  over = true;
  readers.clear();
  EXPECT_EQ(wrong, 0) << "of " << reads;
}

/// Nothing is read twice but what was not resident before.
TEST_P(EngineSetBudget, ResidentsThatStayAreNotLoadedAgain) {
  const TestModel model = equal_model(4, 6000);
  ModelSpec spec = model.in_memory();
  spec.sources[0] = std::make_shared<FaultyReader>(
      create_memory_reader("a disk", *model.bytes(0), model.bytes(0)), Faults{.failing_read = 2});
  const auto engine = open(spec, everything_of(spec));
  EXPECT_NO_THROW(engine->set_budget(everything_of(spec) + 100'000));
  EXPECT_EQ(residents_of(*engine), 4U);
}

TEST_P(EngineSetBudget, TooLittleIsRefusedAndNothingChanges) {
  const TestModel model = equal_model(6, 6000);
  const ModelSpec spec = model.in_memory();
  const std::uint64_t limit = budgets_of(spec, 3)[1];
  const auto engine = open(spec, limit);
  const std::uint64_t held = engine->statistics().held_bytes;
  try {
    engine->set_budget(smallest_budget_of(spec) - 1);
    FAIL() << "it was accepted";
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), smallest_budget_of(spec));
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(smallest_budget_of(spec))));
  }
  EXPECT_EQ(budget_->limit_bytes(), limit);
  EXPECT_EQ(engine->statistics().held_bytes, held);
  Computation computation(*engine, model);
  computation.pass(device_->caller_stream());
  EXPECT_EQ(computation.wrong(), 0U);
}

/// What is kept of the budget for calling code: what is used and not held.
TEST_P(EngineSetBudget, WhatIsKeptForCallingCodeFollowsTheLimit) {
  const TestModel model = equal_model(6, 6'000'000);
  const ModelSpec spec = model.in_memory();
  const std::uint64_t smallest = smallest_budget_of(spec);
  EngineOptions options = with_prefetch(GetParam());
  options.reserved_share = kActivationShare;
  budget_ = Budget::create(2 * smallest);
  Engine engine(*device_, budget_, spec, options);
  const auto kept = [&] { return budget_->used_bytes() - engine.statistics().held_bytes; };
  EXPECT_EQ(kept(), outside_bytes(2 * smallest));
  for (const std::uint64_t limit : {3 * smallest, smallest + 1000, 2 * smallest, smallest}) {
    engine.set_budget(limit);
    EXPECT_EQ(kept(), std::min(outside_bytes(limit), limit - smallest)) << limit;
    EXPECT_LE(budget_->used_bytes(), limit);
  }
  engine.set_budget(2 * smallest);
  EXPECT_THROW(engine.set_budget(smallest - 1), BudgetError);
  EXPECT_EQ(kept(), outside_bytes(2 * smallest)) << "a budget that was refused changes nothing";
}

TEST_P(EngineSetBudget, IsRefusedWhileAGroupIsLeased) {
  const TestModel model = equal_model(6, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, smallest_budget_of(spec));
  Stream& stream = device_->caller_stream();
  ASSERT_TRUE(engine->acquire(2, stream));
  EXPECT_THROW(engine->set_budget(everything_of(spec)), LeaseError);
  EXPECT_EQ(budget_->limit_bytes(), smallest_budget_of(spec));
  Computation computation(*engine, model);
  computation.compute(2, stream);
  engine->release(2, stream);
  engine->set_budget(everything_of(spec));
  computation.pass(stream);
  EXPECT_EQ(computation.wrong(), 0U);
}

/// What others hold of a shared budget is not given to this engine.
TEST_P(EngineSetBudget, LeavesWhatOthersHold) {
  const TestModel model = equal_model(5, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, everything_of(spec) + 20'000);
  const Reservation other = budget_->reserve(20'000, "another");
  engine->set_budget(smallest_budget_of(spec) + 20'000);
  EXPECT_LE(budget_->used_bytes(), smallest_budget_of(spec) + 20'000);
  EXPECT_THROW(engine->set_budget(smallest_budget_of(spec) + 19'999), BudgetError);
}

/// A settled resident's bytes on the device are the truth, in whatever way they were written.
TEST_P(EngineSetBudget, WhatWasWrittenToAResidentIsKept) {
  const TemporaryFolder folder;
  TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_files(folder);
  const auto engine = open(spec, everything_of(spec));
  for (const TensorId written : {1U, 3U}) {
    const auto bytes = model.change(written);
    std::memcpy(engine->places(written)[0].data, bytes->data(), bytes->size());
  }
  Computation computation(*engine, model);
  engine->set_budget(smallest_budget_of(spec));
  EXPECT_EQ(engine->statistics().source_ram_bytes, 2 * 6000U);
  computation.pass(device_->caller_stream());
  engine->set_budget(everything_of(spec));
  computation.pass(device_->caller_stream());
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST_P(EngineSetBudget, WhatWasReplacedStaysReplaced) {
  TestModel model = equal_model(4, 6000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, smallest_budget_of(spec));
  Computation computation(*engine, model);
  computation.pass(device_->caller_stream());
  const auto bytes = model.change(2);
  engine->replace_tensor(2, *bytes, bytes);
  engine->set_budget(everything_of(spec));
  computation.pass(device_->caller_stream());
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST_P(EngineSetBudget, AResidentThatCannotBeReadIsRaisedAndTheRestWorks) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(4, 6000);
  ModelSpec spec = model.in_files(folder);
  spec.sources[1] = std::make_shared<FaultyReader>(
      create_memory_reader("a disk", *model.bytes(1), model.bytes(1)), Faults{.failing_read = 1});
  const auto engine = open(spec, smallest_budget_of(spec));
  EXPECT_THROW(engine->set_budget(everything_of(spec)), IoError);
  EXPECT_FALSE(engine->settled(1));
  EXPECT_EQ(budget_->limit_bytes(), smallest_budget_of(spec));
  Computation computation(*engine, model);
  computation.pass(device_->caller_stream());  // tried again
  EXPECT_EQ(computation.wrong(), 0U);
  EXPECT_EQ(computation.right(), 4U);
}

/// The ceiling is that of the last budget that was set, whatever found its place on the way.
TEST_P(EngineSetBudget, ABudgetThatFailsMidwayLeavesTheOneOfBefore) {
  const TestModel model = equal_model(8, 6000);
  ModelSpec spec = model.in_memory();
  const std::uint64_t limit = budgets_of(spec, 5)[3];
  const std::uint64_t residents = residents_of(*open(spec, limit));
  ASSERT_GT(residents, 0U);
  GroupId broken = 0;
  for (const auto engine = open(spec, limit); engine->settled(broken); ++broken) {
  }
  spec.sources[broken] = std::make_shared<FaultyReader>(
      create_memory_reader("a disk", *model.bytes(broken), model.bytes(broken)),
      Faults{.ends_at_bytes = 1000});
  const auto engine = open(spec, limit);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THROW(engine->set_budget(everything_of(spec)), IoError);
    EXPECT_EQ(budget_->limit_bytes(), limit);
    EXPECT_LE(budget_->used_bytes(), limit);
    EXPECT_EQ(residents_of(*engine), residents);
  }
  Computation computation(*engine, model);
  for (GroupId group = 0; group < 8; ++group) {
    if (group == broken) continue;
    EXPECT_TRUE(computation.use(group, device_->caller_stream()));
  }
  EXPECT_EQ(computation.wrong(), 0U);
  EXPECT_EQ(computation.right(), 7U);
}

/// Loads ahead are under way whenever it comes.
TEST_P(EngineSetBudget, AtAnyMomentBetweenUses) {
  const TestModel model = uneven_model(8, 4);
  const ModelSpec spec = model.in_memory();
  const std::vector<std::uint64_t> budgets = budgets_of(spec, 7);
  const auto engine = open(spec, budgets[1]);
  const auto stream = device_->create_stream();
  Computation computation(*engine, model);
  std::mt19937_64 random(5);
  for (int i = 0; i < 120; ++i) {
    const auto group = static_cast<GroupId>(random() % 8);
    ASSERT_TRUE(computation.use(group, *stream));
    if (random() % 4 == 0) engine->set_budget(budgets[random() % budgets.size()]);
  }
  stream->synchronize();
  EXPECT_EQ(computation.wrong(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Loading, EngineSetBudget,
                         ::testing::Values(Prefetch::kNone, Prefetch::kAhead, Prefetch::kReadAhead),
                         loading_name);

}  // namespace
}  // namespace tensorstream
