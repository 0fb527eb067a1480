#include "engine/model_plan.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "base/units.h"
#include "engine/batch_choice.h"
#include "engine/compression_choice.h"
#include "engine/decode_ring.h"
#include "engine/frame_batches.h"
#include "engine/group_layout.h"
#include "engine/staged_reader.h"
#include "platform/processors.h"
#include "scheduler/pass_time.h"
#include "scheduler/planner.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// For each parameter, of which most are a module with a kernel or two: transformers' Llama of 7B
// takes 23 ms for 291 beside an H100.
constexpr double kHostSecondsATensor = 80e-6;
// What its native steps take of calls as Rates::host_call_seconds has them: 800 beside an H200
// (docs/adr/0022-what-a-lease-costs.md).
constexpr double kHostCallsATensor = 2.75;
// And what a lease takes of them: of a group, and of each of its tensors (the same page).
constexpr double kHostCallsALease = 0.5;
constexpr double kHostCallsATensorLent = 0.44;
constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

/// One way to cut a model into groups.
struct Cut {
  std::uint64_t largest_group_bytes;
  std::uint64_t smallest_streamed_bytes;
};

Grouping group_with(const ModelTree& tree, const Cut& cut) {
  std::vector<TensorShape> shapes;
  shapes.reserve(tree.tensors.size());
  for (const TensorSpec& tensor : tree.tensors) shapes.push_back({tensor.name, tensor.size_bytes});
  GroupingOptions options;
  options.largest_group_bytes = cut.largest_group_bytes;
  options.smallest_streamed_bytes = cut.smallest_streamed_bytes;
  options.keep_resident = tree.keep_resident;
  return group_modules(tree.modules, shapes, options);
}

// A load costs some microseconds whatever its size, so tiny groups are streamed only where nothing
// else fits.
constexpr Cut kBlocks = {kUnlimited, 256_KiB};
constexpr Cut kLeaves = {1, 16_KiB};

// How many cuts are tried beside those that the budget asks for, and how many sizes are looked at
// for them.
constexpr std::size_t kMostSplits = 3;
constexpr int kMostSizes = 16;
constexpr std::uint64_t kSmallestSplit = 64_KiB;
// Of what leases of decoded groups take of the host, what counts where cuts are compared, beside a
// pass that hides it: the thread that runs the pass and the loader's hand over to each other at
// each of them, and what either is late by is not in the model. 226 of a 7B model took 1.1 to 2
// times what was predicted on an H100, raw ones of any cut 1.02 times at most.
constexpr double kFeltLeaseShare = 0.5;

/// The cuts that each split the largest groups of the one before, as far as they have parts.
std::vector<Cut> splits(const ModelTree& tree) {
  std::vector<Cut> found;
  std::uint64_t limit = kUnlimited;
  std::size_t count = 0;
  for (int size = 0; size < kMostSizes && found.size() < kMostSplits; ++size) {
    const Cut cut{limit, kSmallestSplit};
    const Grouping grouping = group_with(tree, cut);
    if (limit != kUnlimited && grouping.groups.size() != count) found.push_back(cut);
    count = grouping.groups.size();
    std::uint64_t largest = 0;
    for (const Group& group : grouping.groups) {
      const std::uint64_t bytes = tree.size_bytes(group.tensors);
      if (group.residency == Residency::kAny && bytes <= limit) largest = std::max(largest, bytes);
    }
    if (largest < kSmallestSplit) break;
    limit = largest - 1;
  }
  return found;
}

/// From whole blocks down to single leaves: as the budget asks for, and on an accelerator, where
/// leases of many small groups may take longer than a pass, by splits.
std::vector<Cut> cuts_for(const ModelTree& tree, std::uint64_t budget_bytes, ComputePlace place) {
  std::vector<Cut> cuts;
  if (place == ComputePlace::kAccelerator) cuts = splits(tree);
  cuts.insert(cuts.end(), {kBlocks, Cut{budget_bytes / 3, 256_KiB}, Cut{budget_bytes / 6, 64_KiB},
                           Cut{budget_bytes / 24, 16_KiB}, kLeaves});
  std::ranges::stable_sort(cuts, std::greater<>(), &Cut::largest_group_bytes);
  return cuts;
}

/// What groups are cut for.
struct Target {
  ComputePlace place;
  std::uint64_t spared_bytes;
  Crossing crossing;
  std::vector<TensorId> in_ram;  // in their order
  std::uint64_t budget_bytes;    // 0 for the least
};

/// A cut, its groups and the least that they need.
struct CutGroups {
  Cut cut;
  std::vector<GroupFootprint> groups;
  std::uint64_t ring_bytes = 0;  // of the smallest
  std::uint64_t smallest_bytes = 0;
};

