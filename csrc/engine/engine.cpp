#include "tensorstream/engine.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/units.h"
#include "engine/group_layout.h"
#include "engine/host_home.h"
#include "engine/load.h"
#include "engine/loader.h"
#include "engine/source_table.h"
#include "memory/pool.h"
#include "memory/staging_ring.h"
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

/// Raises BudgetError where the groups' smallest plan does not fit `limit_bytes` beside what is
/// neither group nor arena and what the budget's other users hold. Returns what is left for groups.
std::uint64_t bytes_for_groups(std::uint64_t limit_bytes, std::uint64_t fixed_bytes,
                               std::uint64_t others, std::span<const GroupFootprint> groups) {
  const std::uint64_t smallest = smallest_budget_bytes(groups);
  const auto beside = checked_add(others, fixed_bytes);
  const auto needed = beside ? checked_add(*beside, smallest) : std::nullopt;
  if (!needed) throw ConfigError("the model's sizes add up to more than 2^64 bytes");
  if (*beside != 0 && *needed > limit_bytes) {
    throw BudgetError(
        "budget of " + format_size(limit_bytes) + " (" + std::to_string(limit_bytes) +
            " bytes) is too small: the model's groups need at least " + std::to_string(smallest) +
            " bytes beside " + std::to_string(fixed_bytes) + " of buffers and " +
            std::to_string(others) + " that others hold; the smallest budget that works is " +
            std::to_string(*needed) + " bytes (" + format_size(*needed) + ")",
        *needed, limit_bytes);
  }
  return limit_bytes - *beside;
}

Reservation reserve_fixed(Budget& budget, std::uint64_t fixed_bytes,
                          std::span<const GroupFootprint> groups) {
  static_cast<void>(
      bytes_for_groups(budget.limit_bytes(), fixed_bytes, budget.used_bytes(), groups));
  return budget.reserve(fixed_bytes, "buffers and weights that stay in place");
}

// What else a forward may take of a budget where all weights fit, before they have to give way.
constexpr std::uint64_t kRoomForActivations = 4_GiB;
constexpr std::uint64_t kLargestReserve = 1_GiB;

ResidentUse resident_use(const EngineOptions& options, const Plan& plan,
                         std::uint64_t limit_bytes) {
  const std::uint64_t room = std::min(plan.everything_fits_bytes, kRoomForActivations);
  const bool roomy = plan.streamed_bytes == 0 && plan.on_demand_bytes == 0 &&
                     limit_bytes - std::min(limit_bytes, plan.resident_bytes) >= room;
  return roomy ? ResidentUse::kSettled : options.residents;
}

Rates rates_for(const EngineOptions& options, const Device& device) {
  if (options.prefetch == Prefetch::kReadAhead && !device.host_accessible()) {
    throw ConfigError("Prefetch::kReadAhead loads on the host's threads, and " + device.name() +
                      " is not the host; use kAdaptive or kAhead");
  }
  Rates rates = options.rates;
  rates.loading = loading_of(resolve_prefetch(options.prefetch, compute_place(device)));
  return rates;
}

}  // namespace

class Engine::State {
 public:
  State(Device& on, std::shared_ptr<Budget> budget, ModelSpec model, const EngineOptions& opened)
      : device(on),
        pool(on, std::move(budget)),
        options(opened),
        groups(std::move(model.groups)),
        group_of(group_of_tensors(groups, model.tensors.size())),
        sources(model.sources, std::move(model.tensors)),
        fixed(reserve_fixed(pool.budget(), options.fixed_bytes,
                            footprints(groups, sources.tensors(), compute_place(on)))),
        homes(groups.size()) {
    if (options.piece_bytes == 0)
      throw ConfigError("EngineOptions::piece_bytes is 0; give the bytes that one read may move");
    const std::uint64_t limit_bytes = pool.budget().limit_bytes();
    const Plan first = plan_for(limit_bytes, first_room(limit_bytes));
    positions.resize(sources.tensors().size());
    for (const Group& group : groups) {
      layouts.push_back(lay_out(group, sources.tensors(), compute_place(device)));
      if (device.host_accessible()) lie_as_in_model(layouts.back(), group, sources.tensors());
      for (std::size_t i = 0; i < group.tensors.size(); ++i) {
        positions[group.tensors[i]] = i;
      }
    }
    if (!device.host_accessible()) {
      staging = std::make_unique<StagingRing>(
          device,
          StagingRingOptions{.piece_bytes = options.piece_bytes, .budget = options.ram_budget});
      transfers = device.create_stream();
    }
    make_loader();
    follow(first, limit_bytes, first_room(limit_bytes));
  }

