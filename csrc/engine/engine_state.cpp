#include "engine/engine_state.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/units.h"
#include "codec/compression_level.h"
#include "codec/device_decoder.h"
#include "engine/batch_choice.h"
#include "engine/frame_batches.h"
#include "engine/model_plan.h"
#include "platform/process_memory.h"
#include "platform/processors.h"
#include "scheduler/homes.h"
#include "scheduler/planner.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::vector<std::optional<GroupId>> group_of_tensors(const std::vector<Group>& groups,
                                                     std::size_t tensor_count) {
  std::vector<std::optional<GroupId>> result(tensor_count);
  for (GroupId group = 0; group < groups.size(); ++group) {
    for (const TensorId tensor : groups[group].tensors) {
      if (tensor >= tensor_count)
        throw ConfigError("group '" + groups[group].name + "' names an unknown tensor");
      if (result[tensor]) {
        throw ConfigError("tensor " + std::to_string(tensor) + " is in two groups, '" +
                          groups[*result[tensor]].name + "' and '" + groups[group].name + "'");
      }
      result[tensor] = group;
    }
  }
  return result;
}

/// What of a budget is not for groups.
struct Beside {
  std::uint64_t fixed_bytes = 0;
  std::uint64_t ring_bytes = 0;
  std::uint64_t others_bytes = 0;
};

/// Raises BudgetError where the groups' smallest plan does not fit `limit_bytes` beside that.
/// Returns what is left for groups.
std::uint64_t bytes_for_groups(std::uint64_t limit_bytes, const Beside& beside,
                               std::span<const GroupFootprint> groups) {
  const std::uint64_t smallest = smallest_budget_bytes(groups);
  const auto mine = checked_add(beside.fixed_bytes, beside.ring_bytes);
  const auto all = mine ? checked_add(*mine, beside.others_bytes) : std::nullopt;
  const auto needed = all ? checked_add(*all, smallest) : std::nullopt;
  if (!needed) throw ConfigError("the model's sizes add up to more than 2^64 bytes");
  if (*all != 0 && *needed > limit_bytes) {
    const std::string ring = beside.ring_bytes == 0
                                 ? ""
                                 : std::to_string(beside.ring_bytes) +
                                       " of the ring that coded weights are decoded from, ";
    throw BudgetError("budget of " + format_size(limit_bytes) + " (" + std::to_string(limit_bytes) +
                          " bytes) is too small: the model's groups need at least " +
                          std::to_string(smallest) + " bytes beside " + ring +
                          std::to_string(beside.fixed_bytes) + " of buffers and " +
                          std::to_string(beside.others_bytes) +
                          " that others hold; the smallest budget that works is " +
                          std::to_string(*needed) + " bytes (" + format_size(*needed) + ")",
                      *needed, limit_bytes);
  }
  return limit_bytes - *all;
}

Reservation reserve_fixed(Budget& budget, std::uint64_t fixed_bytes,
                          std::span<const GroupFootprint> groups) {
  static_cast<void>(
      bytes_for_groups(budget.limit_bytes(), {fixed_bytes, 0, budget.used_bytes()}, groups));
  return budget.reserve(fixed_bytes, "buffers and weights that stay in place");
}

std::vector<GroupLayout> lay_out_all(const Device& device, const std::vector<Group>& groups,
                                     std::span<const TensorSpec> tensors) {
  std::vector<GroupLayout> layouts;
  for (const Group& group : groups) {
    layouts.push_back(lay_out(group, tensors, compute_place(device)));
    if (device.host_accessible()) lie_as_in_model(layouts.back(), group, tensors);
  }
  return layouts;
}

// What else a forward may take of a budget where all weights fit, before they have to give way.
constexpr std::uint64_t kRoomForActivations = 4_GiB;
constexpr std::uint64_t kLargestReserve = 1_GiB;

