// Groups that stay on the device coded: whatever is decoded from there has every bit, waits as it
// has to, and for no link.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "device/gate.h"
#include "engine/kept_groups.h"
#include "engine/on_gpu.h"
#include "made_bytes/weights.h"
#include "memory/budget.h"
#include "memory/pinned_memory.h"

namespace tensorstream {
namespace {

/// Groups of all types that are coded, and of some that are not.
TestModel mixed_model() {
  TestModel model(3);
  for (std::uint64_t i = 0; i < 5; ++i) {
    model.add_typed_group({{Dtype::kBf16, 90'000 + 999 * i}, {Dtype::kF32, 300}});
    model.add_typed_group({{Dtype::kF16, 90'000}, {Dtype::kI8, 333}, {Dtype::kF16, 5001}});
    model.add_typed_group({{Dtype::kU8, 0}, {Dtype::kF8E4M3, 160'001}, {Dtype::kF8E5M2, 7'777}});
    model.add_typed_group({{Dtype::kF32, 50'000}, {Dtype::kBf16, 70'001}});
  }
  model.add_typed_group({{Dtype::kI8, 50'000}});
  return model;
}

class EngineKept : public OnGpu {
 protected:
  std::unique_ptr<Engine> open(const ModelSpec& spec, std::uint64_t percent,
                               const EngineOptions& options = kept_options()) {
    auto engine = open_engine(*device_, spec, budget_of(spec, percent, options), options);
    bring_all_home(*engine);
    static_cast<void>(engine->plan_anew());
    return engine;
  }
  static void expect_right(ReadBack& read, const char* when) {
    for (int i = 0; i < 2; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0) << when;
  }
};

TEST_P(EngineKept, EveryBitIsThereAtEachBudget) {
  const TestModel model = mixed_model();
  const ModelSpec spec = model.in_memory();
  int mixed = 0;
  for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kNext, Prefetch::kAdaptive}) {
    const EngineOptions options = kept_options(prefetch);
    const std::uint64_t ring = ring_bytes_of(spec, options);
    for (const std::uint64_t budget : budgets_of(spec, 9, ComputePlace::kAccelerator)) {
      SCOPED_TRACE("budget " + std::to_string(budget));
      const auto engine = open_engine(*device_, spec, budget + ring, options);
      ReadBack read(*engine, model, *stream_);
      expect_right(read, "from the sources");
      bring_all_home(*engine);
      expect_right(read, "by what was expected of homes");
      static_cast<void>(engine->plan_anew());
      expect_right(read, "by what homes take");
      EXPECT_LE(engine->statistics().peak_held_bytes, budget + ring);
      EXPECT_EQ(engine->statistics().surprises, 0U);
      const bool kept = !placed(*engine, Placement::kResidentCoded).empty();
      mixed += kept && !placed(*engine, Placement::kStreamed).empty() ? 1 : 0;
      const auto decoded = [&] { return engine->statistics().kept_decoded_bytes != 0; };
      EXPECT_TRUE(kept ? eventually(decoded) : !decoded());
    }
  }
  EXPECT_GT(mixed, 3);
}

TEST_P(EngineKept, WhatIsKeptCrossesTheLinkOnce) {
  const TestModel model = equal_bf16_model(12);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, 85);
  const Plan plan = engine->plan();
  EXPECT_EQ(plan.streamed_bytes, 0U);
  ASSERT_GT(plan.kept_bytes, 0U);
  for (const GroupPlacement& group : plan.groups) {
    EXPECT_EQ(group.kept_bytes % kept_options().kept_page_bytes, 0U) << "what the driver takes";
  }
  ReadBack read(*engine, model, *stream_);
  expect_right(read, "the first passes");
  const Statistics before = engine->statistics();
  EXPECT_EQ(before.kept_bytes, plan.kept_bytes);
  EXPECT_LT(static_cast<double>(plan.kept_bytes),
            0.7 * static_cast<double>(plan.kept_weights_bytes));
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
  // The last loads ahead of the pass before may have been counted late.
  ASSERT_TRUE(eventually([&] {
    return engine->statistics().kept_decoded_bytes - before.kept_decoded_bytes >=
           plan.kept_weights_bytes / 2;
  }));
  EXPECT_EQ(engine->statistics().streamed_bytes, before.streamed_bytes);
}

TEST_P(EngineKept, FramesGiveWayInAPassAndComeBack) {
  const TestModel model = equal_bf16_model(10);
  const ModelSpec spec = model.in_memory();
  for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kAdaptive}) {
    const auto engine = open(spec, 80, kept_options(prefetch));
    ReadBack read(*engine, model, *stream_);
    expect_right(read, "kept");
    const std::uint64_t held = engine->statistics().held_bytes;
    for (const std::uint64_t wanted : {std::uint64_t{1}, spec.tensors[0].size_bytes * 3, held}) {
      for (GroupId group = 0; group < 5; ++group) ASSERT_TRUE(read.use(group));
      ASSERT_TRUE(engine->acquire(5, *stream_));
      EXPECT_GT(engine->give_way(wanted), 0U);
      engine->release(5, *stream_);
      for (GroupId group = 5; group < 10; ++group) ASSERT_TRUE(read.use(group));
      expect_right(read, "gone");
      EXPECT_LT(engine->statistics().held_bytes, held);
      EXPECT_GT(engine->statistics().given_way_bytes, 0U);
      EXPECT_GT(engine->take_back(0), 0U);
      EXPECT_EQ(engine->statistics().held_bytes, held);
      EXPECT_EQ(engine->statistics().given_way_bytes, 0U);
      expect_right(read, "back");
    }
    EXPECT_EQ(engine->give_way(0), 0U);
  }
}

TEST_P(EngineKept, WhatIsWrittenIsLoadedBesideTheFramesOfTheOthers) {
  TestModel model = equal_bf16_model(8);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, 80);
  ReadBack read(*engine, model, *stream_);
  expect_right(read, "kept");
  const std::vector<GroupId> kept = placed(*engine, Placement::kResidentCoded);
  ASSERT_GT(kept.size(), 2U);
  for (const TensorId tensor : {2 * kept[0], 2 * kept[1] + 1, 2 * kept[0] + 1, 2 * kept[2]}) {
    const auto bytes = model.change(tensor);
    engine->replace_tensor(tensor, *bytes, bytes);
    expect_right(read, "written");
    EXPECT_TRUE(engine->tensor_equals(tensor, *bytes));
  }
  static_cast<void>(engine->give_way(budget_of(spec, 80, kept_options())));
  expect_right(read, "written, and gone");
  static_cast<void>(engine->take_back(0));
  expect_right(read, "written, and back");
}

TEST_P(EngineKept, BudgetsMoveUpAndDown) {
  const TestModel model = mixed_model();
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options();
  const auto engine = open(spec, 75);
  ReadBack read(*engine, model, *stream_);
  std::mt19937 random(4);
  for (int step = 0; step < 12; ++step) {
    const std::uint64_t percent = 45 + random() % 60;
    SCOPED_TRACE("percents " + std::to_string(percent));
    const std::uint64_t budget = budget_of(spec, percent, options);
    engine->set_budget(budget);
    if (step % 2 == 0) static_cast<void>(engine->plan_anew());
    expect_right(read, "another budget");
    EXPECT_LE(engine->statistics().held_bytes, budget);
  }
  EXPECT_TRUE(engine->make_room(everything_of(spec, ComputePlace::kAccelerator) / 20));
  expect_right(read, "room was made");
  static_cast<void>(engine->take_back(0));
  expect_right(read, "and taken back");
}

/// Weights that do not code as is usual for their type: some batches find no room.
TEST_P(EngineKept, HomesLargerThanExpectedAreKeptInPart) {
  TestModel model = equal_bf16_model(8);
  const ModelSpec spec = model.in_memory();
  const auto engine =
      open_engine(*device_, spec, budget_of(spec, 80, kept_options()), kept_options());
  for (TensorId tensor = 0; tensor < model.tensor_count(); tensor += 2) {
    const auto bytes = model.change(tensor);  // any bits
    engine->replace_tensor(tensor, *bytes, bytes);
  }
  bring_all_home(*engine);
  ReadBack read(*engine, model, *stream_);
  expect_right(read, "in part");
  const Statistics statistics = engine->statistics();
  EXPECT_GT(statistics.kept_decoded_bytes, 0U);
  EXPECT_GT(statistics.streamed_bytes, statistics.kept_bytes);
  EXPECT_TRUE(engine->plan_anew());
  EXPECT_EQ(engine->plan().kept_bytes, 0U) << "it would take as much as a resident";
  expect_right(read, "by what homes take");
}

TEST_P(EngineKept, WithoutCodingNothingIsKept) {
  const TestModel model = equal_bf16_model(6);
  const ModelSpec spec = model.in_memory();
  EngineOptions options = kept_options();
  options.compression = 0;
  for (const std::uint64_t percent : {40U, 60U, 80U}) {
    const auto engine = open(spec, percent, options);
    EXPECT_EQ(engine->plan().kept_bytes, 0U);
    EXPECT_FALSE(engine->plan_anew());
    ReadBack read(*engine, model, *stream_);
    expect_right(read, "raw");
    EXPECT_EQ(engine->statistics().kept_bytes, 0U);
  }
}

TEST_P(EngineKept, TwoModelsShareABudget) {
  const std::vector<TestModel> models = {small_bf16_model(12, 1), small_bf16_model(12, 2)};
  const EngineOptions options = kept_options();
  const auto budget = Budget::create(2 * budget_of(models[0].in_memory(), 75, options));
  std::vector<std::unique_ptr<Engine>> engines;
  for (const TestModel& model : models) {
    const ModelSpec spec = model.in_memory();
    EngineOptions shared = options;
    shared.reserved_share = engines.empty() ? 0.5 : 0;
    engines.push_back(std::make_unique<Engine>(*device_, budget, spec, shared));
    bring_all_home(*engines.back());
    static_cast<void>(engines.back()->plan_anew());
  }
  EXPECT_LE(budget->used_bytes(), budget->limit_bytes());
  ReadBack first(*engines[0], models[0], *stream_);
  ReadBack second(*engines[1], models[1], *stream_);
  EXPECT_GT(engines[0]->plan().kept_bytes + engines[1]->plan().kept_bytes, 0U);
  for (int round = 0; round < 3; ++round) {
    for (GroupId group = 0; group < 12; ++group) {
      ASSERT_TRUE(first.use(group));
      ASSERT_TRUE(second.use(group));
    }
    EXPECT_EQ(first.wrong() + second.wrong(), 0);
    static_cast<void>(engines[0]->give_way(std::uint64_t{1} << 20U));
    static_cast<void>(engines[1]->take_back(0));
  }
}

/// What is decoded to a place waits for who reads it.
TEST_P(EngineKept, TheDecodingWaitsForTheReaderOfItsPlace) {
  const TestModel model = equal_bf16_model(6);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, 78, kept_options(Prefetch::kNone));
  const Plan plan = engine->plan();
  const std::vector<GroupId> kept = placed(*engine, Placement::kResidentCoded);
  ReadBack read(*engine, model, *stream_);
  expect_right(read, "kept");
  const auto sharing = std::ranges::find_if(kept, [&](GroupId group) {
    return group != kept[0] && plan.groups[group].offset_bytes == plan.groups[kept[0]].offset_bytes;
  });
  ASSERT_NE(sharing, kept.end());
  const auto other = device_->create_stream();
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(engine->acquire(kept[0], *other));
    Gate gate(*other);
    const TensorPlace place = engine->places(kept[0])[0];
    const PinnedMemory late(*device_, place.size_bytes, "a late reader");
    other->copy_to_host(late.data(), place.data, late.size_bytes());
    engine->release(kept[0], *other);
    {
      const std::jthread opener([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        gate.open();
      });
      ASSERT_TRUE(read.use(*sharing));
    }
    EXPECT_EQ(read.wrong(), 0);
    other->synchronize();
    EXPECT_TRUE(same_bytes(late.bytes(), *model.bytes(place.tensor)));
  }
}

/// In no order, with whatever happens between uses.
TEST_P(EngineKept, AnyOrderOfUsesWritesAndPressureIsRight) {
  TestModel model = small_bf16_model(18);
  const ModelSpec spec = model.in_memory();
  std::mt19937 random(21);
  for (const std::uint64_t percent : {45U, 62U, 78U}) {
    const EngineOptions options = kept_options();
    const auto engine = open(spec, percent, options);
    ReadBack read(*engine, model, *stream_);
    read.pass();
    for (int step = 0; step < 150; ++step) {
      const auto dice = random() % 12;
      if (dice == 0) static_cast<void>(engine->give_way(random() % (2U << 20U)));
      if (dice == 1) static_cast<void>(engine->take_back(random() % (1U << 20U)));
      if (dice == 2) {
        const auto tensor = static_cast<TensorId>(random() % model.tensor_count());
        const auto bytes = model.change(tensor);
        engine->replace_tensor(tensor, *bytes, bytes);
      }
      if (dice == 3) engine->set_budget(budget_of(spec, 40 + random() % 60, options));
      static_cast<void>(read.use(static_cast<GroupId>(random() % 18)));
    }
    EXPECT_EQ(read.wrong(), 0);
    // The next engine reads the sources that the model had.
    model = small_bf16_model(18);
  }
}

TS_ON_EACH_GPU(EngineKept);

}  // namespace
}  // namespace tensorstream
