#include "scheduler/planner.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "scheduler/homes.h"
#include "scheduler/kept_search.h"
#include "scheduler/pass_time.h"
#include "scheduler/return_policy.h"
#include "scheduler/streaming_search.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// The share of its cost, or of a pass's time, that a new layout or exchanged residents leave, where
// what they move is worth loading again.
constexpr double kWorthMoving = 0.98;

std::uint64_t placed_bytes(const GroupFootprint& group) {
  const std::uint64_t largest = std::numeric_limits<std::uint64_t>::max() - kGroupAlignment;
  if (group.size_bytes > largest) {
    throw ConfigError("group '" + group.name + "' has an impossible size of " +
                      std::to_string(group.size_bytes) + " bytes; check how it was computed");
  }
  return align_up(group.size_bytes, kGroupAlignment);
}

std::uint64_t sum(std::uint64_t a, std::uint64_t b) {
  const std::optional<std::uint64_t> total = checked_add(a, b);
  if (total) return *total;
  throw ConfigError("the groups' sizes add up to more than 2^64 bytes (" + std::to_string(a) +
                    " + " + std::to_string(b) + "); check how they were computed");
}

// What the budget has to hold, by what the planner may do with it.
struct Needs {
  std::uint64_t required = 0;
  std::uint64_t any = 0;
  std::uint64_t by_rows = 0;
  std::uint64_t largest_any = 0;
  // The group of largest_any bytes; the number of groups where there is none.
  std::size_t largest_any_group = 0;
};

Needs needs_of(std::span<const GroupFootprint> groups) {
  Needs needs;
  needs.largest_any_group = groups.size();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const std::uint64_t bytes = placed_bytes(groups[i]);
    switch (groups[i].residency) {
      case Residency::kRequired:
        needs.required = sum(needs.required, bytes);
        break;
      case Residency::kByRows:
        needs.by_rows = sum(needs.by_rows, bytes);
        break;
      case Residency::kAny:
        needs.any = sum(needs.any, bytes);
        if (needs.largest_any_group < groups.size() && bytes <= needs.largest_any) break;
        needs.largest_any = bytes;
        needs.largest_any_group = i;
        break;
    }
  }
  return needs;
}

std::string exact_size(std::uint64_t bytes) {
  return format_size(bytes) + " (" + std::to_string(bytes) + " bytes)";
}

[[noreturn]] void refuse(std::span<const GroupFootprint> groups, const Needs& needs,
                         std::uint64_t budget_bytes) {
  std::size_t culprit = needs.largest_any_group;
  std::uint64_t beside = needs.required;
  if (needs.required > budget_bytes) {
    beside = 0;
    for (std::size_t i = 0; i < groups.size(); ++i) {
      if (groups[i].residency != Residency::kRequired) continue;
      culprit = i;
      if (beside + placed_bytes(groups[i]) > budget_bytes) break;
      beside += placed_bytes(groups[i]);
    }
  }
  const std::uint64_t smallest = sum(needs.required, needs.largest_any);
  throw BudgetError(
      "group '" + groups[culprit].name + "' of " + exact_size(placed_bytes(groups[culprit])) +
          " does not fit beside " + exact_size(beside) + " of residents in the budget of " +
          exact_size(budget_bytes) + "; the smallest budget that works for this model is " +
          exact_size(smallest) + ": raise the budget, split large modules or keep fewer resident",
      smallest, budget_bytes);
}