ResidentUse resident_use(const EngineOptions& options, const Plan& plan,
                         std::uint64_t limit_bytes) {
  const std::uint64_t room = std::min(plan.everything_fits_bytes, kRoomForActivations);
  const bool roomy = plan.streamed_bytes + plan.kept_bytes + plan.on_demand_bytes == 0 &&
                     limit_bytes - std::min(limit_bytes, plan.resident_bytes) >= room;
  return roomy ? ResidentUse::kSettled : options.residents;
}

void check_prefetch(const EngineOptions& options, const Device& device) {
  if (options.prefetch == Prefetch::kReadAhead && !device.host_accessible()) {
    throw ConfigError("Prefetch::kReadAhead loads on the host's threads, and " + device.name() +
                      " is not the host; use kAdaptive or kAhead");
  }
}

std::vector<bool> find_in_files(const Device& device, const std::vector<Group>& groups,
                                const SourceTable& sources) {
  std::vector<bool> found;
  found.reserve(groups.size());
  for (const Group& group : groups) {
    found.push_back(!device.host_accessible() && sources.in_files(group.tensors));
  }
  return found;
}

}  // namespace

Engine::State::State(Device& on, std::shared_ptr<Budget> budget, ModelSpec model,
                     const EngineOptions& opened)
    : device(on),
      pool(on, std::move(budget)),
      options(opened),
      groups(std::move(model.groups)),
      group_of(group_of_tensors(groups, model.tensors.size())),
      sources(model.sources, std::move(model.tensors)),
      fixed(reserve_fixed(pool.budget(), options.fixed_bytes,
                          footprints(groups, sources.tensors(), compute_place(device)))),
      layouts(lay_out_all(device, groups, sources.tensors())),
      in_files(find_in_files(device, groups, sources)),
      ram(options.ram_budget ? options.ram_budget : Budget::create(kLargestBudgetBytes)),
      homes(device, sources, groups, layouts) {
  if (options.piece_bytes == 0)
    throw ConfigError("EngineOptions::piece_bytes is 0; give the bytes that one read may move");
  if (!is_power_of_two(options.kept_page_bytes))
    throw ConfigError("EngineOptions::kept_page_bytes is no power of two; give a driver's page");
  check_prefetch(options, device);
  make_staging();
  const std::uint64_t limit_bytes = pool.budget().limit_bytes();
  choose_level(limit_bytes);
  reserve_outside();
  const Plan first = plan_for(limit_bytes, first_room(limit_bytes));
  positions.resize(sources.tensors().size());
  for (const Group& group : groups) {
    for (std::size_t i = 0; i < group.tensors.size(); ++i) {
      positions[group.tensors[i]] = i;
    }
  }
  make_loader();
  follow(first, limit_bytes, first_room(limit_bytes), Why::kBudget);
}

// Before plans are made: it takes a part of what homes have room in.
void Engine::State::make_staging() {
  if (device.host_accessible()) return;
  staging = std::make_unique<StagingRing>(
      device, StagingRingOptions{.piece_bytes = staging_piece_bytes(options.piece_bytes),
                                 .pieces = kStagingPieces,
                                 .budget = ram});
  transfers = device.create_stream();
}

std::vector<GroupFootprint> Engine::State::footprints_now() const {
  return footprints_of(compression.level == 0 ? Crossing::kRaw : Crossing::kCoded);
}

std::vector<GroupFootprint> Engine::State::footprints_of(Crossing crossing) const {
  const ComputePlace place = compute_place(device);
  std::vector<GroupFootprint> result = crossing == Crossing::kRaw
                                           ? footprints(groups, sources.tensors(), place)
                                           : coded_footprints(groups, sources.tensors(), place,
                                                              options.kept_page_bytes, batch_bytes);
  homes.correct(result, options.kept_page_bytes);
  for (GroupId group = 0; group < groups.size(); ++group) {
    result[group].in_files = in_files[group];
    const bool pinned = in_files[group] && sources.in_pinned_files(groups[group].tensors);
    if (pinned) note_pinned(result[group]);
  }
  return result;
}

