// What an Engine is made of. Private to engine.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "engine/compression_choice.h"
#include "engine/decode_ring.h"
#include "engine/group_layout.h"
#include "engine/home_table.h"
#include "engine/host_time.h"
#include "engine/loader.h"
#include "engine/model_plan.h"
#include "engine/pass_period.h"
#include "engine/source_table.h"
#include "memory/pool.h"
#include "memory/staging_ring.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// Thread-safe as the engine is.
class Engine::State {
 public:
  State(Device& on, std::shared_ptr<Budget> budget, ModelSpec model, const EngineOptions& opened);

  Plan current_plan() const {
    const MutexLock lock(mutex);
    return plan;
  }

  /// What the host was measured to take for a pass beside leases; nothing where it is not known.
  std::optional<double> measured_host_seconds() const;
  /// The current plan, its prediction by that, or else by what a call takes of the host.
  Plan predicted_plan(std::optional<double> host_seconds) const;

  /// What the planner is to know of the groups: what crosses the link is known where they are at
  /// home, and expected before.
  std::vector<GroupFootprint> footprints_now() const;
  std::vector<GroupFootprint> footprints_of(Crossing crossing) const;
  std::uint64_t ring_bytes() const { return ring ? ring->size_bytes() : 0; }
  std::uint64_t staging_bytes() const {
    return staging ? staging->piece_bytes() * staging->pieces() : 0;
  }

  /// What a budget leaves to what else is allocated under it, until that shows what it needs.
  std::uint64_t first_room(std::uint64_t limit_bytes) const;

  /// A plan that leaves `room_bytes` free, or as much of it as its groups can spare.
  Plan plan_for(std::uint64_t limit_bytes, std::uint64_t room_bytes) const {
    return plan_beside(ring_bytes(), footprints_now(), limit_bytes, room_bytes);
  }
  /// The same for the budget as it is.
  Plan plan_beside_others(std::uint64_t room_bytes) const {
    return plan_for(pool.budget().limit_bytes(), room_bytes);
  }
  /// What others are to have that need `headroom_bytes` more: what they allocate is never just what
  /// it was.
  std::uint64_t room_for_others(std::uint64_t headroom_bytes) const {
    return headroom_bytes + spared_bytes(pool.budget().limit_bytes()) / 8;
  }
  /// Of the budget, what is not this engine's.
  std::uint64_t others_bytes() const;
  Plan plan_beside(std::uint64_t ring_bytes_then, const std::vector<GroupFootprint>& sizes,
                   std::uint64_t limit_bytes, std::uint64_t room_bytes) const;

  /// The plan that the groups' places now are.
  Plan plan_as_it_is() const;

  /// A plan for the bytes that the last one was made for, or that groups hold where some gave way
  /// since, as far as others do not hold them, or need `headroom_bytes` of them again.
  Plan plan_within_bytes(std::uint64_t headroom_bytes) const;

  /// Whether a plan is to be followed in the place of what is.
  using IsWorth = std::function<bool(const Plan& now, const Plan& better)>;
  /// Follows a plan where it is worth it, and moves groups in the arena where that is noticeably
  /// better. False, and nothing is changed, while a group is leased.
  bool arrange_anew(const std::function<Plan()>& make, const IsWorth& is_worth,
                    std::uint64_t room_bytes);
  /// By what the planner chooses.
  bool is_noticeably_better(const Plan& now, const Plan& better) const;
  /// By the times of passes, where the device computes for as long as `rates` say.
  bool is_worth_exchanging(const Rates& rates, const Plan& now, const Plan& better) const;

  /// What the model of time goes by now: homes take host memory. What the host takes is what is
  /// usual, so that the same budget gives the same plan.
  Rates rates_now() const;
  /// The same, and the order in which groups are used where that is no plain cycle: of those that
  /// may be moved now, and for plans where these are all that a plan may move.
  Rates rates_for_arena() const;
  Rates rates_for_plans() const;
  /// The rates, with what the last whole pass took as what the device computes for; nothing where
  /// link, disk or host take as long by themselves, or passes are no plain cycle.
  std::optional<Rates> rates_of_computing() const;

  /// Predicts a pass by what homes turned out to take.
  void predict_anew();

  /// Says in the plan which groups have homes.
  void note_homes();

  std::vector<GroupId> groups_to_bring_home() const;

  /// Which groups a plan settles.
  std::vector<bool> settled_by(const Plan& wanted, std::uint64_t limit_bytes) const;

  /// What a plan is made for: the budget alone, or what is short of it for a while.
  enum class Why { kBudget, kPressure };

  /// Brings the groups to the places of a plan that fits the budget.
  void follow(const Plan& wanted, std::uint64_t limit_bytes, std::uint64_t room_bytes, Why why);

  /// Follows a plan that leaves `room_bytes` where that unsettles and settles no group: what
  /// settled ones are to their users would change. Raises LeaseError, and changes nothing, while a
  /// group is leased.
  bool try_follow(const Plan& wanted, std::uint64_t room_bytes, Why why);

