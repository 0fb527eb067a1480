// How an engine's groups find other places between uses: the plans for it, and following them.
#include <algorithm>
#include <exception>
#include <functional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "engine/engine_state.h"
#include "scheduler/pass_time.h"
#include "scheduler/planner.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// The share of its cost that a new plan leaves where the residents that it exchanges are worth
// loading again.
constexpr double kWorthPlanning = 0.95;
// The share of a pass that all but the device takes for it by itself, where what the device
// computes for hides nothing more.
constexpr double kWaitingShare = 0.9;

}  // namespace

Rates Engine::State::rates_for_arena() const {
  Rates rates = rates_now();
  if (loader && rates.loading == Loading::kAhead) rates.uses = loader->uses_beside_cycle();
  if (!rates.uses.empty()) planned_for_order = true;
  return rates;
}

Rates Engine::State::rates_for_plans() const {
  Rates rates = rates_for_arena();
  const std::unordered_set<GroupId> used(rates.uses.begin(), rates.uses.end());
  for (GroupId group = 0; group < groups.size(); ++group) {
    const bool may_move =
        groups[group].residency == Residency::kAny && layouts[group].size_bytes != 0;
    if (may_move && !used.contains(group)) rates.uses.clear();
  }
  return rates;
}

std::optional<Rates> Engine::State::rates_of_computing() const {
  Rates rates = rates_for_plans();
  std::optional<PassPeriod::Pass> pass;
  {
    const MutexLock lock(mutex);
    pass = pass_period.last();
  }
  if (!pass || !rates.uses.empty()) return std::nullopt;
  rates.compute_seconds = 0;
  const double waiting = pass_seconds(pass_steps(footprints_now(), plan_as_it_is()), rates);
  if (waiting >= kWaitingShare * pass->seconds) return std::nullopt;
  rates.compute_seconds = pass->seconds;
  return rates;
}

Plan Engine::State::plan_as_it_is() const {
  Plan now = current_plan();
  now.arena_bytes = loader->arena_bytes();
  for (GroupId group = 0; group < groups.size(); ++group) {
    const Where where = loader->where(group);
    if (where == Where::kNowhere) continue;  // as it is to be
    const Placement coded =
        loader->keeps_frames(group) ? Placement::kResidentCoded : Placement::kStreamed;
    now.groups[group].placement = where == Where::kArena ? coded : Placement::kResident;
    now.groups[group].offset_bytes = loader->arena_offset(group);
  }
  tensorstream::note_homes(footprints_now(), now);
  return now;
}

Plan Engine::State::plan_within_bytes(std::uint64_t headroom_bytes) const {
  const Plan followed = current_plan();
  const Plan now = plan_as_it_is();
  const auto is_streamed = [](const GroupPlacement& group) {
    return group.placement == Placement::kStreamed;
  };
  const bool gave_way = std::ranges::count_if(now.groups, is_streamed) >
                        std::ranges::count_if(followed.groups, is_streamed);
  const std::uint64_t held = loader->held_bytes();
  const std::uint64_t most = budget_for_groups();  // less than that where others are beyond it
  std::uint64_t bytes = gave_way ? held : std::max(held, followed.budget_bytes);
  const std::uint64_t beside_torch = most - std::min(most, headroom_bytes);
  bytes = std::min(bytes, std::max(held, beside_torch));  // guard: order-beside-torch
  bytes = std::min(bytes, most);                          // guard: order-within-the-budget
  Plan made = make_plan(footprints_now(), bytes, rates_for_plans());
  made.ring_bytes = ring_bytes();
  return made;
}

bool Engine::State::is_noticeably_better(const Plan& now, const Plan& better) const {
  const std::vector<GroupFootprint> sizes = footprints_now();
  const Rates rates = rates_for_plans();
  return plan_cost(sizes, rates, better) <= kWorthPlanning * plan_cost(sizes, rates, now);
}

bool Engine::State::is_worth_exchanging(const Rates& rates, const Plan& now,
                                        const Plan& better) const {
  return tensorstream::is_worth_exchanging(footprints_now(), rates, now, better);
}

