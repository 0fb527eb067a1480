#include "engine/model_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/units.h"
#include "engine/group_layout.h"
#include "scheduler/model_builder.h"
#include "scheduler/pass_time.h"
#include "scheduler/planner.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

ModelTree tree_of(const ModelBuilder& model) {
  ModelTree tree;
  tree.modules = model.modules();
  for (const TensorShape& tensor : model.tensors()) {
    tree.tensors.push_back({tensor.name, Dtype::kBf16, tensor.size_bytes, {}});
  }
  return tree;
}

/// A Llama of 12 layers: 24 MiB of attention and 72 MiB of MLP each, a table of 250 MiB.
ModelTree llama() {
  ModelBuilder model;
  const ModuleId inner = model.module(0, "model", "LlamaModel");
  model.leaf(inner, "embed_tokens", "Embedding", 250_MiB);
  const ModuleId layers = model.module(inner, "layers", "ModuleList");
  for (int i = 0; i < 12; ++i) {
    const ModuleId layer = model.module(layers, std::to_string(i), "LlamaDecoderLayer");
    const ModuleId attention = model.module(layer, "self_attn", "LlamaAttention");
    for (const char* name : {"q_proj", "o_proj"}) model.linear(attention, name, 8_MiB);
    for (const char* name : {"k_proj", "v_proj"}) model.linear(attention, name, 4_MiB);
    const ModuleId mlp = model.module(layer, "mlp", "LlamaMLP");
    for (const char* name : {"gate_proj", "up_proj", "down_proj"}) model.linear(mlp, name, 24_MiB);
    model.leaf(layer, "input_layernorm", "LlamaRMSNorm", 4_KiB);
    model.leaf(layer, "post_attention_layernorm", "LlamaRMSNorm", 4_KiB);
  }
  model.leaf(inner, "norm", "LlamaRMSNorm", 4_KiB);
  model.linear(0, "lm_head", 60_MiB);
  return tree_of(model);
}

/// A Llama of 7B in bf16: 32 blocks of seven matrices, and words.
ModelTree llama_7b(std::uint64_t words = 32000) {
  constexpr std::uint64_t kHidden = 4096;
  constexpr std::uint64_t kSquare = 2 * kHidden * kHidden;
  constexpr std::uint64_t kWide = 2 * kHidden * 11008;
  const std::uint64_t vocabulary = 2 * kHidden * words;
  ModelBuilder model;
  const ModuleId inner = model.module(0, "model", "LlamaModel");
  model.leaf(inner, "embed_tokens", "Embedding", vocabulary);
  const ModuleId layers = model.module(inner, "layers", "ModuleList");
  for (int i = 0; i < 32; ++i) {
    const ModuleId layer = model.module(layers, std::to_string(i), "LlamaDecoderLayer");
    const ModuleId attention = model.module(layer, "self_attn", "LlamaAttention");
    for (const char* name : {"q", "k", "v", "o"}) model.linear(attention, name, kSquare);
    const ModuleId mlp = model.module(layer, "mlp", "LlamaMLP");
    for (const char* name : {"gate", "up", "down"}) model.linear(mlp, name, kWide);
    model.leaf(layer, "input_layernorm", "LlamaRMSNorm", 2 * kHidden);
    model.leaf(layer, "post_attention_layernorm", "LlamaRMSNorm", 2 * kHidden);
  }
  model.leaf(inner, "norm", "LlamaRMSNorm", 2 * kHidden);
  model.linear(0, "lm_head", vocabulary);
  ModelTree tree = tree_of(model);
  for (TensorId id = 0; id < tree.tensors.size(); ++id) tree.in_ram.push_back(id);
  return tree;
}

/// A plan of that for a share of its weights, on an H100's link.
ModelPlan plan_7b(double share, std::uint32_t level, Rates rates = {}) {
  const ModelTree tree = llama_7b();
  rates.link_bytes_per_second = 57e9;
  const auto budget = static_cast<std::uint64_t>(share * static_cast<double>(tree.weights_bytes()));
  return plan_model(tree, budget, rates,
                    {.place = ComputePlace::kAccelerator, .compression = level});
}

std::ptrdiff_t leased(const ModelPlan& model) {
  return std::ranges::count_if(
      model.grouping.groups, [](const Group& group) { return group.residency == Residency::kAny; });
}