  const TensorSpec& tensor(TensorId id) const;

  /// Start of a tensor of a group that has a place; null for any other.
  std::byte* place(TensorId id) const;

  /// What the budget has for groups besides what others hold.
  std::uint64_t budget_for_groups() const {
    const Budget& budget = pool.budget();
    const std::uint64_t used = budget.used_bytes();  // first: residents may give way meanwhile
    const std::uint64_t others = used - std::min(used, loader->held_bytes());
    return budget.limit_bytes() - std::min(budget.limit_bytes(), others);
  }
  /// Whether the plan is for less than the budget alone would allow.
  bool planned_for_pressure() const {
    const MutexLock lock(mutex);
    return is_under_pressure;
  }
  /// What the plan leaves free.
  std::uint64_t room_bytes() const {
    const MutexLock lock(mutex);
    return made_room_bytes;
  }

  bool settled(TensorId id) const { return group_of[id] && loader->settled(*group_of[id]); }

  void read(TensorId id, std::uint64_t offset_bytes, std::span<std::byte> out);

  /// Keeps a part of the budget, by its limit, for what calling code allocates between forwards;
  /// less, or nothing, where groups need it.
  void reserve_outside();

  /// Plans and arranges for another limit of the budget, and moves it there; where that fails, goes
  /// back to the plan and the limit of before. False, and nothing is changed, while a group is
  /// leased.
  bool try_follow_limit(std::uint64_t limit_bytes);
  /// Raises BudgetError where what is in use is more.
  void set_limit(std::uint64_t limit_bytes);

  /// Makes what the device's memory of a settled tensor holds its source, where the source has
  /// something else.
  void keep_written(TensorId id);

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
  Reservation outside;                     // where torch's allocations are under the budget
  const std::vector<GroupLayout> layouts;  // by GroupId
  std::vector<std::size_t> positions;      // in its group, by TensorId
  std::vector<bool> in_files;              // by GroupId: without a home, loads read files
  const std::shared_ptr<Budget> ram;       // shared with homes, the ring for staging, other engines
  CompressionChoice compression;
  mutable std::atomic<bool> planned_for_order{false};  // some plan may have been
  std::uint64_t encoding_bytes = 0;                    // of host memory, while a home is encoded
  std::uint64_t batch_bytes = 0;                       // what batches of frames are cut to
  mutable Mutex mutex;
  // Before the loader: no load is the last to go.
  HomeTable homes;
  // On devices that are not the host. The ring goes before the stream that its copies are in.
  std::unique_ptr<Stream> transfers;  // of what nobody leases
  std::unique_ptr<StagingRing> staging;
  std::unique_ptr<DecodeRing> ring;  // where weights are encoded
  std::unique_ptr<Loader> loader;

  // Guarded by mutex.
  Plan plan TS_GUARDED_BY(mutex);
  HostTime host_time TS_GUARDED_BY(mutex);
  PassPeriod pass_period TS_GUARDED_BY(mutex);
  std::optional<Clock::time_point> first_use TS_GUARDED_BY(mutex);
  std::uint64_t on_demand_bytes TS_GUARDED_BY(mutex) = 0;
  std::uint64_t made_room_bytes TS_GUARDED_BY(mutex) = 0;
  bool is_under_pressure TS_GUARDED_BY(mutex) = false;
  // Of the last plan for the budget alone.
  std::uint64_t unpressed_resident_bytes TS_GUARDED_BY(mutex) = 0;

 private:
  /// A plan that was followed, and what it was followed for.
  struct Followed {
    Plan plan;
    std::uint64_t limit_bytes = 0;
    std::uint64_t room_bytes = 0;
    std::uint64_t unpressed_resident_bytes = 0;
    Why why = Why::kBudget;
  };
  Followed followed() const;
  void return_to(const Followed& before);

  void make_staging();
  void make_loader();
  std::uint64_t home_room() const;
  ResidentUse use_of_residents(const Plan& wanted, std::uint64_t limit_bytes) const;

  /// Decides on frames, and makes the ring that they need.
  void choose_level(std::uint64_t limit_bytes);
  /// What a slot of the ring has to hold.
  std::uint64_t slot_bytes() const;
  /// The plan of what is not coded beside the ring. Raises BudgetError where it has no room.
  Plan plan_with_ring(std::uint64_t limit_bytes) const;
  std::uint64_t chosen_batch_bytes(std::uint64_t limit_bytes) const;
  /// Of the budget, beside the smallest plan and a ring for batches that are cut to that; nothing
  /// where they do not fit.
  std::optional<std::uint64_t> left_beside_ring(std::uint64_t limit_bytes,
                                                std::uint64_t cut_bytes) const;
  /// Raises ConfigError where a level is asked for that has no meaning here.
  bool may_encode();
  CompressionChoice chosen_level(std::uint64_t limit_bytes) const;
};

}  // namespace tensorstream
