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
#include "io/file_window.h"
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

/// Takes the bytes that are neither group nor arena. Raises BudgetError where the groups' smallest
/// plan does not fit beside them and what the budget's other users hold.
Reservation reserve_fixed(Budget& budget, std::uint64_t fixed_bytes,
                          std::span<const GroupFootprint> groups) {
  const std::uint64_t others = budget.used_bytes();
  const std::uint64_t smallest = smallest_budget_bytes(groups);
  const auto beside = checked_add(others, fixed_bytes);
  const auto needed = beside ? checked_add(*beside, smallest) : std::nullopt;
  if (!needed) throw ConfigError("the model's sizes add up to more than 2^64 bytes");
  if (*beside != 0 && *needed > budget.limit_bytes()) {
    throw BudgetError(
        "budget of " + format_size(budget.limit_bytes()) + " (" +
            std::to_string(budget.limit_bytes()) +
            " bytes) is too small: the model's groups need at least " + std::to_string(smallest) +
            " bytes beside " + std::to_string(fixed_bytes) + " of buffers and " +
            std::to_string(others) + " that others hold; the smallest budget that works is " +
            std::to_string(*needed) + " bytes (" + format_size(*needed) + ")",
        *needed, budget.limit_bytes());
  }
  return budget.reserve(fixed_bytes, "buffers and weights that stay in place");
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

/// Tensors smaller than this are copied for less than a window costs.
constexpr std::uint64_t kSmallestWindowBytes = 4_MiB;
/// A process has 65,530 mappings by default, and a window is up to three.
constexpr std::size_t kMostWindows = 8192;

/// The file's own pages where they can be used without a copy of them; null elsewhere.
std::unique_ptr<FileWindow> window_of(const TensorSpec& tensor, const BoundExtent& extent) {
  const std::uint64_t line_offset_bytes = extent.offset_bytes % kCacheLineBytes;
  if (line_offset_bytes != tensor.line_offset_bytes) return nullptr;  // guard: window-alignment
  const bool is_whole = extent.size_bytes == tensor.size_bytes;
  if (!is_whole || extent.size_bytes < kSmallestWindowBytes) return nullptr;
  return extent.reader->window(extent.offset_bytes, extent.size_bytes);
}

}  // namespace

ComputePlace compute_place(const Device& device) noexcept {
  return device.host_accessible() ? ComputePlace::kHost : ComputePlace::kAccelerator;
}

Prefetch resolve_prefetch(Prefetch prefetch, ComputePlace place) noexcept {
  if (prefetch != Prefetch::kAdaptive) return prefetch;
  return place == ComputePlace::kHost ? Prefetch::kReadAhead : Prefetch::kAhead;
}

Loading loading_of(Prefetch prefetch) noexcept {
  return prefetch == Prefetch::kReadAhead ? Loading::kAtUse : Loading::kAhead;
}

class Engine::State {
 public:
  State(Device& on, std::shared_ptr<Budget> budget, ModelSpec model, const EngineOptions& options)
      : device(on),
        pool(on, std::move(budget)),
        groups(std::move(model.groups)),
        group_of(group_of_tensors(groups, model.tensors.size())),
        sources(model.sources, std::move(model.tensors)),
        fixed(reserve_fixed(pool.budget(), options.fixed_bytes,
                            footprints(groups, sources.tensors()))),
        plan(make_plan(footprints(groups, sources.tensors()), pool.budget().free_bytes(),
                       rates_for(options, on))),
        ram_budget(options.ram_budget),
        homes(groups.size()),
        resident_leases(groups.size()) {
    if (options.piece_bytes == 0)
      throw ConfigError("EngineOptions::piece_bytes is 0; give the bytes that one read may move");
    for (const Group& group : groups) {
      layouts.push_back(lay_out(group, sources.tensors()));
      if (device.host_accessible()) lie_as_in_model(layouts.back(), group, sources.tensors());
    }
    if (!device.host_accessible()) {
      staging = std::make_unique<StagingRing>(
          device,
          StagingRingOptions{.piece_bytes = options.piece_bytes, .budget = options.ram_budget});
      transfers = device.create_stream();
    }
    place_residents();
    start_loader(options);
    load_residents(options.piece_bytes);
  }

  Placement placement(GroupId group) const { return plan.groups.at(group).placement; }

  const TensorSpec& tensor(TensorId id) const {
    if (id >= sources.tensors().size())
      throw ConfigError("there is no tensor " + std::to_string(id));
    return sources.tensors()[id];
  }

  /// Device bytes of a resident tensor; null for any other.
  const std::byte* resident_bytes_of(TensorId id) const { return resident_places[id]; }

  void read(TensorId id, std::uint64_t offset_bytes, std::span<std::byte> out) {
    const std::byte* const bytes = resident_bytes_of(id);
    if (bytes != nullptr && transfers != nullptr) {
      transfers->copy_to_host(out.data(), bytes + offset_bytes, out.size());
      transfers->synchronize();
    } else if (bytes != nullptr) {
      if (!out.empty()) std::memcpy(out.data(), bytes + offset_bytes, out.size());
    } else {
      sources.read(id, offset_bytes, out);
    }
  }