std::uint64_t largest_streamed(const ModelPlan& model, const ModelTree& tree) {
  std::uint64_t largest = 0;
  const auto sizes = footprints(model.grouping.groups, tree.tensors);
  for (GroupId group = 0; group < sizes.size(); ++group) {
    if (model.plan.groups[group].placement == Placement::kStreamed) {
      largest = std::max(largest, sizes[group].size_bytes);
    }
  }
  return largest;
}

BudgetError refusal(const ModelTree& tree, std::uint64_t budget_bytes) {
  try {
    static_cast<void>(plan_model(tree, budget_bytes, Rates{}));
  } catch (const BudgetError& error) {
    return error;
  }
  throw std::logic_error("a budget of " + std::to_string(budget_bytes) + " works");
}

/// The smallest budget that is named works, and one byte less does not.
void expect_smallest_is_exact(const ModelTree& tree) {
  const std::uint64_t smallest =
      plan_model(tree, kLargestBudgetBytes, Rates{}).plan.smallest_budget_bytes;
  const ModelPlan planned = plan_model(tree, smallest, Rates{});
  EXPECT_LE(planned.plan.resident_bytes + planned.plan.arena_bytes, smallest);
  EXPECT_EQ(planned.plan.smallest_budget_bytes, smallest);
  const BudgetError error = refusal(tree, smallest - 1);
  EXPECT_EQ(error.needed_bytes(), smallest);
  EXPECT_EQ(error.budget_bytes(), smallest - 1);
  EXPECT_EQ(refusal(tree, 0).needed_bytes(), smallest);
  EXPECT_THAT(error.what(), HasSubstr(std::to_string(smallest)));
}

TEST(ModelPlan, FinerCutsAreTakenWhereTheyPay) {
  const ModelTree tree = llama();
  const std::vector<GroupFootprint> blocks = footprints(group_model(tree).groups, tree.tensors);
  for (const std::uint64_t budget : {600_MiB, 450_MiB, 350_MiB, 300_MiB}) {
    const Plan whole = make_plan(blocks, budget, Rates{});
    const Plan chosen = plan_model(tree, budget, Rates{}).plan;
    EXPECT_LE(chosen.resident_bytes + chosen.arena_bytes, budget);
    EXPECT_LE(chosen.predicted_seconds, whole.predicted_seconds) << budget;
    EXPECT_LE(chosen.exposed_loads, whole.exposed_loads) << budget;
  }
  const ModelPlan parts = plan_model(tree, 150_MiB, Rates{});
  EXPECT_LT(largest_streamed(parts, tree), 96_MiB);
}

TEST(ModelPlan, BlocksStayWholeWherePartsGainNothing) {
  const ModelTree tree = llama();
  const ModelPlan planned = plan_model(tree, 4_GiB, Rates{});
  EXPECT_EQ(planned.plan.streamed_bytes, 0U);
  const auto structure = group_model(tree);
  ASSERT_EQ(planned.grouping.groups.size(), structure.groups.size());
  for (std::size_t i = 0; i < structure.groups.size(); ++i) {
    EXPECT_EQ(planned.grouping.groups[i].name, structure.groups[i].name);
    EXPECT_EQ(planned.grouping.groups[i].tensors, structure.groups[i].tensors);
  }
}

TEST(ModelPlan, EveryBudgetFromTheSmallestWorks) {
  const ModelTree tree = llama();
  const ModelPlan largest = plan_model(tree, kLargestBudgetBytes, Rates{});
  const std::uint64_t smallest = largest.plan.smallest_budget_bytes;
  const std::uint64_t step = (largest.plan.everything_fits_bytes - smallest) / 40;
  for (std::uint64_t i = 0; i <= 41; ++i) {
    const std::uint64_t budget = smallest + i * step;
    const ModelPlan planned = plan_model(tree, budget, Rates{});
    EXPECT_LE(planned.plan.resident_bytes + planned.plan.arena_bytes, budget);
    EXPECT_EQ(planned.plan.budget_bytes, budget);
    EXPECT_EQ(planned.plan.smallest_budget_bytes, smallest);
  }
}

TEST(ModelPlan, EverythingFitsExactlyFromTheBudgetNamed) {
  const ModelTree tree = llama();
  const std::uint64_t all = plan_model(tree, 1_GiB, Rates{}).plan.everything_fits_bytes;
  const Plan fits = plan_model(tree, all, Rates{}).plan;
  EXPECT_EQ(fits.streamed_bytes + fits.on_demand_bytes, 0U);
  const Plan less = plan_model(tree, all - 1, Rates{}).plan;
  EXPECT_GT(less.streamed_bytes + less.on_demand_bytes, 0U);
}