  Plan current_plan() const {
    const MutexLock lock(mutex);
    return plan;
  }

  /// What a budget leaves to what else is allocated under it, until that shows what it needs.
  std::uint64_t first_room(std::uint64_t limit_bytes) const {
    const auto share =
        static_cast<std::uint64_t>(options.reserved_share * static_cast<double>(limit_bytes));
    return std::min(share, kLargestReserve);
  }

  /// A plan that leaves `room_bytes` free, or as much of it as its groups can spare.
  Plan plan_for(std::uint64_t limit_bytes, std::uint64_t room_bytes) const {
    const std::vector<GroupFootprint> sizes =
        footprints(groups, sources.tensors(), compute_place(device));
    const std::uint64_t mine = fixed.size_bytes() + (loader ? loader->held_bytes() : 0);
    const std::uint64_t others = pool.budget().used_bytes() - mine;
    const std::uint64_t most = bytes_for_groups(limit_bytes, fixed.size_bytes(), others, sizes);
    const std::uint64_t smallest = smallest_budget_bytes(sizes);
    const std::uint64_t spare = most > smallest ? most - smallest : 0;
    return make_plan(sizes, most - std::min(room_bytes, spare), rates_for(options, device));
  }

  /// Which groups a plan settles.
  std::vector<bool> settled_by(const Plan& wanted, std::uint64_t limit_bytes) const {
    const bool leased = resident_use(options, wanted, limit_bytes) == ResidentUse::kLeased;
    std::vector<bool> result;
    for (GroupId group = 0; group < groups.size(); ++group) {
      const bool may_go =
          leased && groups[group].residency == Residency::kAny && layouts[group].size_bytes != 0;
      result.push_back(!may_go && wanted.groups[group].placement == Placement::kResident);
    }
    return result;
  }

  /// Brings the groups to the places of a plan that fits the budget.
  void follow(const Plan& wanted, std::uint64_t limit_bytes, std::uint64_t room_bytes) {
    {
      const MutexLock lock(mutex);
      plan = wanted;
      made_room_bytes = room_bytes;
    }
    loader->arrange(wanted, resident_use(options, wanted, limit_bytes));
  }

  /// Follows a plan that leaves `room_bytes` where that unsettles and settles no group: what
  /// settled ones are to their users would change.
  bool try_follow(const Plan& wanted, std::uint64_t room_bytes) {
    const std::uint64_t limit_bytes = pool.budget().limit_bytes();
    const std::vector<bool> settles = settled_by(wanted, limit_bytes);
    for (GroupId group = 0; group < groups.size(); ++group) {
      if (settles[group] != loader->settled(group)) return false;
    }
    follow(wanted, limit_bytes, room_bytes);
    return true;
  }

  const TensorSpec& tensor(TensorId id) const {
    if (id >= sources.tensors().size())
      throw ConfigError("there is no tensor " + std::to_string(id));
    return sources.tensors()[id];
  }

  /// Start of a tensor of a group that has a place; null for any other.
  std::byte* place(TensorId id) const {
    const std::optional<GroupId> group = group_of[id];
    if (!group) return nullptr;
    if (loader->where(*group) == Where::kSource) {
      return const_cast<std::byte*>(sources.address(id));
    }
    return loader->address(*group, positions[id]);
  }

  /// What the budget has for groups besides what others hold.
  std::uint64_t budget_for_groups() const {
    const std::uint64_t mine = loader->held_bytes();
    return pool.budget().free_bytes() + mine;
  }
  bool made_room() const {
    const MutexLock lock(mutex);
    return made_room_bytes != 0;
  }

  bool settled(TensorId id) const { return group_of[id] && loader->settled(*group_of[id]); }

