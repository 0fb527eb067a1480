#include "tensorstream/grouping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "scheduler/model_builder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

GroupingOptions options(std::vector<std::string> keep_resident = {}) {
  return {1'000'000, 1'000, std::move(keep_resident)};
}

// Two blocks of two linear layers each.
ModelBuilder two_blocks() {
  ModelBuilder model;
  const ModuleId blocks = model.module(0, "blocks", "ModuleList");
  for (int i = 0; i < 2; ++i) {
    const ModuleId block = model.module(blocks, std::to_string(i), "Block");
    model.linear(block, "up", 20'000);
    model.linear(block, "down", 20'000);
  }
  return model;
}

TEST(Grouping, NothingHasNoGroups) {
  EXPECT_THAT(group_modules({}, {}, options()).groups, IsEmpty());
  const Grouping grouping = ModelBuilder().group(options());
  EXPECT_THAT(grouping.groups, IsEmpty());
  EXPECT_THAT(grouping.hooks, IsEmpty());
}

TEST(Grouping, WithoutRepetitionTheModelIsOneGroup) {
  ModelBuilder model;
  model.linear(0, "first", 20'000);
  model.linear(0, "second", 20'000);
  EXPECT_THAT(describe(model.group(options())), ElementsAre("(model)"));
}

TEST(Grouping, AboveTheLimitItIsSplit) {
  ModelBuilder model;
  model.linear(0, "first", 600'000);
  model.linear(0, "second", 600'000);
  EXPECT_THAT(describe(model.group(options())), ElementsAre("first", "second"));
  GroupingOptions unlimited = options();
  unlimited.largest_group_bytes = 0;
  EXPECT_THAT(describe(model.group(unlimited)), ElementsAre("(model)"));
}

TEST(Grouping, TheLimitItselfIsNotExceeded) {
  ModelBuilder model;
  model.linear(0, "first", 500'000);
  model.linear(0, "second", 500'000);
  EXPECT_THAT(describe(model.group(options())), ElementsAre("(model)"));
  model.tensor(0, "scale", 1);
  EXPECT_THAT(describe(model.group(options())), ElementsAre("scale required", "first", "second"));
}

TEST(Grouping, ALeafAboveTheLimitStaysWhole) {
  ModelBuilder model = two_blocks();
  const ModuleId head = model.linear(0, "head", 3'000'000);
  model.module(head, "activation", "GELU");
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping), ElementsAre("blocks.0", "blocks.1", "head"));
  EXPECT_EQ(describe_hooks(model, grouping).back(), "head: head");
}

TEST(Grouping, ChildrenWithoutTensorsDoNotRepeat) {
  ModelBuilder model;
  model.linear(model.module(0, "first", "Block"), "up", 20'000);
  model.module(model.module(0, "second", "Block"), "activation", "GELU");
  model.linear(0, "head", 20'000);
  EXPECT_THAT(describe(model.group(options())), ElementsAre("(model)"));
}

TEST(Grouping, ContainersAreNeverHooked) {
  ModelBuilder model = two_blocks();
  const ModuleId heads = model.module(0, "heads", "ModuleDict");
  model.linear(heads, "label", 5'000);
  model.leaf(heads, "mask", "Conv2d", 5'000);
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping), ElementsAre("blocks.0", "blocks.1", "heads.label", "heads.mask"));
}

TEST(Grouping, WhatAnOpenedModuleHoldsIsResidentOrReadOnDemand) {
  ModelBuilder model = two_blocks();
  model.tensor(0, "positions", 2'000);
  model.tensor(0, "memory", 1'000'001);
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping),
              ElementsAre("positions required", "memory rows", "blocks.0", "blocks.1"));
  EXPECT_EQ(grouping.hooks.size(), 2U);
}

TEST(Grouping, ALargeTableInsideABlockIsByItself) {
  ModelBuilder model = two_blocks();
  model.leaf(5, "table", "Embedding", 1'000);
  model.leaf(5, "small_table", "Embedding", 999);
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping), ElementsAre("blocks.0", "blocks.1", "blocks.1.table rows"));
  EXPECT_EQ(grouping.groups[1].tensors.size(), 3U);
}

TEST(Grouping, ATieOfTwoBlocksIsAcquiredByBoth) {
  ModelBuilder model = two_blocks();
  const TensorId shared = model.tensor(2, "shared", 9'000);
  model.tie(5, shared);
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping), ElementsAre("blocks.0", "blocks.0.shared", "blocks.1"));
  EXPECT_THAT(describe_hooks(model, grouping), ElementsAre("blocks.0: blocks.0 blocks.0.shared",
                                                           "blocks.1: blocks.0.shared blocks.1"));
}

// As the heads of masked language models: a transform, and a decoder tied to the table of words.
TEST(Grouping, APartTiedToOthersIsAUnitOfItsOwn) {
  ModelBuilder model = two_blocks();
  const ModuleId table = model.leaf(0, "table", "Embedding", 50'000);
  const ModuleId head = model.module(0, "head", "Head");
  model.linear(head, "transform", 20'000);
  model.tie(model.module(head, "decoder", "Linear"), model.weight(table));
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping),
              ElementsAre("blocks.0", "blocks.1", "head.transform", "table.weight"));
  EXPECT_THAT(describe_hooks(model, grouping),
              ElementsAre("blocks.0: blocks.0", "blocks.1: blocks.1",
                          "head.transform: head.transform", "head.decoder: table.weight"));
}

TEST(Grouping, ATieWithinABlockIsNone) {
  ModelBuilder model = two_blocks();
  model.tie(4, model.weight(3));
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping), ElementsAre("blocks.0", "blocks.1"));
  EXPECT_EQ(grouping.groups[0].tensors.size(), 2U);
}

TEST(Grouping, ASmallTieIsResident) {
  ModelBuilder model = two_blocks();
  model.tie(5, model.tensor(2, "shared", 10));
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping), ElementsAre("blocks.0", "blocks.0.shared required", "blocks.1"));
  EXPECT_THAT(describe_hooks(model, grouping),
              ElementsAre("blocks.0: blocks.0", "blocks.1: blocks.1"));
}

TEST(Grouping, ATieWithAnOpenedModuleIsResidentUnlessLarge) {
  ModelBuilder model = two_blocks();
  model.tie(2, model.tensor(0, "small", 5'000));
  const TensorId large = model.tensor(0, "large", 2'000'000);
  model.tie(5, large);
  const Grouping grouping = model.group(options());
  EXPECT_THAT(describe(grouping), ElementsAre("small required", "blocks.0", "blocks.1", "large"));
  EXPECT_EQ(describe_hooks(model, grouping).back(), "blocks.1: blocks.1 large");
}

TEST(Grouping, KeptModulesAndTensorsAreResident) {
  EXPECT_THAT(describe(two_blocks().group(options({"blocks.1"}))),
              ElementsAre("blocks.0", "blocks.1 required"));
  EXPECT_THAT(describe(two_blocks().group(options({"blocks"}))),
              ElementsAre("blocks.0 required", "blocks.1 required"));
  const Grouping part = two_blocks().group(options({"blocks.0.up.weight"}));
  EXPECT_THAT(describe(part), ElementsAre("blocks.0", "blocks.0.up.weight required", "blocks.1"));
  EXPECT_EQ(part.groups[0].tensors, std::vector<TensorId>{1});
}

TEST(Grouping, AKeptNameEndsAtADot) {
  ModelBuilder model;
  const ModuleId blocks = model.module(0, "blocks", "ModuleList");
  for (const char* name : {"1", "10"}) {
    model.linear(model.module(blocks, name, "Block"), "up", 20'000);
  }
  EXPECT_THAT(describe(model.group(options({"blocks.1"}))),
              ElementsAre("blocks.1 required", "blocks.10"));
}

TEST(Grouping, AKeptTieIsFoundByTheNameOfEveryHolder) {
  ModelBuilder model = two_blocks();
  const ModuleId table = model.leaf(0, "table", "Embedding", 50'000);
  model.tie(model.module(0, "head", "Linear"), model.weight(table));
  EXPECT_THAT(describe(model.group(options({"head"}))),
              ElementsAre("blocks.0", "blocks.1", "table.weight required"));
}

TEST(Grouping, AnUnknownKeptNameIsRefusedWithTheNearestOne) {
  for (const char* name : {"blocks.3", "block", "", "blocks.0.upp"}) {
    EXPECT_THROW(two_blocks().group(options({name})), ConfigError) << name;
  }
  try {
    two_blocks().group(options({"blocks.0.upp"}));
    FAIL() << "an unknown name was accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'blocks.0.upp'"));
    EXPECT_THAT(error.what(), HasSubstr("did you mean 'blocks.0.up'"));
  }
}

TEST(Grouping, BrokenTreesAreRefused) {
  std::vector<ModuleNode> modules{
      {"", 0, 0, false, false, {}}, {"a", 1, 2, false, false, {}}, {"b", 1, 0, false, false, {}}};
  EXPECT_THROW(group_modules(modules, {}, options()), ConfigError) << "parent after its child";
  modules[1].parent = 0;
  modules[1].tensors = {0};
  EXPECT_THROW(group_modules(modules, {}, options()), ConfigError) << "tensor that is not there";
  const std::vector<TensorShape> tensors{{"a.weight", 10}, {"lost", 10}};
  EXPECT_THROW(group_modules(modules, tensors, options()), ConfigError) << "held by no module";
}

}  // namespace
}  // namespace tensorstream