void check_rates(const Rates& rates) {
  for (const auto& [name, rate] :
       {std::pair{"link_bytes_per_second", rates.link_bytes_per_second},
        std::pair{"decode_bytes_per_second", rates.decode_bytes_per_second},
        std::pair{"disk_bytes_per_second", rates.disk_bytes_per_second},
        std::pair{"host_decode_bytes_per_second", rates.host_decode_bytes_per_second}}) {
    if (std::isfinite(rate) && rate > 0) continue;
    throw ConfigError("Rates::" + std::string(name) + " is " + std::to_string(rate) +
                      "; give a rate above 0 bytes a second");
  }
  if (!std::isfinite(rates.compute_seconds) || rates.compute_seconds < 0) {
    throw ConfigError("Rates::compute_seconds is " + std::to_string(rates.compute_seconds) +
                      "; give 0 where it is not known, or a time in seconds");
  }
  for (const auto& [name, seconds] : {std::pair{"host_seconds", rates.host_seconds},
                                      std::pair{"host_call_seconds", rates.host_call_seconds},
                                      std::pair{"lease_seconds", rates.lease_seconds},
                                      std::pair{"lend_seconds", rates.lend_seconds}}) {
    if (std::isfinite(seconds) && seconds >= 0) continue;
    throw ConfigError("Rates::" + std::string(name) + " is " + std::to_string(seconds) +
                      "; give a time in seconds, or 0 where it is not known");
  }
}

// Rows are read at each use anyway: whole tables only have what all others leave, the largest
// first.
void place_by_rows(std::span<const GroupFootprint> groups, std::uint64_t left_bytes, Plan& plan) {
  std::vector<std::size_t> tables;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].residency == Residency::kByRows) tables.push_back(i);
  }
  std::stable_sort(tables.begin(), tables.end(), [&](std::size_t a, std::size_t b) {
    return groups[a].size_bytes > groups[b].size_bytes;
  });
  for (const std::size_t i : tables) {
    const std::uint64_t bytes = placed_bytes(groups[i]);
    if (bytes <= left_bytes) {
      left_bytes -= bytes;
      plan.groups[i].placement = Placement::kResident;
      plan.resident_bytes += bytes;
    } else {
      plan.groups[i].placement = Placement::kOnDemand;
      plan.on_demand_bytes += groups[i].size_bytes;
    }
  }
}

// Device memory that the group takes coded; 0 where it would not be less.
std::uint64_t kept_bytes(const GroupFootprint& group) {
  if (group.residency != Residency::kAny || group.kept_bytes >= placed_bytes(group)) return 0;
  return align_up(group.kept_bytes, kGroupAlignment);
}

std::vector<UsedGroup> used_groups(std::span<const GroupFootprint> groups) {
  std::vector<UsedGroup> used;
  for (const GroupFootprint& group : groups) {
    if (group.residency == Residency::kByRows) continue;
    used.push_back({placed_bytes(group), group.residency == Residency::kAny, group.coded_bytes,
                    kept_bytes(group), group.in_files, group.home, group.frame_bytes,
                    group.decodes_frames, group.coded_copies, group.tensors});
  }
  return used;
}

// The positions of `uses` among those of used_groups().
std::vector<std::size_t> order_of(std::span<const GroupFootprint> groups,
                                  std::span<const GroupId> uses) {
  std::vector<std::size_t> positions;
  std::size_t position = 0;
  for (const GroupFootprint& group : groups) {
    positions.push_back(position);
    if (group.residency != Residency::kByRows) ++position;
  }
  std::vector<std::size_t> order;
  for (const GroupId group : uses) {
    if (group >= groups.size()) {
      throw ConfigError("Rates::uses names group " + std::to_string(group) + " of " +
                        std::to_string(groups.size()));
    }
    if (groups[group].residency != Residency::kByRows) order.push_back(positions[group]);
  }
  return order;
}

StreamingChoice choose(std::span<const GroupFootprint> groups, std::uint64_t room_bytes,
                       const Rates& rates) {
  const std::vector<UsedGroup> used = used_groups(groups);
  const ChoiceCost cost(used, rates, order_of(groups, rates.uses));
  StreamingChoice best = StreamingSearch(used, room_bytes, cost).best();
  if (rates.loading == Loading::kAtUse) return best;
  auto keeping = KeptSearch(used, room_bytes, cost).best();
  return keeping && better(*keeping, best) ? std::move(*keeping) : best;
}