  void read(TensorId id, std::uint64_t offset_bytes, std::span<std::byte> out) {
    const std::byte* const bytes = settled(id) ? place(id) : nullptr;
    if (bytes != nullptr && transfers != nullptr) {
      transfers->copy_to_host(out.data(), bytes + offset_bytes, out.size());
      transfers->synchronize();
    } else if (bytes != nullptr) {
      if (!out.empty()) std::memcpy(out.data(), bytes + offset_bytes, out.size());
    } else {
      sources.read(id, offset_bytes, out);
    }
  }

  /// Makes what the device's memory of a settled tensor holds its source, where the source has
  /// something else.
  void keep_written(TensorId id) {
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

  void note_use() {
    const MutexLock lock(mutex);
    if (!first_use) first_use = Clock::now();
  }

  // Constant after construction.
  Device& device;
  Pool pool;
  const EngineOptions options;
  const std::vector<Group> groups;
  const std::vector<std::optional<GroupId>> group_of;  // by TensorId
  SourceTable sources;
  const Reservation fixed;
  std::vector<GroupLayout> layouts;    // by GroupId
  std::vector<std::size_t> positions;  // in its group, by TensorId
  mutable Mutex mutex;
  // By GroupId, guarded by mutex; shared with loads. Before the loader: no load is the last to go.
  std::vector<std::shared_ptr<HostHome>> homes TS_GUARDED_BY(mutex);
  // On devices that are not the host. The ring goes before the stream that its copies are in.
  std::unique_ptr<Stream> transfers;  // of what nobody leases
  std::unique_ptr<StagingRing> staging;
  std::unique_ptr<Loader> loader;

  // Guarded by mutex.
  Plan plan TS_GUARDED_BY(mutex);
  std::optional<Clock::time_point> first_use TS_GUARDED_BY(mutex);
  std::uint64_t on_demand_bytes TS_GUARDED_BY(mutex) = 0;
  std::uint64_t made_room_bytes TS_GUARDED_BY(mutex) = 0;

 private:
  void make_loader() {
    std::vector<LoadedGroup> loaded;
    for (GroupId group = 0; group < groups.size(); ++group) {
      loaded.push_back({group, groups[group].tensors, layouts[group], groups[group].residency, {}});
    }
    loader = std::make_unique<Loader>(pool, sources, staging.get(), std::move(loaded), options);
  }
};

Engine::Engine(Device& device, std::shared_ptr<Budget> budget, ModelSpec model,
               const EngineOptions& options)
    : state_(std::make_unique<State>(device, std::move(budget), std::move(model), options)) {}

Engine::~Engine() = default;

Plan Engine::plan() const { return state_->current_plan(); }
const std::vector<Group>& Engine::groups() const noexcept { return state_->groups; }
std::uint32_t Engine::place_number(GroupId group) const {
  return state_->loader->place_number(group);
}
bool Engine::settled(GroupId group) const { return state_->loader->settled(group); }

std::vector<TensorPlace> Engine::places(GroupId group) const {
  const State& state = *state_;
  std::vector<TensorPlace> result;
  if (state.loader->where(group) == Where::kNowhere) return result;
  for (const TensorId id : state.groups[group].tensors) {
    result.push_back({id, state.place(id), state.tensor(id).size_bytes});
  }
  return result;
}

std::vector<bool> Engine::settled_under(std::uint64_t limit_bytes) const {
  const Plan plan = state_->plan_for(limit_bytes, state_->first_room(limit_bytes));
  return state_->settled_by(plan, limit_bytes);
}

void Engine::set_budget(std::uint64_t limit_bytes) {
  State& state = *state_;
  Budget& budget = state.pool.budget();
  const std::uint64_t room_bytes = state.first_room(limit_bytes);
  const Plan plan = state.plan_for(limit_bytes, room_bytes);
  state.loader->check_unleased();
  const std::vector<bool> stays = state.settled_by(plan, limit_bytes);
  for (GroupId group = 0; group < state.groups.size(); ++group) {
    if (stays[group] || !state.loader->settled(group)) continue;
    for (const TensorId id : state.groups[group].tensors) {
      state.keep_written(id);  // guard: written-resident
    }
  }
  if (limit_bytes > budget.limit_bytes()) static_cast<void>(budget.try_set_limit(limit_bytes));
  state.follow(plan, limit_bytes, room_bytes);
  if (!budget.try_set_limit(limit_bytes)) {
    throw BudgetError("budget: others hold so much of it that it cannot be lowered to " +
                          format_size(limit_bytes) + "; " + format_size(budget.used_bytes()) +
                          " are in use",
                      budget.used_bytes(), limit_bytes);
  }
}

std::uint64_t Engine::give_way(std::uint64_t wanted_bytes) {
  return state_->loader->give_way(wanted_bytes);
}

bool Engine::make_room(std::uint64_t wanted_bytes) {
  State& state = *state_;
  const std::uint64_t limit_bytes = state.pool.budget().limit_bytes();
  try {
    const Plan plan = state.plan_for(limit_bytes, wanted_bytes);
    const std::uint64_t taken = plan.resident_bytes + plan.arena_bytes;
    if (plan.budget_bytes < taken || state.budget_for_groups() - taken < wanted_bytes) return false;
    return state.try_follow(plan, wanted_bytes);
  } catch (const BudgetError&) {  // it is full of what others hold
    return false;
  }
}

std::uint64_t Engine::take_back(std::uint64_t spared_bytes) {
  State& state = *state_;
  const std::uint64_t before = state.loader->held_bytes();
  if (state.made_room()) {
    try {
      const Plan plan = state.plan_for(state.pool.budget().limit_bytes(), spared_bytes);
      static_cast<void>(state.try_follow(plan, 0));
    } catch (const BudgetError&) {  // others still hold it
      return 0;
    }
  } else {
    static_cast<void>(state.loader->take_back(spared_bytes));
  }
  const std::uint64_t after = state.loader->held_bytes();
  return after > before ? after - before : 0;
}

bool Engine::acquire(GroupId group, Stream& stream) {
  state_->note_use();
  return state_->loader->acquire(group, stream);
}

void Engine::release(GroupId group, Stream& stream) { state_->loader->release(group, stream); }

void Engine::release_all(Stream& stream) noexcept { state_->loader->release_all(stream); }

void Engine::read_tensor(TensorId tensor, std::span<std::byte> out) {
  State& state = *state_;
  const TensorSpec& spec = state.tensor(tensor);
  if (out.size() != spec.size_bytes) {
    throw ConfigError("tensor '" + spec.name + "' has " + std::to_string(spec.size_bytes) +
                      " bytes; " + std::to_string(out.size()) + " were asked for");
  }
  state.read(tensor, 0, out);
  const MutexLock lock(state.mutex);
  state.on_demand_bytes += out.size();
}

void Engine::read_rows(TensorId tensor, std::span<const std::int64_t> indices,
                       std::uint64_t row_bytes, std::span<std::byte> out) {
  State& state = *state_;
  const TensorSpec& spec = state.tensor(tensor);
  const auto wanted = checked_mul(indices.size(), row_bytes);
  if (row_bytes == 0 || spec.size_bytes % row_bytes != 0 || !wanted || out.size() != *wanted) {
    throw ConfigError(std::to_string(indices.size()) + " rows of " + std::to_string(row_bytes) +
                      " bytes of tensor '" + spec.name + "' (" + std::to_string(spec.size_bytes) +
                      " bytes) do not fit " + std::to_string(out.size()) + " bytes");
  }
  const std::uint64_t rows = spec.size_bytes / row_bytes;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    if (indices[i] < 0 || static_cast<std::uint64_t>(indices[i]) >= rows) {  // guard: row-bounds
      throw ConfigError("row " + std::to_string(indices[i]) + " of tensor '" + spec.name +
                        "' is asked for; it has " + std::to_string(rows));
    }
    state.read(tensor, static_cast<std::uint64_t>(indices[i]) * row_bytes,
               out.subspan(i * row_bytes, row_bytes));
  }
  const MutexLock lock(state.mutex);
  state.on_demand_bytes += out.size();
}