// What is in RAM already frees that as it gets a home.
std::uint64_t Engine::State::home_room() const {
  const std::uint64_t free = ram->free_bytes();
  const std::uint64_t room = free - std::min(free, encoding_bytes);
  if (std::ranges::find(in_files, false) != in_files.end()) return room;
  return std::min(room, default_budget_bytes(available_ram_bytes()));
}

Rates Engine::State::rates_now() const {
  Rates rates = options.rates;
  rates.uses.clear();
  rates.loading = loading_of(resolve_prefetch(options.prefetch, compute_place(device)));
  rates.disk_ahead_bytes = staging_bytes();
  rates.home_bytes = home_room();
  count_host(rates, sources.tensors(), compute_place(device));
  return rates;
}

std::optional<double> Engine::State::measured_host_seconds() const {
  const std::vector<GroupFootprint> sizes = footprints_now();
  const MutexLock lock(mutex);
  const std::optional<double> pass = host_time.seconds();
  if (!pass) return std::nullopt;
  const double leases = leases_seconds(pass_steps(sizes, plan), options.rates);
  return std::max(0.0, *pass - leases);
}

Plan Engine::State::predicted_plan(std::optional<double> host_seconds) const {
  Plan now = current_plan();
  Rates rates = rates_now();
  if (host_seconds) {
    rates.host_seconds = *host_seconds;
  } else {
    rates = rates_of_host(rates, sources.tensors(), compute_place(device));
  }
  predict_pass(footprints_now(), rates, now);
  return now;
}

void Engine::State::note_homes() {
  const std::vector<GroupFootprint> sizes = footprints_now();
  const Rates rates = rates_now();
  const MutexLock lock(mutex);
  tensorstream::note_homes(sizes, plan);
  predict_pass(sizes, rates, plan);
}

std::vector<GroupId> Engine::State::groups_to_bring_home() const {
  const Plan now = current_plan();
  const std::vector<GroupFootprint> sizes = footprints_now();
  std::vector<GroupId> wanted;
  std::uint64_t room = home_room();
  const auto add = [&](Placement placement) {
    for (GroupId group = 0; group < groups.size(); ++group) {
      const GroupPlacement& placed = now.groups[group];
      if (placed.placement != placement || placed.from_disk) continue;
      if (is_home(sizes[group].home)) continue;
      const std::uint64_t bytes = sizes[group].coded_bytes.value_or(sizes[group].size_bytes);
      if (loader->settled(group) || bytes > room) continue;
      room -= bytes;
      wanted.push_back(group);
    }
  };
  for (const Placement placement : {Placement::kResidentCoded, Placement::kStreamed,
                                    Placement::kOnDemand, Placement::kResident}) {
    add(placement);
  }
  return wanted;
}

void Engine::State::reserve_outside() {
  outside.release();
  if (options.reserved_share <= 0) return;
  Budget& budget = pool.budget();
  const std::uint64_t smallest = smallest_budget_bytes(footprints_now());
  const std::uint64_t held = loader ? loader->held_bytes() : 0;
  const std::uint64_t wanting = smallest - std::min(smallest, held);
  const std::uint64_t free_bytes = budget.free_bytes();
  const std::uint64_t spare = free_bytes - std::min(free_bytes, wanting);
  // Others may take it meanwhile: then there is none.
  auto reserved = budget.try_reserve(std::min(outside_bytes(budget.limit_bytes()), spare));
  if (reserved) outside = std::move(*reserved);
}

std::uint64_t Engine::State::first_room(std::uint64_t limit_bytes) const {
  const auto share =
      static_cast<std::uint64_t>(options.reserved_share * static_cast<double>(limit_bytes));
  return std::min(share, kLargestReserve);
}

std::uint64_t Engine::State::others_bytes() const {
  // In this order: residents may give way meanwhile.
  const std::uint64_t used = pool.budget().used_bytes();
  const std::uint64_t mine =
      fixed.size_bytes() + ring_bytes() + (loader ? loader->held_bytes() : 0);
  return used - std::min(used, mine);
}

