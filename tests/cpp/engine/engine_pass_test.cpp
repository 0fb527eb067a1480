// Passes over all groups, at every budget: the bytes are right, and the budget holds.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kBudgets = 12;
constexpr std::uint64_t kPasses = 3;

using Parameters = std::tuple<On, Prefetch>;

class EnginePass : public ::testing::TestWithParam<Parameters> {
 protected:
  /// Runs passes at every budget from the smallest to everything.
  void sweep(const TestModel& model, const ModelSpec& spec, std::uint64_t piece_bytes = 16_MiB) {
    const auto [on, prefetch] = GetParam();
    std::uint64_t seed = 0;
    for (const std::uint64_t budget_bytes : budgets_of(spec, kBudgets)) {
      SCOPED_TRACE("budget " + std::to_string(budget_bytes));
      const auto device = checking_device(++seed, 5);
      const ComputeStream stream(*device, on);
      const auto budget = Budget::create(budget_bytes);
      EngineOptions options = with_prefetch(prefetch);
      options.piece_bytes = piece_bytes;
      Engine engine(*device, budget, spec, options);
      Computation computation(engine, model);
      for (std::uint64_t i = 0; i < kPasses; ++i) computation.pass(stream.get());
      stream.get().synchronize();
      EXPECT_EQ(computation.wrong(), 0U);
      EXPECT_EQ(computation.right(), kPasses * model.tensor_count());
      EXPECT_LE(budget->peak_bytes(), budget_bytes);
      EXPECT_LE(engine.statistics().peak_held_bytes, budget_bytes);
      EXPECT_EQ(engine.statistics().surprises, 0U);
    }
  }
};

TEST_P(EnginePass, AnEvenNumberOfEqualGroups) {
  const TestModel model = equal_model(8, 5000);
  sweep(model, model.in_memory());
}

TEST_P(EnginePass, AnOddNumberOfEqualGroups) {
  const TestModel model = equal_model(7, 4096);
  sweep(model, model.in_memory());
}

TEST_P(EnginePass, OneGroup) {
  const TestModel model = equal_model(1, 3000);
  sweep(model, model.in_memory());
}

TEST_P(EnginePass, TwoGroups) {
  const TestModel model = equal_model(2, 3000);
  sweep(model, model.in_memory());
}

TEST_P(EnginePass, GroupsOfUnlikeSizes) {
  for (const std::size_t count : {5U, 12U}) {
    const TestModel model = uneven_model(count, count);
    sweep(model, model.in_memory());
  }
}

TEST_P(EnginePass, OneGroupMuchLargerThanTheOthers) {
  TestModel model;
  for (int i = 0; i < 4; ++i) model.add_group({2000});
  model.add_group({40'000, 3});
  for (int i = 0; i < 4; ++i) model.add_group({5000});
  sweep(model, model.in_memory());
}

TEST_P(EnginePass, TensorsWithoutBytesAndGroupsOfThem) {
  TestModel model;
  model.add_group({0, 5000, 0});
  model.add_group({0});
  model.add_group({1, 0, 6000});
  model.add_group({});
  model.add_group({9000});
  sweep(model, model.in_memory());
}

TEST_P(EnginePass, ResidentGroupsAmongStreamedOnes) {
  TestModel model;
  for (int i = 0; i < 9; ++i) {
    model.add_group({4000, 300}, i % 4 == 1 ? Residency::kRequired : Residency::kAny);
  }
  sweep(model, model.in_memory());
}

TEST_P(EnginePass, WeightsInFiles) {
  const TemporaryFolder folder;
  const TestModel model = uneven_model(7, 3);
  sweep(model, model.in_files(folder));
}

TEST_P(EnginePass, TensorsInPiecesOfSeveralFilesAndMemory) {
  const TemporaryFolder folder;
  TestModel model = uneven_model(6, 4);
  const ModelSpec spec = model.in_pieces(folder);
  sweep(model, spec);
  sweep(model, spec, 1021);
}

TEST_P(EnginePass, PiecesSmallerThanATensor) {
  const TestModel model = equal_model(5, 9000);
  sweep(model, model.in_memory(), 999);
}

std::string parameters_name(const ::testing::TestParamInfo<Parameters>& info) {
  const auto [on, prefetch] = info.param;
  const std::map<Prefetch, std::string> names = {{Prefetch::kNone, "NoPrefetch"},
                                                 {Prefetch::kNext, "PrefetchNext"},
                                                 {Prefetch::kAhead, "PrefetchAhead"},
                                                 {Prefetch::kReadAhead, "ReadAhead"}};
  return (on == On::kCaller ? "OnCaller" : "OnQueue") + names.at(prefetch);
}

INSTANTIATE_TEST_SUITE_P(Streams, EnginePass,
                         ::testing::Combine(::testing::Values(On::kCaller, On::kQueue),
                                            ::testing::Values(Prefetch::kNone, Prefetch::kNext,
                                                              Prefetch::kAhead,
                                                              Prefetch::kReadAhead)),
                         parameters_name);

}  // namespace
}  // namespace tensorstream