TEST(ModelPlan, TheSmallestBudgetIsExact) {
  expect_smallest_is_exact(llama());
  ModelTree with_buffers = llama();
  with_buffers.fixed_bytes = 12'345;
  expect_smallest_is_exact(with_buffers);
  ModelTree with_kept = llama();
  with_kept.keep_resident = {"model.layers.3", "lm_head"};
  expect_smallest_is_exact(with_kept);
}

TEST(ModelPlan, TheSmallestBudgetOfABlockOfTinyPartsIsExact) {
  ModelBuilder model;
  const ModuleId blocks = model.module(0, "blocks", "ModuleList");
  for (int i = 0; i < 3; ++i) {
    const ModuleId block = model.module(blocks, std::to_string(i), "Block");
    for (int part = 0; part < 400; ++part) model.linear(block, std::to_string(part), 1_KiB);
  }
  expect_smallest_is_exact(tree_of(model));
}

/// One block is best split, the others are best left whole: neither the coarsest cut nor the finest
/// needs least.
TEST(ModelPlan, TheSmallestBudgetOfUnlikeBlocksIsExact) {
  ModelBuilder model;
  const ModuleId large = model.module(0, "large", "Large");
  for (int part = 0; part < 10; ++part) model.linear(large, std::to_string(part), 10_MiB);
  const ModuleId blocks = model.module(0, "blocks", "ModuleList");
  for (int i = 0; i < 60; ++i) {
    const ModuleId block = model.module(blocks, std::to_string(i), "Block");
    for (int part = 0; part < 100; ++part) model.linear(block, std::to_string(part), 10_KiB);
  }
  expect_smallest_is_exact(tree_of(model));
}

TEST(ModelPlan, TheRingIsPartOfTheSmallestBudgetWhereALevelIsAskedFor) {
  const ModelTree tree = llama();
  const Rates rates;
  const PlanOptions on_gpu{.place = ComputePlace::kAccelerator, .compression = 4};
  try {
    static_cast<void>(plan_model(tree, 1_MiB, rates, on_gpu));
    ADD_FAILURE();
  } catch (const BudgetError& error) {
    EXPECT_THAT(error.what(), HasSubstr("the ring"));
    const ModelPlan coded = plan_model(tree, error.needed_bytes(), rates, on_gpu);
    EXPECT_GT(coded.plan.ring_bytes, 0U);
    EXPECT_EQ(coded.plan.smallest_budget_bytes, error.needed_bytes());
    EXPECT_LE(coded.plan.resident_bytes + coded.plan.arena_bytes + coded.plan.ring_bytes,
              error.needed_bytes());
    EXPECT_THROW(plan_model(tree, error.needed_bytes() - 1, rates, on_gpu), BudgetError);
    EXPECT_LT(plan_model(tree, kLargestBudgetBytes, rates, {.place = ComputePlace::kAccelerator})
                  .plan.smallest_budget_bytes,
              error.needed_bytes());
  }
}

TEST(ModelPlan, ALevelHasNoUseOnAHost) {
  EXPECT_THROW(plan_model(llama(), 1_GiB, {}, {.compression = 4}), ConfigError);
  EXPECT_NO_THROW(plan_model(llama(), 1_GiB, {}, {.compression = 0}));
}

/// Where the budget has room for it, a copy moves more, and each of them costs the link.
TEST(ModelPlan, TheRingGrowsWithTheBudget) {
  const Plan small = plan_7b(0.05, 1).plan;
  const Plan large = plan_7b(0.5, 1).plan;
  EXPECT_GT(large.ring_bytes, small.ring_bytes + 20_MiB);
  EXPECT_LE(large.ring_bytes, 128_MiB);
  const double small_seconds = static_cast<double>(small.link_bytes) / 57e9;
  EXPECT_GT(small.predicted_seconds, small_seconds + 400 * kCodedCopySeconds);
  EXPECT_LT(small.predicted_seconds, small_seconds + 700 * kCodedCopySeconds);
}