  void note_use() {
    const MutexLock lock(mutex);
    if (!first_use) first_use = Clock::now();
  }

  // Constant after construction.
  Device& device;
  Pool pool;
  const std::vector<Group> groups;
  const std::vector<std::optional<GroupId>> group_of;  // by TensorId
  SourceTable sources;
  const Reservation fixed;
  const Plan plan;
  std::vector<GroupLayout> layouts;               // by GroupId
  std::vector<const std::byte*> resident_places;  // by TensorId
  Reservation in_place;                           // residents that stay where a RAM source has them
  Block residents;
  const std::shared_ptr<Budget> ram_budget;  // shared with other engines
  mutable Mutex mutex;
  // By GroupId, guarded by mutex; shared with loads. Before the loader: no load is the last to go.
  std::vector<std::shared_ptr<HostHome>> homes TS_GUARDED_BY(mutex);
  // On devices that are not the host. The ring goes before the stream that its copies are in.
  std::unique_ptr<Stream> transfers;  // of what nobody leases
  std::unique_ptr<StagingRing> staging;
  std::unique_ptr<Loader> loader;

  // Guarded by mutex.
  std::optional<Clock::time_point> first_use TS_GUARDED_BY(mutex);
  std::vector<std::uint32_t> resident_leases TS_GUARDED_BY(mutex);  // by GroupId
  std::uint64_t resident_acquires TS_GUARDED_BY(mutex) = 0;
  std::uint64_t on_demand_bytes TS_GUARDED_BY(mutex) = 0;

 private:
  std::size_t windows = 0;

  void place_residents() {
    resident_places.resize(sources.tensors().size());
    std::uint64_t copied = 0;
    std::uint64_t kept = 0;
    for (GroupId group = 0; group < groups.size(); ++group) {
      if (placement(group) != Placement::kResident) continue;
      (stays_in_place(group) ? kept : copied) += layouts[group].size_bytes;
    }
    in_place = pool.budget().reserve(kept, "resident weights that are in RAM already");
    residents = pool.allocate(copied, kGroupAlignment, "resident weights");
    std::uint64_t offset = 0;
    for (GroupId group = 0; group < groups.size(); ++group) {
      if (placement(group) != Placement::kResident) continue;
      const bool stays = stays_in_place(group);
      for (std::size_t i = 0; i < groups[group].tensors.size(); ++i) {
        const TensorId id = groups[group].tensors[i];
        resident_places[id] = stays ? sources.address(id)
                                    : residents.data() + offset + layouts[group].offsets_bytes[i];
      }
      if (!stays) offset += layouts[group].size_bytes;
    }
  }

  bool stays_in_place(GroupId group) const {
    if (!device.host_accessible()) return false;
    for (const TensorId id : groups[group].tensors) {
      if (sources.address(id) == nullptr) return false;
    }
    return true;
  }

  void load_residents(std::uint64_t piece_bytes) {
    if (residents.size_bytes() == 0) return;
    device.caller_stream().set_access(residents.data(), residents.size_bytes(), Access::kReadWrite);
    for (GroupId group = 0; group < groups.size(); ++group) {
      if (placement(group) != Placement::kResident || stays_in_place(group)) continue;
      for (const TensorId id : groups[group].tensors) load_resident(id, piece_bytes);
    }
    if (transfers != nullptr) transfers->synchronize();
  }

  void load_resident(TensorId id, std::uint64_t piece_bytes) {
    auto* target = const_cast<std::byte*>(resident_places[id]);
    if (transfers == nullptr) return sources.read(id, 0, {target, tensor(id).size_bytes});
    Load load(0, Load::Reads::kStaged);
    for (const BoundExtent& extent : sources.extents(id)) {
      load.add(extent, target, piece_bytes);
      target += extent.size_bytes;
    }
    for (const Load::Copy& copy : load.copies()) {
      transfers->copy_to_device(copy.target.data(), copy.source, copy.target.size());
    }
    load.read_through(*staging, *transfers);
    if (const std::exception_ptr error = load.error()) std::rethrow_exception(error);
    // The readers go with the load: what is copied straight from them has to be done.
    if (!load.copies().empty()) transfers->synchronize();
  }

  void add_windows(StreamedGroup& group) {
    std::vector<std::unique_ptr<FileWindow>> result;
    bool any = false;
    for (const TensorId id : group.tensors) {
      const std::vector<BoundExtent> extents = sources.extents(id);
      result.push_back(
          extents.empty() || windows == kMostWindows ? nullptr : window_of(tensor(id), extents[0]));
      if (result.back() == nullptr) continue;
      any = true;
      ++windows;
    }
    if (any) group.windows = std::move(result);
  }