bool Engine::tensor_equals(TensorId tensor, std::span<const std::byte> bytes) {
  State& state = *state_;
  const TensorSpec& spec = state.tensor(tensor);
  if (bytes.size() != spec.size_bytes) {
    throw ConfigError("tensor '" + spec.name + "' has " + std::to_string(spec.size_bytes) +
                      " bytes; it is compared with " + std::to_string(bytes.size()));
  }
  std::vector<std::byte> piece(std::min<std::uint64_t>(bytes.size(), 1_MiB));
  for (std::uint64_t done = 0; done < bytes.size(); done += piece.size()) {
    const std::span<std::byte> part =
        std::span(piece).first(std::min<std::uint64_t>(piece.size(), bytes.size() - done));
    state.read(tensor, done, part);
    if (std::memcmp(part.data(), bytes.data() + done, part.size()) != 0) return false;
  }
  return true;
}

void Engine::replace_tensor(TensorId tensor, std::span<const std::byte> bytes,
                            std::shared_ptr<const void> owner) {
  State& state = *state_;
  const TensorSpec& spec = state.tensor(tensor);
  const std::optional<GroupId> group = state.group_of[tensor];
  if (state.settled(tensor)) {  // guard: replaced-resident
    throw ConfigError("tensor '" + spec.name + "' is resident: write to it in its place");
  }
  std::vector<BoundExtent> replaced;  // goes after every lock
  const auto replace = [&] {
    replaced = state.sources.replace(
        tensor, create_memory_reader("memory of '" + spec.name + "'", bytes, std::move(owner)));
  };
  if (group) {
    state.loader->change(*group, replace);
  } else {
    replace();
  }
}