CutGroups cut_groups(const ModelTree& tree, const Grouping& grouping, const Cut& cut,
                     const Target& target) {
  CutGroups made{cut, {}, 0, 0};
  if (target.crossing == Crossing::kCoded) {
    const EngineOptions usual;
    const std::uint64_t batch_bytes =
        best_batch_bytes(grouping.groups, tree.tensors, usual.piece_bytes, target.budget_bytes);
    made.groups = coded_footprints(grouping.groups, tree.tensors, target.place,
                                   usual.kept_page_bytes, batch_bytes);
    made.ring_bytes =
        DecodeRing::size_bytes_for(largest_batch_bytes(grouping.groups, tree.tensors, batch_bytes));
  } else {
    made.groups = footprints(grouping.groups, tree.tensors, target.place);
  }
  for (std::size_t i = 0; i < made.groups.size(); ++i) {
    made.groups[i].in_files =
        target.place == ComputePlace::kAccelerator &&
        !std::ranges::all_of(grouping.groups[i].tensors, [&](TensorId tensor) {
          return std::ranges::binary_search(target.in_ram, tensor);
        });
    const bool pinned = made.groups[i].in_files && tree.in_pinned_files(grouping.groups[i].tensors);
    if (pinned) note_pinned(made.groups[i]);
  }
  made.smallest_bytes = smallest_budget_bytes(made.groups) + made.ring_bytes;
  return made;
}

/// The limit that splits the largest groups of `grouping`, made by `cut`, and nothing else; nothing
/// where they have no parts.
std::optional<std::uint64_t> next_limit(const ModelTree& tree, const Grouping& grouping,
                                        const CutGroups& made) {
  std::uint64_t largest_place = 0;
  std::uint64_t largest_within = 0;
  bool largest_splits = false;
  for (std::size_t i = 0; i < grouping.groups.size(); ++i) {
    if (grouping.groups[i].residency != Residency::kAny) continue;
    const std::uint64_t bytes = tree.size_bytes(grouping.groups[i].tensors);
    const bool within = bytes <= made.cut.largest_group_bytes;
    if (within) largest_within = std::max(largest_within, bytes);
    if (made.groups[i].size_bytes < largest_place) continue;
    largest_splits = within && (largest_splits || made.groups[i].size_bytes > largest_place);
    largest_place = made.groups[i].size_bytes;
  }
  if (!largest_splits || largest_within < 2) return std::nullopt;
  return largest_within - 1;
}

/// The cut that needs least of a budget. Splitting lowers what the largest group needs and raises
/// what is too small to stream, so neither whole blocks nor leaves are it in every model.
CutGroups smallest_cut(const ModelTree& tree, const Target& target) {
  std::optional<CutGroups> best;
  std::optional<std::uint64_t> limit = kUnlimited;
  while (limit) {
    const Cut cut = {*limit, kLeaves.smallest_streamed_bytes};
    const Grouping grouping = group_with(tree, cut);
    CutGroups made = cut_groups(tree, grouping, cut, target);
    limit = next_limit(tree, grouping, made);
    if (!limit && cut.largest_group_bytes != kLeaves.largest_group_bytes) {
      limit = kLeaves.largest_group_bytes;
    }
    if (!best || made.smallest_bytes < best->smallest_bytes) best = std::move(made);
  }
  return std::move(*best);
}

/// What counts where cuts are compared, beside what is predicted of a pass: what it hides of the
/// link, and of leases of groups that are decoded.
double felt_seconds(std::span<const GroupFootprint> groups, const Rates& rates, const Plan& plan) {
  std::vector<PassStep> steps = pass_steps(groups, plan);
  const double link = felt_link_seconds(steps, rates);
  std::erase_if(steps, [](const PassStep& step) { return !step.decoded(); });
  return link + kFeltLeaseShare * leases_seconds(steps, rates);
}

/// Whether a finer cut's plan is worth its smaller loads: fewer are exposed, or a pass takes less
/// time because more of the budget is put to use; on a host noticeably less, elsewhere by more than
/// it may cost unseen. An accelerator's loads go on while it computes, and with smaller
/// groups the arena can get smaller when forwards need the room.
bool is_better(const Plan& finer, const Plan& coarser, double more_felt_seconds,
               ComputePlace place) {
  const double noticeably = place == ComputePlace::kHost ? 0.97 : 1;
  if (finer.exposed_loads != coarser.exposed_loads && coarser.exposed_loads != 0) {
    return finer.predicted_seconds <= coarser.predicted_seconds;
  }
  return finer.exposed_loads == 0 &&
         finer.predicted_seconds + more_felt_seconds < noticeably * coarser.predicted_seconds;
}