void place_streamed(std::span<const GroupFootprint> groups, std::uint64_t room_bytes,
                    const Rates& rates, Plan& plan) {
  const StreamingChoice choice = choose(groups, room_bytes, rates);
  std::size_t candidate = 0;
  std::size_t place = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].residency != Residency::kAny) continue;
    GroupPlacement& placed = plan.groups[i];
    const std::size_t position = candidate++;
    if (choice.resident[position]) {
      placed.placement = Placement::kResident;
      continue;
    }
    placed.offset_bytes = choice.layout.offsets[place++];
    if (choice.kept[position]) {
      placed.placement = Placement::kResidentCoded;
      placed.kept_bytes = kept_bytes(groups[i]);
      plan.kept_weights_bytes += groups[i].size_bytes;
    } else {
      placed.placement = Placement::kStreamed;
      plan.streamed_bytes += groups[i].size_bytes;
    }
  }
  plan.resident_bytes += choice.resident_bytes;
  plan.kept_bytes = choice.kept_bytes;
  plan.arena_bytes = choice.layout.arena_bytes;
  plan.exposed_loads = choice.layout.exposed_pairs;
}

bool is_loaded(const GroupPlacement& placed) {
  return placed.placement == Placement::kStreamed || placed.placement == Placement::kResidentCoded;
}

std::uint64_t home_bytes(const GroupFootprint& group) {
  return group.coded_bytes.value_or(placed_bytes(group));
}

/// `homes` by GroupId.
void set_homes(std::span<const GroupFootprint> groups, const std::vector<bool>& homes, Plan& plan) {
  plan.home_bytes = 0;
  plan.disk_bytes = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    GroupPlacement& placed = plan.groups[i];
    const bool streamed = placed.placement == Placement::kStreamed;
    placed.at_home = is_loaded(placed) && homes[i];
    placed.from_disk = streamed && groups[i].in_files && !homes[i];
    if (placed.from_disk) plan.disk_bytes += groups[i].frame_bytes.value_or(groups[i].size_bytes);
    const bool takes_memory = placed.at_home && groups[i].home != HomeState::kAtSource;
    if (takes_memory) plan.home_bytes += home_bytes(groups[i]);
  }
}

void place_homes(std::span<const GroupFootprint> groups, std::uint64_t room_bytes, Plan& plan) {
  std::vector<HomeCandidate> candidates;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const GroupPlacement& placed = plan.groups[i];
    if (!is_loaded(placed)) continue;
    const bool kept = placed.placement == Placement::kResidentCoded;
    candidates.push_back({home_bytes(groups[i]), groups[i].home, kept});
  }
  // The choice of what stays coded saw to it that there is room for that.
  const std::vector<bool> chosen = choose_homes(candidates, room_bytes).value();
  std::vector<bool> homes(groups.size(), false);
  std::size_t candidate = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (is_loaded(plan.groups[i])) homes[i] = chosen[candidate++];
  }
  set_homes(groups, homes, plan);
}

/// What takes longest by itself.
std::string bound_of(std::span<const PassStep> steps, const Rates& rates, const Plan& plan) {
  double decoding = 0;
  double host_decoding = 0;
  for (const PassStep& step : steps) {
    decoding += decode_seconds(step, rates);
    host_decoding += host_decode_seconds(step, rates);
  }
  const double host = rates.host_seconds + leases_seconds(steps, rates);
  const double link = link_seconds(steps, rates);
  const double reading = static_cast<double>(plan.disk_bytes) / rates.disk_bytes_per_second;
  const double disk = std::max(reading, host_decoding);
  const double computing = rates.compute_seconds + decoding;
  const double moving = std::max(link, disk);
  if (rates.loading == Loading::kAhead && host > std::max(computing, moving)) return "host";
  if (moving >= computing) return disk > link ? "disk" : "link";
  return decoding > rates.compute_seconds ? "decode" : "compute";
}

