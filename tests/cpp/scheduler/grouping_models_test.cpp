// The groups of models as they are found in practice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "scheduler/model_builder.h"
#include "tensorstream/grouping.h"

namespace tensorstream {
namespace {

using ::testing::ElementsAre;

// Sizes in units that make a block larger than the smallest streamed group and smaller than the
// largest.
const GroupingOptions kOptions{1'000'000, 1'000, {}};

// What holds for every grouping: each tensor in one group; streamed groups are acquired, others by
// no one; nested hooked modules share nothing.
void expect_sound(const ModelBuilder& model, const Grouping& grouping) {
  std::map<TensorId, int> uses;
  for (const Group& group : grouping.groups) {
    EXPECT_FALSE(group.name.empty());
    EXPECT_FALSE(group.tensors.empty()) << group.name;
    for (const TensorId tensor : group.tensors) ++uses[tensor];
  }
  EXPECT_EQ(uses.size(), model.tensors().size());
  for (const auto& [tensor, count] : uses) EXPECT_EQ(count, 1) << model.tensors()[tensor].name;
  std::map<ModuleId, std::set<GroupId>> hooked;
  std::set<GroupId> acquired;
  for (const HookedModule& hook : grouping.hooks) {
    EXPECT_FALSE(model.modules()[hook.module].container);
    hooked[hook.module].insert(hook.groups.begin(), hook.groups.end());
    acquired.insert(hook.groups.begin(), hook.groups.end());
  }
  for (GroupId group = 0; group < grouping.groups.size(); ++group) {
    EXPECT_EQ(acquired.contains(group), grouping.groups[group].residency == Residency::kAny)
        << grouping.groups[group].name;
  }
  for (const auto& [module, groups] : hooked) {
    for (ModuleId above = module; above != 0;) {
      above = model.modules()[above].parent;
      for (const GroupId group : groups) EXPECT_FALSE(hooked[above].contains(group));
    }
  }
}

void add_llama_layers(ModelBuilder& model, ModuleId parent, int count) {
  const ModuleId layers = model.module(parent, "layers", "ModuleList");
  for (int i = 0; i < count; ++i) {
    const ModuleId layer = model.module(layers, std::to_string(i), "LlamaDecoderLayer");
    const ModuleId attention = model.module(layer, "self_attn", "LlamaAttention");
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      model.linear(attention, name, 10'000);
    }
    const ModuleId mlp = model.module(layer, "mlp", "LlamaMLP");
    for (const char* name : {"gate_proj", "up_proj", "down_proj"}) model.linear(mlp, name, 30'000);
    model.leaf(layer, "input_layernorm", "LlamaRMSNorm", 100);
    model.leaf(layer, "post_attention_layernorm", "LlamaRMSNorm", 100);
  }
}

ModelBuilder llama(bool tied) {
  ModelBuilder model;
  const ModuleId inner = model.module(0, "model", "LlamaModel");
  const ModuleId embed = model.leaf(inner, "embed_tokens", "Embedding", 500'000);
  add_llama_layers(model, inner, 3);
  model.leaf(inner, "norm", "LlamaRMSNorm", 100);
  const ModuleId head = model.module(0, "lm_head", "Linear");
  if (tied) {
    model.tie(head, model.weight(embed));
  } else {
    model.tensor(head, "weight", 500'000);
  }
  return model;
}

TEST(GroupingModels, LlamaIsItsDecoderLayers) {
  const ModelBuilder model = llama(false);
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping),
              ElementsAre("model.embed_tokens rows", "model.layers.0", "model.layers.1",
                          "model.layers.2", "model.norm required", "lm_head"));
  EXPECT_THAT(describe_hooks(model, grouping),
              ElementsAre("model.layers.0: model.layers.0", "model.layers.1: model.layers.1",
                          "model.layers.2: model.layers.2", "lm_head: lm_head"));
  EXPECT_EQ(grouping.groups[1].tensors.size(), 9U);
}

TEST(GroupingModels, ATiedHeadTakesTheTableWholeAndTheEmbeddingDoesNot) {
  const ModelBuilder model = llama(true);
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping), ElementsAre("model.layers.0", "model.layers.1", "model.layers.2",
                                              "model.norm required", "model.embed_tokens.weight"));
  EXPECT_EQ(describe_hooks(model, grouping).back(), "lm_head: model.embed_tokens.weight");
}

TEST(GroupingModels, LayersLargerThanTheLimitAreSplit) {
  const ModelBuilder model = llama(false);
  const Grouping grouping = model.group({100'000, 1'000, {}});
  expect_sound(model, grouping);
  const std::vector<std::string> names = describe(grouping);
  EXPECT_THAT(std::vector<std::string>(names.begin() + 1, names.begin() + 5),
              ElementsAre("model.layers.0.self_attn", "model.layers.0.mlp",
                          "model.layers.0.input_layernorm required",
                          "model.layers.0.post_attention_layernorm required"));
  EXPECT_EQ(names.back(), "lm_head") << "a leaf cannot be split";
}

// T5: a block's inner ModuleList holds children of different types; position biases are small
// embeddings.
void add_t5_stack(ModelBuilder& model, const std::string& name, bool decoder, TensorId shared) {
  const ModuleId stack = model.module(0, name, "T5Stack");
  model.tie(model.module(stack, "embed_tokens", "Embedding"), shared);
  const ModuleId blocks = model.module(stack, "block", "ModuleList");
  for (int i = 0; i < 2; ++i) {
    const ModuleId block = model.module(blocks, std::to_string(i), "T5Block");
    const ModuleId parts = model.module(block, "layer", "ModuleList");
    int part = 0;
    const ModuleId self = model.module(parts, std::to_string(part++), "T5LayerSelfAttention");
    const ModuleId attention = model.module(self, "SelfAttention", "T5Attention");
    for (const char* weight : {"q", "k", "v", "o"}) model.linear(attention, weight, 10'000);
    if (i == 0) model.leaf(attention, "relative_attention_bias", "Embedding", 64);
    if (decoder) {
      const ModuleId cross = model.module(parts, std::to_string(part++), "T5LayerCrossAttention");
      const ModuleId other = model.module(cross, "EncDecAttention", "T5Attention");
      for (const char* weight : {"q", "k", "v", "o"}) model.linear(other, weight, 10'000);
    }
    const ModuleId feed = model.module(parts, std::to_string(part), "T5LayerFF");
    const ModuleId dense = model.module(feed, "DenseReluDense", "T5DenseActDense");
    model.linear(dense, "wi", 40'000);
    model.linear(dense, "wo", 40'000);
  }
  model.leaf(stack, "final_layer_norm", "T5LayerNorm", 100);
}

TEST(GroupingModels, T5BlocksAreWholeAndTheSharedTableIsCountedOnce) {
  ModelBuilder model;
  const ModuleId shared = model.leaf(0, "shared", "Embedding", 300'000);
  add_t5_stack(model, "encoder", false, model.weight(shared));
  add_t5_stack(model, "decoder", true, model.weight(shared));
  model.linear(0, "lm_head", 300'000);
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping),
              ElementsAre("shared.weight rows", "encoder.block.0", "encoder.block.1",
                          "encoder.final_layer_norm required", "decoder.block.0", "decoder.block.1",
                          "decoder.final_layer_norm required", "lm_head"));
  EXPECT_EQ(grouping.groups[1].tensors.size(), 7U) << "a small table stays in its block";
}

TEST(GroupingModels, BertIsItsLayersAndItsTables) {
  ModelBuilder model;
  const ModuleId embeddings = model.module(0, "embeddings", "BertEmbeddings");
  model.leaf(embeddings, "word_embeddings", "Embedding", 400'000);
  model.leaf(embeddings, "position_embeddings", "Embedding", 20'000);
  model.leaf(embeddings, "token_type_embeddings", "Embedding", 100);
  model.leaf(embeddings, "LayerNorm", "LayerNorm", 100);
  const ModuleId encoder = model.module(0, "encoder", "BertEncoder");
  const ModuleId layers = model.module(encoder, "layer", "ModuleList");
  for (int i = 0; i < 2; ++i) {
    const ModuleId layer = model.module(layers, std::to_string(i), "BertLayer");
    const ModuleId attention = model.module(layer, "attention", "BertAttention");
    const ModuleId self = model.module(attention, "self", "BertSelfAttention");
    for (const char* name : {"query", "key", "value"}) model.linear(self, name, 10'000);
    const ModuleId output = model.module(attention, "output", "BertSelfOutput");
    model.linear(output, "dense", 10'000);
    model.linear(model.module(layer, "intermediate", "BertIntermediate"), "dense", 40'000);
    model.linear(model.module(layer, "output", "BertOutput"), "dense", 40'000);
  }
  model.linear(model.module(0, "pooler", "BertPooler"), "dense", 10'000);
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping),
              ElementsAre("embeddings required", "embeddings.word_embeddings rows",
                          "embeddings.position_embeddings rows", "encoder.layer.0",
                          "encoder.layer.1", "pooler"));
}

TEST(GroupingModels, AlbertIsOneGroupBecauseItsLayerIsShared) {
  ModelBuilder model;
  const ModuleId embeddings = model.module(0, "embeddings", "AlbertEmbeddings");
  model.leaf(embeddings, "word_embeddings", "Embedding", 100'000);
  const ModuleId encoder = model.module(0, "encoder", "AlbertTransformer");
  model.linear(encoder, "embedding_hidden_mapping_in", 10'000);
  const ModuleId groups = model.module(encoder, "albert_layer_groups", "ModuleList");
  const ModuleId group = model.module(groups, "0", "AlbertLayerGroup");
  const ModuleId layers = model.module(group, "albert_layers", "ModuleList");
  const ModuleId layer = model.module(layers, "0", "AlbertLayer");
  model.linear(layer, "ffn", 40'000);
  model.linear(layer, "ffn_output", 40'000);
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping), ElementsAre("(model)", "embeddings.word_embeddings rows"));
  EXPECT_THAT(describe_hooks(model, grouping), ElementsAre(": (model)"));
}

TEST(GroupingModels, ExpertsAreGroupsOfTheirOwn) {
  ModelBuilder model;
  const ModuleId layers = model.module(0, "layers", "ModuleList");
  for (int i = 0; i < 2; ++i) {
    const ModuleId layer = model.module(layers, std::to_string(i), "MixtralDecoderLayer");
    const ModuleId attention = model.module(layer, "self_attn", "MixtralAttention");
    for (const char* name : {"q_proj", "k_proj"}) model.linear(attention, name, 10'000);
    const ModuleId moe = model.module(layer, "block_sparse_moe", "MixtralSparseMoeBlock");
    model.linear(moe, "gate", 100);
    const ModuleId experts = model.module(moe, "experts", "ModuleList");
    for (int e = 0; e < 2; ++e) {
      const ModuleId expert = model.module(experts, std::to_string(e), "MixtralMLP");
      for (const char* name : {"w1", "w2", "w3"}) model.linear(expert, name, 20'000);
    }
  }
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(
      describe(grouping),
      ElementsAre("layers.0.self_attn", "layers.0.block_sparse_moe.gate required",
                  "layers.0.block_sparse_moe.experts.0", "layers.0.block_sparse_moe.experts.1",
                  "layers.1.self_attn", "layers.1.block_sparse_moe.gate required",
                  "layers.1.block_sparse_moe.experts.0", "layers.1.block_sparse_moe.experts.1"));
}

TEST(GroupingModels, ViTKeepsWhatTheOpenedModuleHoldsItself) {
  ModelBuilder model;
  const ModuleId embeddings = model.module(0, "embeddings", "ViTEmbeddings");
  model.tensor(embeddings, "cls_token", 100);
  model.tensor(embeddings, "position_embeddings", 5'000);
  model.leaf(embeddings, "projection", "Conv2d", 20'000);
  model.tensor(0, "register_tokens", 2'000);
  const ModuleId encoder = model.module(0, "encoder", "ViTEncoder");
  const ModuleId layers = model.module(encoder, "layer", "ModuleList");
  for (int i = 0; i < 2; ++i) {
    const ModuleId layer = model.module(layers, std::to_string(i), "ViTLayer");
    model.linear(layer, "attention", 30'000);
    model.linear(layer, "mlp", 60'000);
  }
  model.linear(0, "classifier", 3'000);
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping), ElementsAre("register_tokens required", "embeddings",
                                              "encoder.layer.0", "encoder.layer.1", "classifier"));
}

TEST(GroupingModels, Gpt2TiesItsHeadToItsTable) {
  ModelBuilder model;
  const ModuleId transformer = model.module(0, "transformer", "GPT2Model");
  const ModuleId wte = model.leaf(transformer, "wte", "Embedding", 400'000);
  model.leaf(transformer, "wpe", "Embedding", 8'000);
  const ModuleId blocks = model.module(transformer, "h", "ModuleList");
  for (int i = 0; i < 2; ++i) {
    const ModuleId block = model.module(blocks, std::to_string(i), "GPT2Block");
    const ModuleId attention = model.module(block, "attn", "GPT2Attention");
    model.leaf(attention, "c_attn", "Conv1D", 30'000);
    model.leaf(attention, "c_proj", "Conv1D", 10'000);
    model.leaf(model.module(block, "mlp", "GPT2MLP"), "c_fc", "Conv1D", 40'000);
  }
  model.tie(model.module(0, "lm_head", "Linear"), model.weight(wte));
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping), ElementsAre("transformer.wpe rows", "transformer.h.0",
                                              "transformer.h.1", "transformer.wte.weight"));
  EXPECT_EQ(describe_hooks(model, grouping).back(), "lm_head: transformer.wte.weight");
}

TEST(GroupingModels, ResNetStagesInSequentialsAreOpened) {
  ModelBuilder model;
  model.leaf(0, "conv1", "Conv2d", 2'000);
  for (const char* stage : {"layer1", "layer2"}) {
    const ModuleId blocks = model.module(0, stage, "Sequential");
    for (int i = 0; i < 2; ++i) {
      const ModuleId block = model.module(blocks, std::to_string(i), "Bottleneck");
      for (const char* name : {"conv1", "conv2"}) model.leaf(block, name, "Conv2d", 20'000);
    }
  }
  const Grouping grouping = model.group(kOptions);
  expect_sound(model, grouping);
  EXPECT_THAT(describe(grouping),
              ElementsAre("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"));
}

TEST(GroupingModels, SelfAndCrossAttentionOfABlockAreNotBlocks) {
  ModelBuilder model;
  const ModuleId layers = model.module(0, "layers", "ModuleList");
  for (int i = 0; i < 2; ++i) {
    const ModuleId layer = model.module(layers, std::to_string(i), "BartDecoderLayer");
    for (const char* name : {"self_attn", "encoder_attn"}) {
      const ModuleId attention = model.module(layer, name, "BartAttention");
      for (const char* weight : {"q_proj", "k_proj"}) model.linear(attention, weight, 10'000);
    }
  }
  EXPECT_THAT(describe(model.group(kOptions)), ElementsAre("layers.0", "layers.1"));
}

}  // namespace
}  // namespace tensorstream