Plan Engine::State::plan_beside(std::uint64_t ring_bytes_then,
                                const std::vector<GroupFootprint>& sizes, std::uint64_t limit_bytes,
                                std::uint64_t room_bytes) const {
  const std::uint64_t most =
      bytes_for_groups(limit_bytes, {fixed.size_bytes(), ring_bytes_then, others_bytes()}, sizes);
  const std::uint64_t smallest = smallest_budget_bytes(sizes);
  const std::uint64_t spare = most > smallest ? most - smallest : 0;
  Plan made = make_plan(sizes, most - std::min(room_bytes, spare), rates_for_plans());
  made.ring_bytes = ring_bytes_then;
  return made;
}

void Engine::State::predict_anew() {
  if (compression.level == 0) return;
  const std::vector<GroupFootprint> sizes = footprints_now();
  const Rates rates = rates_now();
  const MutexLock lock(mutex);
  predict_pass(sizes, rates, plan);
}

ResidentUse Engine::State::use_of_residents(const Plan& wanted, std::uint64_t limit_bytes) const {
  return resident_use(options, wanted, limit_bytes - std::min(limit_bytes, ring_bytes()));
}

std::vector<bool> Engine::State::settled_by(const Plan& wanted, std::uint64_t limit_bytes) const {
  const bool leased = use_of_residents(wanted, limit_bytes) == ResidentUse::kLeased;
  std::vector<bool> result;
  for (GroupId group = 0; group < groups.size(); ++group) {
    const bool may_go =
        leased && groups[group].residency == Residency::kAny && layouts[group].size_bytes != 0;
    result.push_back(!may_go && wanted.groups[group].placement == Placement::kResident);
  }
  return result;
}

const TensorSpec& Engine::State::tensor(TensorId id) const {
  if (id >= sources.tensors().size()) throw ConfigError("there is no tensor " + std::to_string(id));
  return sources.tensors()[id];
}

std::byte* Engine::State::place(TensorId id) const {
  const std::optional<GroupId> group = group_of[id];
  if (!group) return nullptr;
  if (loader->where(*group) == Where::kSource) {
    return const_cast<std::byte*>(sources.address(id));
  }
  return loader->address(*group, positions[id]);
}

void Engine::State::read(TensorId id, std::uint64_t offset_bytes, std::span<std::byte> out) {
  const auto copy = [&](const std::byte* bytes) {
    if (transfers != nullptr) {
      transfers->copy_to_host(out.data(), bytes + offset_bytes, out.size());
      transfers->synchronize();
    } else if (!out.empty()) {
      std::memcpy(out.data(), bytes + offset_bytes, out.size());
    }
  };
  const std::optional<GroupId> group = group_of[id];
  if (group && loader->read_settled(*group, positions[id], copy)) return;
  sources.read(id, offset_bytes, out);
}

void Engine::State::keep_written(TensorId id) {
  const TensorSpec& spec = tensor(id);
  const auto now = std::make_shared<std::vector<std::byte>>(spec.size_bytes);
  read(id, 0, *now);
  std::vector<std::byte> piece(std::min<std::uint64_t>(spec.size_bytes, 1_MiB));
  for (std::uint64_t done = 0; done < spec.size_bytes; done += piece.size()) {
    const std::span<std::byte> part =
        std::span(piece).first(std::min<std::uint64_t>(piece.size(), spec.size_bytes - done));
    sources.read(id, done, part);
    if (std::memcmp(part.data(), now->data() + done, part.size()) == 0) continue;
    sources.replace(id, create_memory_reader("memory of '" + spec.name + "'", *now, now));
    return;
  }
}

void Engine::State::make_loader() {
  std::vector<LoadedGroup> loaded;
  for (GroupId group = 0; group < groups.size(); ++group) {
    loaded.push_back(
        {group, groups[group].tensors, layouts[group], groups[group].residency, {}, {}});
  }
  loader = std::make_unique<Loader>(pool, sources, staging.get(), ring.get(), std::move(loaded),
                                    options);
}