/// A ring of its share of a budget may still leave too little of it.
TEST(ModelPlan, TheRingStaysSmallWhereALargeOneLeavesNoRoom) {
  ModelBuilder model;
  for (const char* name : {"a", "b"}) model.linear(0, name, 1600_MiB);
  ModelTree tree = tree_of(model);
  for (TensorId id = 0; id < tree.tensors.size(); ++id) tree.in_ram.push_back(id);
  const PlanOptions options = {.place = ComputePlace::kAccelerator, .compression = 1};
  const auto ring_of = [&](std::uint64_t budget) {
    return plan_model(tree, budget, Rates{}, options).plan.ring_bytes;
  };
  constexpr std::uint64_t group = 1602_MiB;  // as it is placed
  const std::uint64_t large = ring_of(1680_MiB);
  const std::uint64_t small = ring_of(1640_MiB);
  EXPECT_LT(small, large);
  EXPECT_EQ(ring_of(group + large), large);
  EXPECT_EQ(ring_of(group + large - 1), small);
  EXPECT_EQ(ring_of(group + small), small);
  EXPECT_THROW(ring_of(group + small - 1), BudgetError);
}

TEST(ModelPlan, FilesThatTheDeviceCopiesFromNeedNoHomeAndNoDisk) {
  ModelTree tree = llama_7b();
  tree.in_ram.clear();
  for (TensorSpec& tensor : tree.tensors) tensor.extents = {{0, 0, tensor.size_bytes}};
  PlanOptions options = {.place = ComputePlace::kAccelerator, .home_bytes = 0};
  const auto plan = [&] { return plan_model(tree, 1280_MiB, Rates{}, options).plan; };
  const Plan read = plan();
  EXPECT_EQ(read.disk_bytes, read.streamed_bytes);
  tree.pinned_sources = {1, 0};
  const Plan copied = plan();
  EXPECT_EQ(copied.disk_bytes, 0U);
  EXPECT_EQ(copied.home_bytes, 0U);
  EXPECT_LT(copied.predicted_seconds, 0.5 * read.predicted_seconds);
  options.compression = std::nullopt;
  EXPECT_EQ(plan().ring_bytes, 0U) << "coded weights would need homes";
  options.home_bytes = 20_GiB;
  EXPECT_GT(plan().ring_bytes, 0U);
  tree.pinned_sources = {1};
  options = {.place = ComputePlace::kAccelerator, .home_bytes = 0};
  EXPECT_EQ(plan().disk_bytes, read.disk_bytes);
}

TEST(ModelPlan, NothingAskedForCodesWhereAPassGetsShorter) {
  const ModelTree tree = llama();
  const Rates rates;
  const ModelPlan raw = plan_model(tree, 400_MiB, rates);
  const ModelPlan chosen = plan_model(tree, 400_MiB, rates, {.compression = std::nullopt});
  EXPECT_GT(chosen.plan.ring_bytes, 0U);
  EXPECT_LT(chosen.plan.ring_bytes, 51_MiB);
  EXPECT_LT(chosen.plan.predicted_seconds, 0.8 * raw.plan.predicted_seconds);
  EXPECT_LT(chosen.plan.link_bytes, chosen.plan.streamed_bytes);
  const ModelPlan all =
      plan_model(tree, raw.plan.everything_fits_bytes, rates, {.compression = std::nullopt});
  EXPECT_EQ(all.plan.streamed_bytes + all.plan.ring_bytes, 0U);
}

TEST(ModelPlan, WhatTheHostUsuallyTakesGoesByParameters) {
  const ModelTree tree = llama_7b();
  EXPECT_NEAR(usual_host_seconds(tree.tensors, ComputePlace::kAccelerator), 0.023, 0.001);
  EXPECT_EQ(usual_host_seconds(tree.tensors, ComputePlace::kHost), 0);
  EXPECT_NEAR(plan_7b(1.1, 0).plan.predicted_seconds, 0.023, 0.001);
}

