// Questions: what does one use of a group cost the caller when the group is resident, when it is
// streamed and loaded already, and when its bytes come from RAM each time? How long do planning and
// cutting a model take, by its number of groups?
//
// Method: a host device that does not check, the calling thread's stream, medians and spread of
// repeated runs, warm memory.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/units.h"
#include "device/host_device.h"
#include "engine/group_layout.h"
#include "engine/model_plan.h"
#include "io/reader.h"
#include "memory/budget.h"
#include "scheduler/planner.h"
#include "tensorstream/engine.h"

namespace tensorstream {
namespace {

constexpr int kRepetitions = 7;

/// `count` groups of one tensor of `size_bytes` in RAM.
ModelSpec model_of(std::uint32_t count, std::uint64_t size_bytes) {
  const auto bytes = std::make_shared<std::vector<std::byte>>(count * size_bytes, std::byte{1});
  ModelSpec model;
  model.sources.push_back(create_memory_reader("weights", *bytes, bytes));
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::string name = "block." + std::to_string(i);
    model.tensors.push_back(
        {name + ".weight", Dtype::kU8, size_bytes, {{0, i * size_bytes, size_bytes}}});
    model.groups.push_back({name, {i}, Residency::kAny});
  }
  return model;
}

/// Acquires and releases one group after the other, as a model's forward does.
void use_in_turn(benchmark::State& state, Engine& engine, Stream& stream, std::uint32_t count) {
  std::uint32_t group = 0;
  for (const auto _ : state) {
    benchmark::DoNotOptimize(engine.acquire(group, stream));
    engine.release(group, stream);
    group = (group + 1) % count;
  }
}

void resident_group(benchmark::State& state) {
  const auto device = create_host_device();
  const ModelSpec model = model_of(4, 1_MiB);
  Engine engine(*device, Budget::create(1_GiB), model, EngineOptions{});
  use_in_turn(state, engine, device->caller_stream(), 4);
}
BENCHMARK(resident_group)->Repetitions(kRepetitions)->ReportAggregatesOnly();

void streamed_group_loaded_already(benchmark::State& state) {
  const auto device = create_host_device();
  Engine engine(*device, Budget::create(1_MiB), model_of(4, 1_MiB), EngineOptions{});
  use_in_turn(state, engine, device->caller_stream(), 1);
}
BENCHMARK(streamed_group_loaded_already)->Repetitions(kRepetitions)->ReportAggregatesOnly();

/// The time includes the copy: four groups share one place, so none is there when it is asked for.
void streamed_group_from_ram(benchmark::State& state) {
  const auto size_bytes = static_cast<std::uint64_t>(state.range(0));
  const auto device = create_host_device();
  EngineOptions options;
  options.prefetch = Prefetch::kNone;
  Engine engine(*device, Budget::create(size_bytes), model_of(4, size_bytes), options);
  use_in_turn(state, engine, device->caller_stream(), 4);
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(streamed_group_from_ram)
    ->Arg(4_KiB)
    ->Arg(1_MiB)
    ->Arg(16_MiB)
    ->UseRealTime()
    ->Repetitions(kRepetitions)
    ->ReportAggregatesOnly();

/// Half of the bytes fit; sizes are unlike, as attention and MLP are.
void plan_of_groups(benchmark::State& state) {
  std::vector<GroupFootprint> groups;
  for (std::int64_t i = 0; i < state.range(0); ++i) {
    groups.push_back({"block." + std::to_string(i), i % 2 == 0 ? 72_MiB : 24_MiB, Residency::kAny});
  }
  const std::uint64_t budget = everything_fits_bytes(groups) / 2;
  for (const auto _ : state) benchmark::DoNotOptimize(make_plan(groups, budget, Rates{}));
}
BENCHMARK(plan_of_groups)
    ->Arg(40)
    ->Arg(200)
    ->Arg(2000)
    ->Unit(benchmark::kMillisecond)
    ->Repetitions(kRepetitions)
    ->ReportAggregatesOnly();

/// Adds a module and, where it has bytes, its weight.
ModuleId add_module(ModelTree& tree, ModuleId parent, const std::string& name, std::uint32_t type,
                    std::uint64_t size_bytes) {
  ModuleNode module;
  module.name = tree.modules.empty() ? "" : tree.modules[parent].name + "." + name;
  module.type = type;
  module.parent = parent;
  module.container = name == "layers" || name == "experts";
  if (size_bytes != 0) {
    module.tensors = {static_cast<TensorId>(tree.tensors.size())};
    tree.tensors.push_back({module.name + ".weight", Dtype::kBf16, size_bytes, {}});
  }
  tree.modules.push_back(std::move(module));
  return static_cast<ModuleId>(tree.modules.size() - 1);
}

/// 32 layers of four attention weights, two norms and `experts` MLPs of three weights.
ModelTree transformer(std::int64_t experts) {
  ModelTree tree;
  const ModuleId root = add_module(tree, 0, "", 0, 0);
  const ModuleId layers = add_module(tree, root, "layers", 1, 0);
  for (int i = 0; i < 32; ++i) {
    const ModuleId layer = add_module(tree, layers, std::to_string(i), 2, 0);
    const ModuleId attention = add_module(tree, layer, "attention", 3, 0);
    for (const char* name : {"q", "k", "v", "o"}) add_module(tree, attention, name, 4, 8_MiB);
    for (const char* name : {"norm", "mlp_norm"}) add_module(tree, layer, name, 5, 8_KiB);
    const ModuleId mlps = add_module(tree, layer, "experts", 1, 0);
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const ModuleId mlp = add_module(tree, mlps, std::to_string(expert), 6, 0);
      for (const char* name : {"gate", "up", "down"}) add_module(tree, mlp, name, 4, 20_MiB);
    }
  }
  return tree;
}

/// By the number of experts a layer; half of the bytes fit.
void plan_of_a_transformer(benchmark::State& state) {
  const ModelTree tree = transformer(state.range(0));
  const std::uint64_t budget = tree.weights_bytes() / 2;
  for (const auto _ : state) benchmark::DoNotOptimize(plan_model(tree, budget, Rates{}));
}
BENCHMARK(plan_of_a_transformer)
    ->Arg(1)
    ->Arg(64)
    ->Unit(benchmark::kMillisecond)
    ->Repetitions(3)
    ->ReportAggregatesOnly();

}  // namespace
}  // namespace tensorstream

BENCHMARK_MAIN();