bool overlap(std::uint64_t a, std::uint64_t a_bytes, std::uint64_t b, std::uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

// Where residents lie when they give way: at an end of the arena, away from the group before them.
void place_spares(std::span<const GroupFootprint> groups, std::uint64_t largest_any, Plan& plan) {
  plan.spare_arena_bytes = plan.arena_bytes != 0 ? plan.arena_bytes : largest_any;
  std::uint64_t before = 0;
  std::uint64_t before_bytes = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].residency != Residency::kAny) continue;
    const std::uint64_t bytes = placed_bytes(groups[i]);
    std::uint64_t& offset = plan.groups[i].offset_bytes;
    if (plan.groups[i].placement == Placement::kResident) {
      if (bytes > plan.spare_arena_bytes) continue;
      if (overlap(offset, bytes, before, before_bytes)) offset = plan.spare_arena_bytes - bytes;
    }
    before = offset;
    before_bytes = bytes;
  }
}

}  // namespace

Plan make_plan(std::span<const GroupFootprint> groups, std::uint64_t budget_bytes,
               const Rates& rates) {
  check_rates(rates);
  const Needs needs = needs_of(groups);
  Plan plan;
  plan.groups.assign(groups.size(), GroupPlacement{Placement::kResident, 0});
  plan.budget_bytes = budget_bytes;
  plan.smallest_budget_bytes = sum(needs.required, needs.largest_any);
  plan.everything_fits_bytes = sum(sum(needs.required, needs.any), needs.by_rows);
  if (budget_bytes < plan.smallest_budget_bytes) refuse(groups, needs, budget_bytes);
  plan.resident_bytes = needs.required;
  const std::uint64_t room_bytes = budget_bytes - needs.required;
  const bool all_resident = needs.any <= room_bytes;
  if (all_resident) {
    plan.resident_bytes += needs.any;
  } else {
    place_streamed(groups, room_bytes, rates, plan);
  }
  place_by_rows(groups, all_resident ? room_bytes - needs.any : 0, plan);
  place_spares(groups, needs.largest_any, plan);
  place_homes(groups, rates.home_bytes, plan);
  predict_pass(groups, rates, plan);
  return plan;
}

void note_homes(std::span<const GroupFootprint> groups, Plan& plan) {
  std::vector<bool> there;
  for (const GroupFootprint& group : groups) there.push_back(is_home(group.home));
  set_homes(groups, there, plan);
}

double plan_cost(std::span<const GroupFootprint> groups, const Rates& rates, const Plan& plan) {
  StreamingChoice choice;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].residency != Residency::kAny) continue;
    const GroupPlacement& placed = plan.groups[i];
    choice.resident.push_back(placed.placement == Placement::kResident);
    choice.kept.push_back(placed.placement == Placement::kResidentCoded);
    if (!choice.resident.back()) choice.layout.offsets.push_back(placed.offset_bytes);
  }
  const std::vector<UsedGroup> used = used_groups(groups);
  return ChoiceCost(used, rates, order_of(groups, rates.uses)).of(choice);
}

namespace {

/// What it takes to bring a group to where it stays.
double load_seconds(const GroupFootprint& group, const Rates& rates) {
  const PassStep load{.size_bytes = group.size_bytes,
                      .streamed = true,
                      .coded_bytes = group.coded_bytes,
                      .from_disk = group.in_files && !is_home(group.home),
                      .frame_bytes = group.frame_bytes,
                      .decodes_frames = group.decodes_frames,
                      .coded_copies = group.coded_copies};
  const double link = link_seconds(load, rates);
  const double disk = static_cast<double>(load.disk_bytes()) / rates.disk_bytes_per_second;
  return std::max(link, disk) + host_decode_seconds(load, rates);
}

}  // namespace