void add_fixed(Plan& plan, const ModelTree& tree, std::uint64_t budget_bytes,
               std::uint64_t smallest_bytes) {
  plan.budget_bytes = budget_bytes;
  plan.resident_bytes += tree.fixed_bytes;
  plan.everything_fits_bytes += tree.fixed_bytes;
  plan.smallest_budget_bytes = smallest_bytes + tree.fixed_bytes;
}

[[noreturn]] void raise_too_small(const ModelTree& tree, std::uint64_t budget_bytes,
                                  const CutGroups& smallest) {
  const GroupFootprint* largest = nullptr;
  for (const GroupFootprint& group : smallest.groups) {
    if (group.residency != Residency::kAny) continue;
    if (largest == nullptr || group.size_bytes > largest->size_bytes) largest = &group;
  }
  const std::uint64_t needed = smallest.smallest_bytes + tree.fixed_bytes;
  const std::string ring = smallest.ring_bytes == 0
                               ? ""
                               : ", " + format_size(smallest.ring_bytes) +
                                     " of it for the ring that coded weights are decoded from";
  std::string parts = "weights that stay resident take " + format_size(needed);
  if (largest != nullptr) {
    parts = "the largest group, '" + largest->name + "', takes " +
            format_size(largest->size_bytes) + " and what stays resident " +
            format_size(needed - largest->size_bytes) + ring;
  }
  throw BudgetError("budget of " + format_size(budget_bytes) + " (" + std::to_string(budget_bytes) +
                        " bytes) is too small: " + parts + "; the smallest budget that works is " +
                        std::to_string(needed) + " bytes (" + format_size(needed) + ")",
                    needed, budget_bytes);
}

/// A plan, and what its groups take.
struct Planned {
  ModelPlan made;
  std::vector<GroupFootprint> groups;
};

Planned plan_as(const ModelTree& tree, std::uint64_t budget_bytes, const Rates& rates,
                const Target& target) {
  const std::uint64_t free_bytes =
      budget_bytes > tree.fixed_bytes ? budget_bytes - tree.fixed_bytes : 0;
  Target least = target;
  least.budget_bytes = 0;
  const CutGroups smallest = smallest_cut(tree, least);
  if (budget_bytes < tree.fixed_bytes || free_bytes < smallest.smallest_bytes) {
    raise_too_small(tree, budget_bytes, smallest);
  }
  std::optional<Planned> best;
  double best_felt = 0;
  const std::uint64_t spared = std::min(target.spared_bytes, free_bytes - smallest.smallest_bytes);
  const auto consider = [&](const Cut& cut) {
    Grouping grouping = group_with(tree, cut);
    const auto fits = [&](const CutGroups& groups) {
      return groups.smallest_bytes <= free_bytes && free_bytes - groups.smallest_bytes >= spared;
    };
    CutGroups made = cut_groups(tree, grouping, cut, target);
    if (!fits(made)) made = cut_groups(tree, grouping, cut, least);
    if (!fits(made)) return;
    Plan plan = make_plan(made.groups, free_bytes - made.ring_bytes - spared, rates);
    plan.ring_bytes = made.ring_bytes;
    const double felt = felt_seconds(made.groups, rates, plan);
    if (!best || is_better(plan, best->made.plan, felt - best_felt, target.place)) {
      best = Planned{{std::move(grouping), std::move(plan)}, std::move(made.groups)};
      best_felt = felt;
    }
  };
  for (const Cut& cut : cuts_for(tree, free_bytes, target.place)) consider(cut);
  consider(smallest.cut);
  const std::vector<GroupFootprint> blocks =
      footprints(group_with(tree, kBlocks).groups, tree.tensors, target.place);
  best->made.plan.everything_fits_bytes = everything_fits_bytes(blocks);
  add_fixed(best->made.plan, tree, budget_bytes, smallest.smallest_bytes);
  return std::move(*best);
}

}  // namespace

bool is_dense(std::span<const std::int64_t> shape, std::span<const std::int64_t> strides) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dimensions;  // stride, extent
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0) return true;
    if (shape[i] != 1) dimensions.emplace_back(strides[i], shape[i]);
  }
  std::sort(dimensions.begin(), dimensions.end());
  std::int64_t expected = 1;
  for (const auto& [stride, extent] : dimensions) {
    if (stride != expected) return false;
    expected *= extent;
  }
  return true;
}

std::uint64_t ModelTree::weights_bytes() const {
  std::uint64_t total = 0;
  for (const TensorSpec& tensor : tensors) total += tensor.size_bytes;
  return total;
}

