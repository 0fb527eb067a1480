#include "tensorstream/engine.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/units.h"
#include "engine/engine_state.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

[[noreturn]] void throw_resident(const TensorSpec& tensor) {
  throw ConfigError("tensor '" + tensor.name + "' is resident: write to it in its place");
}

[[noreturn]] void throw_captured(const std::string& group, bool is_settled) {
  if (is_settled) {
    throw UnsupportedError("group '" + group +
                           "' is resident, and its stream is captured into a CUDA graph, which "
                           "would keep the end of the lease: use it without one");
  }
  throw UnsupportedError("group '" + group +
                         "' has no place for good, and its stream is captured into a CUDA graph, "
                         "which would keep the place of now: run without capture, or with a "
                         "budget that holds all weights");
}

}  // namespace

Engine::Engine(Device& device, std::shared_ptr<Budget> budget, ModelSpec model,
               const EngineOptions& options)
    : state_(std::make_unique<State>(device, std::move(budget), std::move(model), options)) {}

Engine::~Engine() = default;

Plan Engine::plan() const { return state_->predicted_plan(state_->measured_host_seconds()); }
const std::vector<Group>& Engine::groups() const noexcept { return state_->groups; }
std::uint32_t Engine::place_number(GroupId group) const {
  return state_->loader->place_number(group);
}
bool Engine::has_own_place(GroupId group) const {
  return state_->loader->where(group) == Where::kPrivate;
}
std::uint64_t Engine::place_moves() const { return state_->loader->place_moves(); }
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
  set_budget(limit_bytes, {.longest = std::chrono::milliseconds(0), .check = {}});
}

void Engine::set_budget(std::uint64_t limit_bytes, const LeaseWait& wait) {
  State& state = *state_;
  state.outside.release();  // it follows the limit
  const Clock::time_point until = Clock::now() + wait.longest;
  try {
    while (!state.try_follow_limit(limit_bytes)) state.loader->wait_unleased(until, wait.check);
  } catch (...) {
    state.reserve_outside();
    throw;
  }
  state.reserve_outside();
}

std::uint64_t Engine::give_way(std::uint64_t wanted_bytes) {
  return state_->loader->give_way(wanted_bytes);
}

bool Engine::make_room(std::uint64_t wanted_bytes) {
  State& state = *state_;
  const std::uint64_t limit_bytes = state.pool.budget().limit_bytes();
  try {
    const Plan plan = state.plan_for(limit_bytes, wanted_bytes);
    const std::uint64_t taken = plan.resident_bytes + plan.kept_bytes + plan.arena_bytes;
    const std::uint64_t most = state.budget_for_groups();
    if (plan.budget_bytes < taken || most < taken || most - taken < wanted_bytes) return false;
    return state.try_follow(plan, wanted_bytes, State::Why::kPressure);
  } catch (const BudgetError&) {  // it is full of what others hold
    return false;
  }
}

std::uint64_t Engine::take_back(std::uint64_t spared_bytes) {
  State& state = *state_;
  const std::uint64_t before = state.loader->held_bytes();
  const bool is_planned = state.room_bytes() != 0 || state.planned_for_pressure();
  if (is_planned || state.loader->lacks_places()) {
    try {
      const Plan plan = state.plan_for(state.pool.budget().limit_bytes(), spared_bytes);
      static_cast<void>(state.try_follow(plan, 0, State::Why::kBudget));
    } catch (const BudgetError&) {  // others still hold it
      return 0;
    }
  } else {
    static_cast<void>(state.loader->take_back(spared_bytes));
  }
  const std::uint64_t after = state.loader->held_bytes();
  return after > before ? after - before : 0;
}

bool Engine::lacks_places() const { return state_->loader->lacks_places(); }

void Engine::adapt(std::uint64_t headroom_bytes) {
  State& state = *state_;
  const std::uint64_t room_bytes = state.room_for_others(headroom_bytes);
  state.arrange_anew(
      [&] { return state.plan_beside_others(room_bytes); },
      [&](const Plan& now, const Plan& better) { return state.is_noticeably_better(now, better); },
      room_bytes);
}

void Engine::exchange_residents(std::uint64_t headroom_bytes) {
  State& state = *state_;
  const std::optional<Rates> rates = state.rates_of_computing();
  if (!rates) return;
  const std::uint64_t room_bytes = state.room_for_others(headroom_bytes);
  state.arrange_anew([&] { return state.plan_beside_others(room_bytes); },
                     [&](const Plan& now, const Plan& better) {
                       return state.is_worth_exchanging(*rates, now, better);
                     },
                     room_bytes);
}

bool Engine::adapt_to_order(std::uint64_t headroom_bytes) {
  State& state = *state_;
  const bool was_planned_for_one = state.planned_for_order.exchange(false);
  if (state.rates_for_arena().uses.empty() && !was_planned_for_one) return true;
  const bool arranged = state.arrange_anew(
      [&] { return state.plan_within_bytes(headroom_bytes); },
      [&](const Plan& now, const Plan& better) { return state.is_noticeably_better(now, better); },
      state.room_bytes());
  if (!arranged) state.planned_for_order = true;
  return arranged;
}