bool is_worth_exchanging(std::span<const GroupFootprint> groups, const Rates& rates,
                         const Plan& now, const Plan& better) {
  double loading = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const Placement placement = better.groups[i].placement;
    const bool stays = placement == Placement::kStreamed || placement == now.groups[i].placement;
    if (groups[i].residency == Residency::kAny && !stays) loading += load_seconds(groups[i], rates);
  }
  const double seconds_now = pass_seconds(pass_steps(groups, now), rates);
  const double seconds = pass_seconds(pass_steps(groups, better), rates);
  if (seconds > kWorthMoving * seconds_now) return false;
  return loading <= ExchangePolicy::kPassesToMakeUp * (seconds_now - seconds);
}

std::optional<std::vector<std::uint64_t>> better_offsets(std::span<const GroupFootprint> groups,
                                                         const Rates& rates, const Plan& plan) {
  std::uint64_t room_bytes = plan.arena_bytes;
  std::vector<bool> resident;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].residency != Residency::kAny) continue;
    resident.push_back(plan.groups[i].placement != Placement::kStreamed);
    if (resident.back()) room_bytes += placed_bytes(groups[i]);
  }
  const std::vector<UsedGroup> used = used_groups(groups);
  const ChoiceCost cost(used, rates, order_of(groups, rates.uses));
  const StreamingChoice best =
      StreamingSearch(used, room_bytes, cost).with_residents(std::move(resident));
  const ArenaLayout& layout = best.layout;
  if (best.cost > kWorthMoving * plan_cost(groups, rates, plan)) return std::nullopt;
  std::vector<std::uint64_t> result;
  std::size_t place = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const GroupPlacement& now = plan.groups[i];
    const bool moves =
        groups[i].residency == Residency::kAny && now.placement == Placement::kStreamed;
    result.push_back(moves ? layout.offsets[place++] : now.offset_bytes);
  }
  return result;
}

std::vector<PassStep> pass_steps(std::span<const GroupFootprint> groups, const Plan& plan) {
  std::vector<std::uint64_t> sizes;
  std::vector<std::uint64_t> offsets;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (!is_loaded(plan.groups[i])) continue;
    sizes.push_back(placed_bytes(groups[i]));
    offsets.push_back(plan.groups[i].offset_bytes);
  }
  const std::vector<std::uint32_t> distances = sharing_distances(sizes, offsets);
  std::vector<PassStep> steps;
  std::size_t place = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].residency == Residency::kByRows) continue;
    PassStep step{.size_bytes = groups[i].size_bytes,
                  .coded_bytes = groups[i].coded_bytes,
                  .frame_bytes = groups[i].frame_bytes,
                  .decodes_frames = groups[i].decodes_frames,
                  .coded_copies = groups[i].coded_copies,
                  .tensors = groups[i].tensors};
    step.streamed = plan.groups[i].placement == Placement::kStreamed;
    step.kept = plan.groups[i].placement == Placement::kResidentCoded;
    step.from_disk = plan.groups[i].from_disk;
    step.settled = groups[i].residency == Residency::kRequired;
    if (step.streamed || step.kept) step.sharing_distance = distances[place++];
    steps.push_back(step);
  }
  return steps;
}

void predict_pass(std::span<const GroupFootprint> groups, const Rates& rates, Plan& plan) {
  plan.link_bytes = 0;
  if (plan.streamed_bytes == 0 && plan.kept_bytes == 0) {
    plan.predicted_seconds = std::max(rates.compute_seconds, rates.host_seconds);
    plan.bound = "nothing streamed";
    return;
  }
  const std::vector<PassStep> steps = pass_steps(groups, plan);
  for (const PassStep& step : steps) {
    if (step.streamed) plan.link_bytes += step.link_bytes();
  }
  plan.predicted_seconds = pass_seconds(steps, rates);
  plan.bound = bound_of(steps, rates, plan);
}

std::uint64_t smallest_budget_bytes(std::span<const GroupFootprint> groups) {
  const Needs needs = needs_of(groups);
  return sum(needs.required, needs.largest_any);
}

std::uint64_t everything_fits_bytes(std::span<const GroupFootprint> groups) {
  const Needs needs = needs_of(groups);
  return sum(sum(needs.required, needs.any), needs.by_rows);
}

}  // namespace tensorstream