void Engine::bring_home(GroupId group) {
  State& state = *state_;
  if (state.device.host_accessible() || state.loader->settled(group)) return;
  {
    const MutexLock lock(state.mutex);
    if (state.homes[group] != nullptr) return;
  }
  const Group& moved = state.groups[group];
  const GroupLayout& layout = state.layouts[group];
  std::vector<std::vector<BoundExtent>> from;
  from.reserve(moved.tensors.size());
  for (const TensorId tensor : moved.tensors) from.push_back(state.sources.extents(tensor));
  const std::shared_ptr<HostHome> home =
      make_home(state.device, moved, layout, state.sources, {.budget = state.options.ram_budget});
  for (std::size_t i = 0; i < moved.tensors.size(); ++i) {
    const std::uint64_t size_bytes = state.tensor(moved.tensors[i]).size_bytes;
    // One that was written to meanwhile stays where it is.
    static_cast<void>(state.sources.try_move(moved.tensors[i], from[i],
                                             {home, layout.offsets_bytes[i], size_bytes}));
  }
  const MutexLock lock(state.mutex);
  state.homes[group] = home;
}

std::byte* Engine::home_address(TensorId tensor) const {
  const State& state = *state_;
  const std::uint64_t size_bytes = state.tensor(tensor).size_bytes;
  const std::vector<BoundExtent> extents = state.sources.extents(tensor);
  const std::optional<GroupId> group = state.group_of[tensor];
  if (!group || extents.size() != 1) return nullptr;
  const MutexLock lock(state.mutex);
  const std::shared_ptr<HostHome>& home = state.homes[*group];
  if (home == nullptr || extents[0].reader != home) return nullptr;
  return home->device_address(extents[0].offset_bytes, size_bytes);
}

void Engine::note_write(TensorId tensor, Stream& stream) {
  State& state = *state_;
  const std::optional<GroupId> group = state.group_of[tensor];
  if (group) state.loader->note_write(*group, stream);
}

Statistics Engine::statistics() const {
  State& state = *state_;
  Statistics result;
  result.budget_bytes = state.pool.budget().limit_bytes();
  result.source_ram_bytes = state.sources.ram_bytes();
  state.loader->add_to(result);
  result.held_bytes += state.fixed.size_bytes();
  result.peak_held_bytes += state.fixed.size_bytes();
  const MutexLock lock(state.mutex);
  result.on_demand_bytes = state.on_demand_bytes;
  result.made_room_bytes = state.made_room_bytes;
  for (const std::shared_ptr<HostHome>& home : state.homes) {
    if (home != nullptr) result.pinned_bytes += home->pinned_bytes();
  }
  if (state.first_use) result.active_seconds = seconds_since(*state.first_use);
  return result;
}

}  // namespace tensorstream