bool Engine::State::arrange_anew(const std::function<Plan()>& make, const IsWorth& is_worth,
                                 std::uint64_t room_bytes) {
  if (loader->arena_bytes() == 0) return true;
  try {
    loader->check_unleased();  // the arena, too, stays as it is then
    const Plan better = make();
    if (is_worth(plan_as_it_is(), better)) try_follow(better, room_bytes, Why::kPressure);
  } catch (const BudgetError&) {  // none fits beside what others hold
  } catch (const LeaseError&) {   // after another forward, then
    return false;
  }
  if (loader->arena_bytes() == 0) return true;  // the device had no memory for the new one
  const Plan now = plan_as_it_is();
  // Groups that stay coded are decoded into a part of the arena of their own.
  if (std::ranges::count(now.groups, Placement::kResidentCoded, &GroupPlacement::placement) != 0) {
    return true;
  }
  const auto offsets = better_offsets(footprints_now(), rates_for_arena(), now);
  if (offsets) loader->move_in_arena(*offsets);
  return true;
}

void Engine::State::follow(const Plan& wanted, std::uint64_t limit_bytes, std::uint64_t room_bytes,
                           Why why) {
  Plan followed = wanted;  // before anything moves
  std::exception_ptr error;
  try {
    loader->arrange(wanted, use_of_residents(wanted, limit_bytes));
  } catch (const LeaseError&) {  // nothing has changed
    throw;
  } catch (...) {  // places moved all the same
    error = std::current_exception();
  }
  {
    const MutexLock lock(mutex);
    plan = std::move(followed);
    host_time.forget();
    pass_period = {};
    made_room_bytes = room_bytes;
    is_under_pressure = why == Why::kPressure;
    if (why == Why::kBudget) unpressed_resident_bytes = wanted.resident_bytes + wanted.kept_bytes;
  }
  if (error) std::rethrow_exception(error);
}

bool Engine::State::try_follow(const Plan& wanted, std::uint64_t room_bytes, Why why) {
  loader->check_unleased();
  const std::uint64_t limit_bytes = pool.budget().limit_bytes();
  const std::vector<bool> settles = settled_by(wanted, limit_bytes);
  for (GroupId group = 0; group < groups.size(); ++group) {
    if (settles[group] != loader->settled(group)) return false;
  }
  follow(wanted, limit_bytes, room_bytes, why);
  return true;
}

bool Engine::State::try_follow_limit(std::uint64_t limit_bytes) {
  homes.forget_absent();
  const std::uint64_t room_bytes = first_room(limit_bytes);
  const Plan wanted = plan_for(limit_bytes, room_bytes);
  if (loader->is_leased()) return false;
  const std::vector<bool> stays = settled_by(wanted, limit_bytes);
  for (GroupId group = 0; group < groups.size(); ++group) {
    if (stays[group] || !loader->settled(group)) continue;
    for (const TensorId id : groups[group].tensors) {
      keep_written(id);  // guard: written-resident
    }
  }
  const Followed before = followed();
  if (limit_bytes > before.limit_bytes) set_limit(limit_bytes);
  try {
    follow(wanted, limit_bytes, room_bytes, Why::kBudget);
  } catch (const LeaseError&) {  // nothing has moved
    set_limit(before.limit_bytes);
    return false;
  } catch (...) {
    return_to(before);
    throw;
  }
  set_limit(limit_bytes);
  return true;
}

Engine::State::Followed Engine::State::followed() const {
  const MutexLock lock(mutex);
  return {plan, pool.budget().limit_bytes(), made_room_bytes, unpressed_resident_bytes,
          is_under_pressure ? Why::kPressure : Why::kBudget};
}

// What is settled by that plan and by the one that failed stayed so: nobody has to keep it.
void Engine::State::return_to(const Followed& before) {
  bool is_whole = true;
  try {
    follow(before.plan, before.limit_bytes, before.room_bytes, before.why);
  } catch (const std::exception&) {  // what set_budget() raises says why
    is_whole = false;
  }
  {
    const MutexLock lock(mutex);
    unpressed_resident_bytes = before.unpressed_resident_bytes;
  }
  Budget& budget = pool.budget();
  const bool is_back = budget.try_set_limit(before.limit_bytes);  // others may have taken some
  if (is_whole && is_back) return;
  log(LogLevel::kWarning,
      "a budget that was refused leaves " + std::string(is_whole ? "all" : "not all") +
          " groups where they were, and a limit of " + format_size(budget.limit_bytes()) +
          ", of which " + format_size(budget.used_bytes()) + " are in use");
}

void Engine::State::set_limit(std::uint64_t limit_bytes) {
  Budget& budget = pool.budget();
  if (budget.try_set_limit(limit_bytes)) return;
  throw BudgetError("budget: others hold so much of it that it cannot be " +
                        format_size(limit_bytes) + "; " + format_size(budget.used_bytes()) +
                        " are in use",
                    budget.used_bytes(), limit_bytes);
}

}  // namespace tensorstream
