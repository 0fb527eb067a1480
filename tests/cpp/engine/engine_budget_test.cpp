// The budget is a ceiling, and what is too little is named exactly.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>

#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

/// The BudgetError of opening `model` under `budget`.
BudgetError refusal(const std::shared_ptr<Budget>& budget, const ModelSpec& model,
                    std::uint64_t fixed_bytes) {
  const auto device = checking_device();
  EngineOptions options;
  options.fixed_bytes = fixed_bytes;
  try {
    const Engine engine(*device, budget, model, options);
  } catch (const BudgetError& error) {
    return error;
  }
  throw std::logic_error("the engine opened");
}

TestModel mixed_model() {
  TestModel model;
  model.add_group({5000});
  model.add_group({6000, 100}, Residency::kRequired);
  model.add_group({20'000});
  model.add_group({3000}, Residency::kByRows);
  model.add_group({9000});
  return model;
}

// What is required takes 8192 bytes, the largest streamed group 20480.
constexpr std::uint64_t kSmallest = 8192 + 20'480;

TEST(EngineBudget, TooLittleIsNamedWithTheLeastThatWorks) {
  const TestModel model = mixed_model();
  const auto budget = Budget::create(kSmallest - 1);
  const BudgetError error = refusal(budget, model.in_memory(), 0);
  EXPECT_EQ(error.needed_bytes(), kSmallest);
  EXPECT_EQ(error.budget_bytes(), kSmallest - 1);
  EXPECT_THAT(error.what(), HasSubstr("block.2"));
  EXPECT_THAT(error.what(), HasSubstr(std::to_string(kSmallest)));
  EXPECT_EQ(budget->used_bytes(), 0U);
  const auto device = checking_device();
  EXPECT_NO_THROW(open_engine(*device, model.in_memory(), kSmallest));
}

TEST(EngineBudget, WhatStaysInPlaceIsPartOfTheLeastThatWorks) {
  const TestModel model = mixed_model();
  for (const std::uint64_t budget_bytes : {0U, 999U, 20'000U, 29'671U}) {
    const BudgetError error = refusal(Budget::create(budget_bytes), model.in_memory(), 1000);
    EXPECT_EQ(error.needed_bytes(), kSmallest + 1000);
    EXPECT_EQ(error.budget_bytes(), budget_bytes);
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(kSmallest + 1000)));
  }
  const auto device = checking_device();
  EngineOptions options;
  options.fixed_bytes = 1000;
  EXPECT_NO_THROW(open_engine(*device, model.in_memory(), kSmallest + 1000, options));
}

TEST(EngineBudget, WhatOtherEnginesHoldIsPartOfTheLeastThatWorks) {
  const TestModel model = mixed_model();
  const auto budget = Budget::create(50'000);
  const auto taken = budget->reserve(25'000, "another engine");
  const BudgetError error = refusal(budget, model.in_memory(), 0);
  EXPECT_EQ(error.needed_bytes(), kSmallest + 25'000);
  EXPECT_EQ(error.budget_bytes(), 50'000U);
}

TEST(EngineBudget, FixedBytesAreChargedAndHeld) {
  const TestModel model = mixed_model();
  const auto device = checking_device();
  EngineOptions options;
  options.fixed_bytes = 1000;
  const auto budget = Budget::create(kSmallest + 1000);
  const Engine engine(*device, budget, model.in_memory(), options);
  EXPECT_EQ(budget->used_bytes(), kSmallest + 1000);
  EXPECT_EQ(engine.statistics().held_bytes, kSmallest + 1000);
}

TEST(EngineBudget, HoldsForSeveralEngines) {
  const TestModel model = uneven_model(8, 9);
  const ModelSpec spec = model.in_memory();
  const std::uint64_t limit = everything_of(spec) + smallest_budget_of(spec);
  const auto budget = Budget::create(limit);
  const auto device = checking_device();
  Engine one(*device, budget, spec, EngineOptions{});
  Engine two(*device, budget, spec, EngineOptions{});
  EXPECT_EQ(one.plan().streamed_bytes, 0U);
  EXPECT_GT(two.plan().streamed_bytes, 0U);
  EXPECT_EQ(budget->used_bytes(), one.statistics().held_bytes + two.statistics().held_bytes);
  for (Engine* engine : {&one, &two}) {
    Computation computation(*engine, model);
    computation.pass(device->caller_stream());
    EXPECT_EQ(computation.right(), model.tensor_count());
  }
  EXPECT_LE(budget->peak_bytes(), limit);
}

TEST(EngineBudget, AModelWithoutGroupsNeedsNothing) {
  const auto device = checking_device();
  const auto engine = open_engine(*device, ModelSpec{}, 0);
  EXPECT_TRUE(engine->groups().empty());
  EXPECT_EQ(engine->statistics().held_bytes, 0U);
}

TEST(EngineBudget, MoreThanEverythingStreamsNothing) {
  const TestModel model = mixed_model();
  const TemporaryFolder folder;
  const auto device = checking_device();
  for (const ModelSpec& spec : {model.in_memory(), model.in_files(folder)}) {
    const auto budget = Budget::create(everything_of(spec) + 1_MiB);
    Engine engine(*device, budget, spec, EngineOptions{});
    EXPECT_EQ(engine.plan().streamed_bytes, 0U);
    EXPECT_EQ(engine.plan().on_demand_bytes, 0U);
    EXPECT_EQ(budget->used_bytes(), everything_of(spec));
    Computation computation(engine, model);
    computation.pass(device->caller_stream());
    EXPECT_EQ(computation.right(), model.tensor_count());
  }
}

}  // namespace
}  // namespace tensorstream
