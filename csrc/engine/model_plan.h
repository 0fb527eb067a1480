// From a module tree and a budget to groups and a plan: as coarse as the budget allows, as fine as
// it asks for.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tensorstream/engine.h"

namespace tensorstream {

/// What a model is made of, as the walk over its modules found it.
struct ModelTree {
  std::vector<ModuleNode> modules;
  std::vector<TensorSpec> tensors;
  /// Bytes that stay on the device whatever the plan: buffers, and parameters that cannot be
  /// streamed.
  std::uint64_t fixed_bytes = 0;
  std::vector<std::string> keep_resident;
  /// Whose bytes are in RAM, and in no file.
  std::vector<TensorId> in_ram;
  /// Of the tensors' extents: files that the device copies from (PinnedFile).
  std::vector<std::uint32_t> pinned_sources;

  std::uint64_t weights_bytes() const;
  /// Bytes of some tensors. Raises std::out_of_range for one that there is not.
  std::uint64_t size_bytes(const std::vector<TensorId>& ids) const;
  /// Whether all bytes of the tensors are in pinned_sources.
  bool in_pinned_files(const std::vector<TensorId>& ids) const;
};

/// A budget that holds any model.
inline constexpr std::uint64_t kLargestBudgetBytes = std::uint64_t{1} << 60U;

/// The budget where the user gives none: `available_bytes` less 1 GiB for everything else, and half
/// of it where there is less than 2 GiB.
std::uint64_t default_budget_bytes(std::uint64_t available_bytes);

/// How weights cross the link.
enum class Crossing { kRaw, kCoded };

struct ModelPlan {
  Grouping grouping;
  Plan plan;
};

/// True where a tensor's elements fill its bytes exactly once: no gaps, no overlap, whatever the
/// order of its dimensions. `shape` and `strides` are as long as each other, in elements.
bool is_dense(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides);

/// What else a plan has to know of the device.
struct PlanOptions {
  ComputePlace place = ComputePlace::kHost;
  /// What it leaves free of the budget, as far as the smallest plan allows.
  std::uint64_t spared_bytes = 0;
  /// As EngineOptions has it, for a device that decodes.
  std::optional<std::uint32_t> compression = 0;
  /// Host memory that homes may take: as home_room() says.
  std::uint64_t home_bytes = kLargestBudgetBytes;
};

/// Host memory for the homes of `tree`: what `ram_budget_bytes` (nothing: no ceiling) leaves beside
/// what is staged, and where all bytes are in files no more than `available_bytes` of the system
/// have room for.
std::uint64_t home_room(const ModelTree& tree, std::optional<std::uint64_t> ram_budget_bytes,
                        std::uint64_t available_bytes);

/// Groups and plans `tree` for `budget_bytes`. Groups are whole blocks, or parts of them where
/// that makes a pass noticeably shorter or the budget asks for it. The plan's bytes include
/// fixed_bytes. Where the rates do not know what the host takes for a pass, it is what is usual;
/// the pass is predicted by rates_of_host(). Where weights are coded, what is streamed is predicted
/// by its coded bytes, and the ring to decode from takes its part of the budget. Raises
/// BudgetError, naming the group that does not fit, its size, the budget and the smallest budget
/// that works, and ConfigError for names in keep_resident that match nothing.
ModelPlan plan_model(const ModelTree& tree, std::uint64_t budget_bytes, const Rates& rates,
                     const PlanOptions& options = {});

/// What the host is expected to take for a pass over `tensors`: Rates::host_seconds, before it is
/// measured. 0 where the host computes.
double usual_host_seconds(std::span<const TensorSpec> tensors, ComputePlace place);

/// Has `rates` say what the host is to count with: what is expected where they say nothing, and no
/// leases where the host computes.
void count_host(Rates& rates, std::span<const TensorSpec> tensors, ComputePlace place);
/// `rates` with what the host takes by Rates::host_call_seconds, to predict by; as they are where
/// that is not known, or where the host computes.
Rates rates_of_host(Rates rates, std::span<const TensorSpec> tensors, ComputePlace place);

/// The structure alone: groups of whole blocks, whatever their size.
Grouping group_model(const ModelTree& tree);

}  // namespace tensorstream