  void start_loader(const EngineOptions& options) {
    const bool uses_windows =
        device.uses_foreign_memory() &&
        resolve_prefetch(options.prefetch, compute_place(device)) == Prefetch::kReadAhead;
    std::vector<StreamedGroup> streamed;
    for (GroupId group = 0; group < groups.size(); ++group) {
      if (placement(group) != Placement::kStreamed) continue;
      streamed.push_back(
          {group, groups[group].tensors, layouts[group], plan.groups[group].offset_bytes, {}});
      if (uses_windows) add_windows(streamed.back());
    }
    if (streamed.empty()) return;
    Block arena = pool.allocate(plan.arena_bytes, kGroupAlignment, "the arena of streamed weights");
    loader = std::make_unique<Loader>(device, sources, std::move(arena), staging.get(),
                                      std::move(streamed), options);
  }
};

Engine::Engine(Device& device, std::shared_ptr<Budget> budget, ModelSpec model,
               const EngineOptions& options)
    : state_(std::make_unique<State>(device, std::move(budget), std::move(model), options)) {}

Engine::~Engine() = default;

const Plan& Engine::plan() const noexcept { return state_->plan; }
const std::vector<Group>& Engine::groups() const noexcept { return state_->groups; }

std::vector<TensorPlace> Engine::places(GroupId group) const {
  const State& state = *state_;
  std::vector<TensorPlace> result;
  const Placement placement = state.placement(group);
  if (placement == Placement::kOnDemand) return result;
  const bool streamed = placement == Placement::kStreamed;
  const std::vector<std::byte*> addresses =
      streamed ? state.loader->addresses(group) : std::vector<std::byte*>();
  for (std::size_t i = 0; i < state.groups[group].tensors.size(); ++i) {
    const TensorId id = state.groups[group].tensors[i];
    std::byte* const data =
        streamed ? addresses[i] : const_cast<std::byte*>(state.resident_bytes_of(id));
    result.push_back({id, data, state.tensor(id).size_bytes});
  }
  return result;
}

bool Engine::acquire(GroupId group, Stream& stream) {
  State& state = *state_;
  state.note_use();
  switch (state.placement(group)) {
    case Placement::kResident: {
      const MutexLock lock(state.mutex);
      ++state.resident_acquires;
      ++state.resident_leases[group];
      return true;
    }
    case Placement::kStreamed:
      return state.loader->acquire(group, stream);
    case Placement::kOnDemand:
      return false;
  }
  return false;
}

void Engine::release(GroupId group, Stream& stream) {
  State& state = *state_;
  if (state.placement(group) == Placement::kStreamed) return state.loader->release(group, stream);
  const MutexLock lock(state.mutex);
  if (state.resident_leases[group] == 0) {
    throw LeaseError("group '" + state.groups[group].name + "' is released but not leased");
  }
  --state.resident_leases[group];
}

void Engine::release_all(Stream& stream) noexcept {
  State& state = *state_;
  if (state.loader) state.loader->release_all(stream);
  const MutexLock lock(state.mutex);
  std::fill(state.resident_leases.begin(), state.resident_leases.end(), 0U);
}

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
  if (state.resident_bytes_of(tensor) != nullptr) {  // guard: replaced-resident
    throw ConfigError("tensor '" + spec.name + "' is resident: write to it in its place");
  }
  std::vector<BoundExtent> replaced;  // goes after every lock
  const auto replace = [&] {
    replaced = state.sources.replace(
        tensor, create_memory_reader("memory of '" + spec.name + "'", bytes, std::move(owner)));
  };
  if (group && state.placement(*group) == Placement::kStreamed) {
    state.loader->change(*group, replace);
  } else {
    replace();
  }
}

void Engine::bring_home(GroupId group) {
  State& state = *state_;
  if (state.device.host_accessible() || state.placement(group) == Placement::kResident) return;
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
      make_home(state.device, moved, layout, state.sources, {.budget = state.ram_budget});
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
  if (group && state.placement(*group) == Placement::kStreamed) {
    state.loader->note_write(*group, stream);
  }
}

Statistics Engine::statistics() const {
  State& state = *state_;
  Statistics result;
  result.budget_bytes = state.pool.budget().limit_bytes();
  result.held_bytes = state.fixed.size_bytes() + state.plan.resident_bytes + state.plan.arena_bytes;
  result.peak_held_bytes = result.held_bytes;  // taken when it was opened, kept until it ends
  result.source_ram_bytes = state.sources.ram_bytes();
  if (state.loader) state.loader->add_to(result);
  const MutexLock lock(state.mutex);
  result.acquires += state.resident_acquires;
  result.hits += state.resident_acquires;
  result.on_demand_bytes = state.on_demand_bytes;
  for (const std::shared_ptr<HostHome>& home : state.homes) {
    if (home != nullptr) result.pinned_bytes += home->pinned_bytes();
  }
  if (state.first_use) result.active_seconds = seconds_since(*state.first_use);
  return result;
}

}  // namespace tensorstream
