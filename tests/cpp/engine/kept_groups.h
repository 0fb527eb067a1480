// Models of which groups stay on the device coded, and budgets for that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/frame_format.h"
#include "engine/open_engine.h"
#include "engine/ring_bytes.h"
#include "engine/test_model.h"

namespace tensorstream {

inline EngineOptions kept_options(Prefetch prefetch = Prefetch::kAdaptive) {
  EngineOptions options = with_prefetch(prefetch);
  options.compression = 1;
  options.piece_bytes = std::uint64_t{1} << 20U;  // a batch is one frame
  options.kept_page_bytes = std::uint64_t{1} << 12U;
  options.rates.link_bytes_per_second = 1e8;  // what crosses it costs most
  options.residents = ResidentUse::kLeased;
  return options;
}

/// Equal groups of bf16 weights in two frames each.
inline TestModel equal_bf16_model(std::size_t groups) {
  TestModel model(5);
  for (std::size_t i = 0; i < groups; ++i) {
    model.add_typed_group({{Dtype::kBf16, kFrameBytes - 5000}, {Dtype::kBf16, 2000}});
  }
  return model;
}

/// Equal groups of one small batch each.
inline TestModel small_bf16_model(std::size_t groups, std::uint64_t seed = 6) {
  TestModel model(seed);
  for (std::size_t i = 0; i < groups; ++i) {
    model.add_typed_group({{Dtype::kBf16, 150'000}, {Dtype::kBf16, 2000}});
  }
  return model;
}

/// So many percents of what all groups take, and the ring.
inline std::uint64_t budget_of(const ModelSpec& spec, std::uint64_t percent,
                               const EngineOptions& options) {
  return everything_of(spec, ComputePlace::kAccelerator) * percent / 100 +
         ring_bytes_of(spec, options);
}

inline std::vector<GroupId> placed(const Engine& engine, Placement placement) {
  std::vector<GroupId> groups;
  const Plan plan = engine.plan();
  for (GroupId group = 0; group < plan.groups.size(); ++group) {
    if (plan.groups[group].placement == placement) groups.push_back(group);
  }
  return groups;
}

}  // namespace tensorstream