void Engine::State::choose_level(std::uint64_t limit_bytes) {
  const std::optional<std::uint32_t>& wanted = options.compression;
  compression = {0, "not asked for"};
  if (wanted == 0 || !may_encode()) return;
  batch_bytes = chosen_batch_bytes(limit_bytes);
  compression = {wanted.value_or(0), "asked for"};
  try {
    if (!wanted) compression = chosen_level(limit_bytes);
    if (slot_bytes() == 0) compression = {0, "no weights are of a type that is coded"};
    if (compression.level == 0) return;
    auto decoder = create_device_decoder(device);  // which may compile it
    static_cast<void>(plan_with_ring(limit_bytes));
    ring = std::make_unique<DecodeRing>(pool, std::move(decoder), slot_bytes());
    encoding_bytes = largest_scratch_bytes(groups, sources.tensors(), batch_bytes);
  } catch (const Error& error) {
    if (wanted) throw;
    compression = {0, error.what()};
  }
}

std::uint64_t Engine::State::slot_bytes() const {
  return largest_batch_bytes(groups, sources.tensors(), batch_bytes);
}

// As plan_model() has it: the least where a larger ring would take of what others are to have.
std::uint64_t Engine::State::chosen_batch_bytes(std::uint64_t limit_bytes) const {
  const auto cut_for = [&](std::uint64_t budget_bytes) {
    return best_batch_bytes(groups, sources.tensors(), options.piece_bytes, budget_bytes);
  };
  const std::uint64_t least = cut_for(0);
  const std::uint64_t best = cut_for(limit_bytes);
  const std::optional<std::uint64_t> left = left_beside_ring(limit_bytes, best);
  const std::uint64_t most = left_beside_ring(limit_bytes, least).value_or(0);
  const std::uint64_t for_others = spared_bytes(limit_bytes) + outside_bytes(limit_bytes);
  return left && *left >= std::min(for_others, most) ? best : least;
}

std::optional<std::uint64_t> Engine::State::left_beside_ring(std::uint64_t limit_bytes,
                                                             std::uint64_t cut_bytes) const {
  const std::uint64_t ring_bytes_then =
      DecodeRing::size_bytes_for(largest_batch_bytes(groups, sources.tensors(), cut_bytes));
  const std::vector<GroupFootprint> sizes =
      footprints(groups, sources.tensors(), compute_place(device));
  try {
    return bytes_for_groups(limit_bytes, {fixed.size_bytes(), ring_bytes_then, others_bytes()},
                            sizes) -
           smallest_budget_bytes(sizes);
  } catch (const BudgetError&) {
    return std::nullopt;
  }
}

Plan Engine::State::plan_with_ring(std::uint64_t limit_bytes) const {
  return plan_beside(DecodeRing::size_bytes_for(slot_bytes()),
                     footprints(groups, sources.tensors(), compute_place(device)), limit_bytes, 0);
}

bool Engine::State::may_encode() {
  if (options.compression) static_cast<void>(CompressionLevel(*options.compression));
  if (!device.host_accessible()) return true;
  if (options.compression) throw no_use_of_level(*options.compression, device.name());
  compression = {0, "weights are used where they are"};
  return false;
}

CompressionChoice Engine::State::chosen_level(std::uint64_t limit_bytes) const {
  const Plan plain = plan_for(limit_bytes, spared_bytes(limit_bytes));
  std::optional<Plan> coded;
  try {
    coded = plan_beside(DecodeRing::size_bytes_for(slot_bytes()), footprints_of(Crossing::kCoded),
                        limit_bytes, spared_bytes(limit_bytes));
  } catch (const BudgetError&) {  // no room for a ring: the choice says so
  }
  return choose_compression({plain, coded, encoded_bytes(groups, plain, sources.tensors()),
                             streams_frames(groups, plain, sources.tensors()),
                             usable_processors()});
}

}  // namespace tensorstream