bool Engine::acquire(GroupId group, Stream& stream) {
  if (stream.is_capturing()) {  // guard: acquired-in-capture
    throw_captured(state_->groups[group].name, state_->loader->settled(group));
  }
  state_->note_use();
  try {
    return state_->loader->acquire(group, stream);
  } catch (const IoError& error) {
    throw IoError(error.what() + (" (group '" + state_->groups[group].name + "')"), error.path(),
                  error.offset_bytes(), error.error_number(), error.where());
  }
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
  std::vector<BoundExtent> replaced;  // goes after every lock
  const auto replace = [&] {
    replaced = state.sources.replace(
        tensor, create_memory_reader("memory of '" + spec.name + "'", bytes, std::move(owner)));
  };
  if (!group) {
    replace();
  } else if (!state.loader->change(*group, replace)) {
    throw_resident(spec);
  }
}

void Engine::bring_home(GroupId group) {
  State& state = *state_;
  if (state.device.host_accessible() || state.loader->settled(group)) return;
  const HomeOptions options{CompressionLevel(state.compression.level), state.batch_bytes,
                            state.ring ? state.ring->batch_bytes() : 0, state.ram};
  try {
    if (state.homes.bring(group, options)) state.predict_anew();
  } catch (const Error&) {
    state.homes.note_absent(group);
    throw;
  }
}

std::vector<GroupId> Engine::groups_to_bring_home() const {
  if (state_->device.host_accessible()) return {};
  return state_->groups_to_bring_home();
}

bool Engine::plan_anew() {
  State& state = *state_;
  if (state.device.host_accessible()) return false;
  state.note_homes();
  if (state.compression.level == 0) return false;
  const std::uint64_t room_bytes = state.room_bytes();
  try {
    return state.try_follow(state.plan_for(state.pool.budget().limit_bytes(), room_bytes),
                            room_bytes, State::Why::kBudget);
  } catch (const BudgetError&) {  // it is full of what others hold
    return false;
  }
}

std::byte* Engine::home_address(TensorId tensor) const {
  const State& state = *state_;
  static_cast<void>(state.tensor(tensor));
  const std::vector<BoundExtent> extents = state.sources.extents(tensor);
  const std::optional<GroupId> group = state.group_of[tensor];
  if (!group || extents.size() != 1) return nullptr;
  return state.homes.device_address(*group, extents[0]);
}

void Engine::note_write(TensorId tensor, Stream& stream) {
  State& state = *state_;
  const std::optional<GroupId> group = state.group_of[tensor];
  if (group && !state.loader->note_write(*group, stream)) throw_resident(state.tensor(tensor));
}

void Engine::note_pass_begun() {
  State& state = *state_;
  if (state.device.host_accessible()) return;
  const Clock::time_point now = Clock::now();
  const HostTime::Counted counted = state.loader->counted();
  const std::size_t leased_groups = state.loader->leased_groups();
  const MutexLock lock(state.mutex);
  state.host_time.begin(now, counted);
  state.pass_period.begin(now, counted, leased_groups);
}

void Engine::note_pass_ended() {
  State& state = *state_;
  if (state.device.host_accessible()) return;
  const Clock::time_point now = Clock::now();
  const HostTime::Counted counted = state.loader->counted();
  const std::size_t leased_groups = state.loader->leased_groups();
  const MutexLock lock(state.mutex);
  state.host_time.end(now, counted, leased_groups);
}

Statistics Engine::statistics() const {
  Statistics result = counters();
  const std::optional<double> host_seconds = state_->measured_host_seconds();
  result.host_seconds = host_seconds.value_or(0);
  result.predicted_seconds = state_->predicted_plan(host_seconds).predicted_seconds;
  return result;
}

Statistics Engine::counters() const {
  State& state = *state_;
  Statistics result;
  result.budget_bytes = state.pool.budget().limit_bytes();
  result.source_ram_bytes = state.sources.ram_bytes();
  state.loader->add_to(result);
  const std::uint64_t beside = state.fixed.size_bytes() + state.ring_bytes();
  result.held_bytes += beside;
  result.peak_held_bytes += beside;
  const HomeSizes homes = state.homes.sizes();
  result.pinned_bytes = homes.pinned_bytes;
  result.staging_bytes = state.staging_bytes();
  if (state.options.ram_budget != nullptr) {
    result.ram_budget_bytes = state.options.ram_budget->limit_bytes();
  }
  result.ram_held_bytes = state.ram->used_bytes();
  result.peak_ram_held_bytes = state.ram->peak_bytes();
  result.compression = {state.compression.level, homes.coded_bytes, homes.decoded_bytes,
                        state.compression.reason};
  const MutexLock lock(state.mutex);
  result.on_demand_bytes = state.on_demand_bytes;
  result.made_room_bytes = state.made_room_bytes;
  const std::uint64_t planned = state.unpressed_resident_bytes;
  const std::uint64_t now = state.plan.resident_bytes + state.plan.kept_bytes;
  result.given_way_bytes += planned - std::min(planned, now);
  if (state.first_use) result.active_seconds = seconds_since(*state.first_use);
  return result;
}

}  // namespace tensorstream