/// Hosts change from one minute to the next: predictions follow, plans do not.
TEST(ModelPlan, AMeasuredHostIsWhatItIsPredictedByAndNoOtherPlan) {
  const double calls = 2.75 * static_cast<double>(llama_7b().tensors.size());
  EXPECT_DOUBLE_EQ(plan_7b(1.1, 0, {.host_call_seconds = 10e-6}).plan.predicted_seconds,
                   10e-6 * calls);
  for (const std::uint32_t level : {0U, 4U}) {
    for (const double share : {0.25, 0.5, 0.75, 0.9}) {
      const ModelPlan usual = plan_7b(share, level);
      const ModelPlan slow = plan_7b(share, level, {.host_call_seconds = 200e-6});
      EXPECT_GT(slow.plan.predicted_seconds, 200e-6 * calls);
      EXPECT_LT(slow.plan.predicted_seconds, usual.plan.predicted_seconds + 2 * 200e-6 * calls);
      EXPECT_EQ(slow.plan.bound, "host");
      ASSERT_EQ(slow.plan.groups.size(), usual.plan.groups.size());
      EXPECT_EQ(slow.plan.arena_bytes, usual.plan.arena_bytes);
      for (GroupId group = 0; group < slow.plan.groups.size(); ++group) {
        EXPECT_EQ(slow.plan.groups[group].placement, usual.plan.groups[group].placement);
      }
    }
  }
  const Rates known{.host_call_seconds = 1};
  const ModelTree tree = llama_7b();
  // Of groups that stay coded: 0.5 of them twice, and 0.44 for each of its tensors.
  const ModelPlan coded = plan_7b(0.75, 4, {.host_call_seconds = 1});
  ASSERT_EQ(leased(coded), 33) << "blocks of nine tensors, and the last matrix";
  ASSERT_EQ(coded.plan.groups.back().placement, Placement::kResidentCoded);
  const auto blocks = static_cast<double>(
      std::ranges::count(coded.plan.groups, Placement::kResidentCoded, &GroupPlacement::placement) -
      1);
  const double leases = blocks * (1 + 9 * 0.44) + (32 - blocks) * (0.5 + 9 * 0.44) / 3 + (1 + 0.44);
  EXPECT_NEAR(coded.plan.predicted_seconds, calls + leases, 0.1);
  EXPECT_EQ(rates_of_host(known, tree.tensors, ComputePlace::kHost).host_seconds, 0);
  EXPECT_EQ(rates_of_host({}, tree.tensors, ComputePlace::kAccelerator).host_seconds, 0);
}

TEST(ModelPlan, DecodedGroupsAreAsCoarseAsTheirLeasesAskFor) {
  const ModelPlan most = plan_7b(0.75, 4);
  EXPECT_EQ(most.plan.bound, "host");
  EXPECT_LE(leased(most), 65);
  EXPECT_LT(most.plan.predicted_seconds, 0.027);
  const ModelPlan half = plan_7b(0.5, 4);
  EXPECT_EQ(half.plan.bound, "link");
  EXPECT_LE(leased(half), 129);
  EXPECT_LT(half.plan.predicted_seconds, 0.055);
  // Where leases cost nothing, single matrices put more of the budget to use.
  EXPECT_GT(leased(plan_7b(0.5, 4, {.lease_seconds = 0})), 200);
}