std::uint64_t ModelTree::size_bytes(const std::vector<TensorId>& ids) const {
  std::uint64_t total = 0;
  for (const TensorId id : ids) total += tensors.at(id).size_bytes;
  return total;
}

bool ModelTree::in_pinned_files(const std::vector<TensorId>& ids) const {
  return std::ranges::all_of(ids, [&](TensorId id) {
    const TensorSpec& tensor = tensors.at(id);
    std::uint64_t pinned_bytes = 0;
    for (const Extent& extent : tensor.extents) {
      const auto found = std::ranges::find(pinned_sources, extent.source);
      if (found != pinned_sources.end()) pinned_bytes += extent.size_bytes;
    }
    return pinned_bytes == tensor.size_bytes;
  });
}

std::uint64_t default_budget_bytes(std::uint64_t available_bytes) {
  return available_bytes < 2_GiB ? available_bytes / 2 : available_bytes - 1_GiB;
}

double usual_host_seconds(std::span<const TensorSpec> tensors, ComputePlace place) {
  if (place == ComputePlace::kHost) return 0;
  return kHostSecondsATensor * static_cast<double>(tensors.size());
}

void count_host(Rates& rates, std::span<const TensorSpec> tensors, ComputePlace place) {
  if (place == ComputePlace::kHost) rates.lease_seconds = rates.lend_seconds = 0;
  if (rates.host_seconds == 0) rates.host_seconds = usual_host_seconds(tensors, place);
}

Rates rates_of_host(Rates rates, std::span<const TensorSpec> tensors, ComputePlace place) {
  const double call = rates.host_call_seconds;
  if (call == 0 || place == ComputePlace::kHost) return rates;
  rates.host_seconds = kHostCallsATensor * call * static_cast<double>(tensors.size());
  rates.lease_seconds = kHostCallsALease * call;
  rates.lend_seconds = kHostCallsATensorLent * call;
  return rates;
}

Grouping group_model(const ModelTree& tree) { return group_with(tree, kBlocks); }

std::uint64_t home_room(const ModelTree& tree, std::optional<std::uint64_t> ram_budget_bytes,
                        std::uint64_t available_bytes) {
  const std::uint64_t staged =
      staging_piece_bytes(EngineOptions().piece_bytes) * std::uint64_t{kStagingPieces};
  const auto beside_staging = [&](std::uint64_t bytes) { return bytes - std::min(bytes, staged); };
  std::uint64_t room = kLargestBudgetBytes;
  if (ram_budget_bytes) room = beside_staging(*ram_budget_bytes);
  if (!tree.in_ram.empty()) return room;
  return std::min(room, beside_staging(default_budget_bytes(available_bytes)));
}

ModelPlan plan_model(const ModelTree& tree, std::uint64_t budget_bytes, const Rates& given,
                     const PlanOptions& options) {
  const std::optional<std::uint32_t> compression = options.compression;
  if (options.place == ComputePlace::kHost && compression.value_or(0) != 0) {
    throw no_use_of_level(*compression, "cpu");
  }
  Rates rates = given;
  rates.home_bytes = options.home_bytes;
  count_host(rates, tree.tensors, options.place);
  std::vector<TensorId> in_ram = tree.in_ram;
  std::ranges::sort(in_ram);
  const Target as_raw{options.place, options.spared_bytes, Crossing::kRaw, in_ram, budget_bytes};
  const Target as_coded{options.place, options.spared_bytes, Crossing::kCoded, std::move(in_ram),
                        budget_bytes};
  const auto plan = [&](const Target& target) {
    return plan_as(tree, budget_bytes, rates, target);
  };
  const auto predicted = [&](Planned planned) {
    const Rates known = rates_of_host(rates, tree.tensors, options.place);
    predict_pass(planned.groups, known, planned.made.plan);
    return std::move(planned.made);
  };
  if (compression && *compression != 0) return predicted(plan(as_coded));
  Planned plain = plan(as_raw);
  if (compression || plain.made.plan.streamed_bytes == 0) return predicted(std::move(plain));
  std::optional<Planned> coded;
  std::optional<Plan> coded_plan;
  try {
    coded = plan(as_coded);
    coded_plan = coded->made.plan;
  } catch (const BudgetError&) {  // no room for a ring
    return predicted(std::move(plain));
  }
  const std::vector<Group>& groups = plain.made.grouping.groups;
  const CompressionChoice choice = choose_compression(
      {plain.made.plan, coded_plan, encoded_bytes(groups, plain.made.plan, tree.tensors),
       streams_frames(groups, plain.made.plan, tree.tensors), usable_processors()});
  return predicted(choice.level == 0 ? std::move(plain) : std::move(*coded));
}

}  // namespace tensorstream