/// Whole blocks may cross the link in the time that the host takes, and would meet it there.
TEST(ModelPlan, NothingIsStreamedWhereThatSavesNextToNothing) {
  const Plan most = plan_7b(0.7251, 1).plan;
  EXPECT_EQ(most.bound, "host");
  EXPECT_EQ(most.streamed_bytes, 0U);
  const ModelPlan nearly_all = plan_7b(0.8781, 1);
  EXPECT_EQ(leased(nearly_all), 33) << "a finer cut would stream 16 groups for less";
  EXPECT_EQ(nearly_all.plan.streamed_bytes, 0U);
  // Worth the link's while: a pass would take a tenth longer without.
  const Plan less = plan_7b(0.6, 1).plan;
  EXPECT_GT(less.streamed_bytes, 2'000'000'000U);
}

TEST(ModelPlan, RawGroupsAreFineWhereThatLeavesMoreResident) {
  for (const double share : {0.1, 0.25, 0.5}) {
    const ModelPlan planned = plan_7b(share, 0);
    EXPECT_EQ(planned.plan.bound, "link") << share;
    EXPECT_GT(leased(planned), 100) << share;
    EXPECT_LT(planned.plan.arena_bytes, 420'000'000U) << share;
    const double link = static_cast<double>(planned.plan.link_bytes) / 57e9;
    EXPECT_NEAR(planned.plan.predicted_seconds, link, 0.01 * link) << share;
  }
}

TEST(ModelPlan, PartsOfBlocksAreTriedWhateverTheBudget) {
  // A twenty-fourth of it holds a block: no share of the budget splits blocks, and matrices alone
  // have too many leases.
  const ModelPlan planned = plan_7b(0.75, 0);
  EXPECT_EQ(leased(planned), 65) << "attention and MLP apart";
  // Nor does a head that is larger than a block, and has no parts, keep blocks whole.
  const ModelTree tree = llama_7b(128'256);
  Rates rates;
  rates.link_bytes_per_second = 57e9;
  const ModelPlan large =
      plan_model(tree, tree.weights_bytes() / 4 * 3, rates, {.place = ComputePlace::kAccelerator});
  EXPECT_EQ(leased(large), 129) << "of the MLP matrices, 225 would be single ones";
}

TEST(ModelPlan, FixedBytesAreCounted) {
  const ModelTree plain = llama();
  ModelTree tree = plain;
  tree.fixed_bytes = 100_MiB;
  const Plan without = plan_model(plain, 300_MiB, Rates{}).plan;
  const Plan with = plan_model(tree, 400_MiB, Rates{}).plan;
  EXPECT_EQ(with.budget_bytes, 400_MiB);
  EXPECT_EQ(with.resident_bytes, without.resident_bytes + 100_MiB);
  EXPECT_EQ(with.arena_bytes, without.arena_bytes);
  EXPECT_EQ(with.smallest_budget_bytes, without.smallest_budget_bytes + 100_MiB);
  EXPECT_EQ(with.everything_fits_bytes, without.everything_fits_bytes + 100_MiB);
  EXPECT_EQ(refusal(tree, 99_MiB).needed_bytes(), with.smallest_budget_bytes);
}

TEST(ModelPlan, KeptGroupsAreResident) {
  ModelTree tree = llama();
  tree.keep_resident = {"model.layers.3"};
  for (const std::uint64_t budget : {200_MiB, 400_MiB}) {
    const ModelPlan planned = plan_model(tree, budget, Rates{});
    const auto& groups = planned.grouping.groups;
    int kept = 0;
    for (GroupId group = 0; group < groups.size(); ++group) {
      if (groups[group].name.rfind("model.layers.3", 0) != 0) continue;
      EXPECT_EQ(planned.plan.groups[group].placement, Placement::kResident);
      ++kept;
    }
    EXPECT_GT(kept, 0);
  }
  tree.keep_resident = {"model.layer.3"};
  EXPECT_THROW(static_cast<void>(plan_model(tree, 1_GiB, Rates{})), ConfigError);
}

TEST(ModelPlan, TheErrorNamesTheLargestGroupAndItsSize) {
  const BudgetError error = refusal(llama(), 1_MiB);
  EXPECT_THAT(error.what(), HasSubstr("'lm_head'"));
  EXPECT_THAT(error.what(), HasSubstr("60.0 MiB"));
  EXPECT_THAT(error.what(), HasSubstr("1048576 bytes"));
}

TEST(ModelPlan, WeightsAreSummed) {
  const ModelTree tree = llama();
  EXPECT_EQ(tree.weights_bytes(), 250_MiB + 12 * (96_MiB + 8_KiB) + 4_KiB + 60_MiB);
  EXPECT_EQ(tree.size_bytes({0, 1}), 258_MiB);
  EXPECT_THROW(static_cast<void>(tree.size_bytes({9999})), std::out_of_range);
}

TEST(ModelPlan, TheDefaultBudgetLeavesOneGibibyteOrHalf) {
  EXPECT_EQ(default_budget_bytes(10_GiB), 9_GiB);
  EXPECT_EQ(default_budget_bytes(2_GiB), 1_GiB);
  EXPECT_EQ(default_budget_bytes(2_GiB - 2), 1_GiB - 1);
  EXPECT_EQ(default_budget_bytes(0), 0U);
}

bool dense(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
  return is_dense(shape, strides);
}

TEST(IsDense, SaysWhetherElementsFillTheirBytesOnce) {
  EXPECT_TRUE(dense({}, {}));
  EXPECT_TRUE(dense({3, 4}, {4, 1}));
  EXPECT_TRUE(dense({3, 4}, {1, 3}));
  EXPECT_TRUE(dense({2, 3, 4}, {4, 8, 1}));
  EXPECT_TRUE(dense({1, 4}, {99, 1}));
  EXPECT_TRUE(dense({0, 4}, {7, 7}));
  EXPECT_FALSE(dense({3, 4}, {5, 1}));
  EXPECT_FALSE(dense({3, 4}, {0, 1}));
  EXPECT_FALSE(dense({4}, {2}));
  EXPECT_FALSE(dense({2, 2}, {1, 1}));
}

}  // namespace
}  // namespace tensorstream
