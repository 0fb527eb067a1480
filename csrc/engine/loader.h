// Loader: brings groups into their places, ahead of their use or for whoever uses them, and moves
// those places as the budget asks.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

#include "base/bell.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "device/device.h"
#include "engine/decode_ring.h"
#include "engine/finished_loads.h"
#include "engine/host_time.h"
#include "engine/load.h"
#include "engine/loader_slot.h"
#include "engine/read_ahead.h"
#include "engine/source_table.h"
#include "engine/staged_reader.h"
#include "memory/pool.h"
#include "memory/staging_ring.h"
#include "scheduler/order.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// Owns the groups' places, what is in them, and who leases them. Thread-safe. The pool and the
/// source table outlive it.
///
/// A group that is resident has memory of its own. One that is *settled* stays there: its users
/// need no lease. One that is not is leased at each use as a streamed group is, and may give way.
class Loader {
 public:
  /// `groups` by GroupId. None has a place until arrange(). `staging` is null on a device that is
  /// the host, `ring` where no group is encoded; else they outlive the loader.
  Loader(Pool& pool, const SourceTable& sources, StagingRing* staging, DecodeRing* ring,
         std::vector<LoadedGroup> groups, const EngineOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Gives every group the place that `plan` says, and settles and loads residents: all of them, or
  /// with ResidentUse::kLeased those that are no Residency::kAny. Raises LeaseError while a group
  /// is leased, and changes nothing then; BudgetError where the device has no memory for some of
  /// it, and what a settled group's load raised. Groups that found no place are nowhere then, those
  /// that could not be read are not settled, and the rest works.
  void arrange(const Plan& plan, ResidentUse residents);
  /// Frees at least `wanted_bytes` of the budget, as far as there are residents that nobody leases
  /// and that may give way, or frames that stay on the device; those whose next use is furthest
  /// first. Returns what it freed. They are streamed from then on. Blocks until the work that uses
  /// them is done.
  std::uint64_t give_way(std::uint64_t wanted_bytes);
  /// Gives residents that gave way their own memory again while more than `spared_bytes` of the
  /// budget stay free; they are loaded at their next use. Returns what it took. Blocks as
  /// give_way() does.
  std::uint64_t take_back(std::uint64_t spared_bytes);
  /// Moves what lies in the arena to `offsets`, by GroupId. Does nothing while a group is leased.
  /// Blocks as give_way() does.
  void move_in_arena(std::span<const std::uint64_t> offsets);
  /// Raises LeaseError while a group is leased.
  void check_unleased() const;
  /// Waits until no group is leased, and calls `check` often meanwhile, without any lock. Raises
  /// what that raises, and LeaseError where one still is `until` then.
  void wait_unleased(Clock::time_point until, const std::function<void()>& check);
  /// Whether any group is leased.
  bool is_leased() const;
  /// Whether some group is in no place: the device had no memory when places were found.
  bool lacks_places() const;
  /// The groups that are used next, one after the other, by what was learnt: more of them than a
  /// pass and its backward use. None where they are a plain cycle, or leave some groups out.
  std::vector<GroupId> uses_beside_cycle() const;

  /// As Engine::acquire.
  bool acquire(GroupId group, Stream& stream);
  void release(GroupId group, Stream& stream);
  void release_all(Stream& stream) noexcept;
  /// Runs `change`, after which what the arena holds of `group` is out of date. False, and nothing
  /// is done, where the group is settled, or about to be: its place holds its bytes. Raises
  /// LeaseError while the group is leased.
  [[nodiscard]] bool change(GroupId group, const std::function<void()>& change);
  /// As change(), for bytes that work of `stream` has changed: later copies wait for that work.
  [[nodiscard]] bool note_write(GroupId group, Stream& stream);
  Where where(GroupId group) const;
  /// Where in the arena the group lies, or would.
  std::uint64_t arena_offset(GroupId group) const;
  std::uint64_t arena_bytes() const;
  /// Whether the group's frames stay on the device.
  bool keeps_frames(GroupId group) const;
  bool settled(GroupId group) const;
  /// Where the group's tensor of that position is; null where the group is nowhere or in its
  /// sources.
  std::byte* address(GroupId group, std::size_t position) const;
  /// Calls `read` with where the group's tensor of that position is: it stays there meanwhile.
  /// False, and nothing is read, where the group is not settled, or is in its sources. While groups
  /// find other places it waits: what is settled then has not its bytes yet.
  [[nodiscard]] bool read_settled(GroupId group, std::size_t position,
                                  const std::function<void(const std::byte*)>& read);
  /// Raised each time that the group's place moves.
  std::uint32_t place_number(GroupId group) const;
  std::uint64_t place_moves() const noexcept { return place_moves_; }
  /// Bytes of the budget that the groups' places take.
  std::uint64_t held_bytes() const;

  /// Adds what the loader counted.
  void add_to(Statistics& statistics);
  HostTime::Counted counted() const;
  /// How many groups a pass leases.
  std::size_t leased_groups() const;

 private:
  // How many loads ahead are looked at.
  static constexpr std::size_t kLookAhead = 64;
  // How many uses are gone through for them, those of residents included.
  static constexpr std::size_t kMostUsesAhead = 512;
  // How long a caller waits for a load before it asks whether its device still works.
  static constexpr std::chrono::milliseconds kHealthCheck{500};
  using Slot = LoaderSlot;
  using Content = Slot::Content;
  using Way = Slot::Way;

  /// A load that is ready to be enqueued, and what it has to wait for.
  struct Issue {
    std::shared_ptr<Load> load;  // shared by the slot and the stream's callbacks
    std::vector<Slot*> overwritten;
    std::vector<Slot*> stale;      // of these, those that held bytes
    std::vector<StagedRead> next;  // what comes after it, where it reads files
  };

  void run(const std::stop_token& stop);
  std::optional<GroupId> next(Way way) TS_REQUIRES(mutex_);
  std::optional<GroupId> next_demanded(Way way) TS_REQUIRES(mutex_);
  std::optional<GroupId> next_prefetch(Way way) const noexcept TS_REQUIRES(mutex_);
  std::optional<GroupId> find_prefetch(Way way) const TS_REQUIRES(mutex_);
  bool may_issue(const Slot& slot) const TS_REQUIRES(mutex_);
  bool is_being_filled(const Slot& slot) const TS_REQUIRES(mutex_);
  void wake_if_needed() TS_REQUIRES(mutex_);
  void demand(Slot& slot, bool expected) TS_REQUIRES(mutex_);
  void load_at_use(Slot& slot) TS_REQUIRES(mutex_);
  void read_ahead() TS_REQUIRES(mutex_);
  bool stage_ahead() TS_REQUIRES(mutex_);
  std::vector<StagedRead> next_disk_reads(std::optional<GroupId> issued) const TS_REQUIRES(mutex_);
  /// Adds to `next` what `load` reads of files; false where the ring holds no more.
  bool add_disk_reads(const Load& load, std::vector<StagedRead>& next) const;
  // In loader_loads.cpp.
  void load_apart(GroupId group) TS_REQUIRES(mutex_);
  void decode_at_hand() noexcept TS_REQUIRES(mutex_);
  void enqueue_locked(Slot& slot, const Issue& issue) TS_REQUIRES(mutex_);
  Issue issue(Slot& slot) TS_REQUIRES(mutex_);
  void evict_overlapping(const Slot& slot, Issue& issue) TS_REQUIRES(mutex_);
  void note_issued(Slot& slot, const std::shared_ptr<Load>& load) TS_REQUIRES(mutex_);
  Stream& stream_for(const Load& load) const;
  void take_turn(Stream& stream, Slot& slot, const Issue& issue);
  void enqueue(Stream& stream, Slot& slot, const Issue& issue);
  void enqueue_reads(Stream& stream, const Issue& issue);
  void note_enqueued(Slot& slot, const std::shared_ptr<Load>& load) TS_REQUIRES(mutex_);
  void enqueue_unlocked(Stream& stream, Slot& slot, const Issue& issue) TS_REQUIRES(mutex_);
  // In loader_finish.cpp.
  void finish(std::shared_ptr<Load> load) noexcept;
  void note_finished() TS_REQUIRES(mutex_);
  void note_over(const Load& load) TS_REQUIRES(mutex_);
  void count_load(const Load& load, bool done) TS_REQUIRES(mutex_);
  std::exception_ptr wait_until_usable(const Slot& slot) TS_REQUIRES(mutex_);
  bool wait_for_change(std::uint64_t rung) TS_REQUIRES(mutex_);
  void wait_until(const std::function<bool()>& done) TS_REQUIRES(mutex_);
  void check_health() TS_REQUIRES(mutex_);
  // In loader_places.cpp.
  void finish_work(Stream& stream) const;
  void find_windows() TS_REQUIRES(mutex_);
  void find_streamed() TS_REQUIRES(mutex_);
  void expect_order(std::vector<GroupId> streamed) TS_REQUIRES(mutex_);
  void start_threads() TS_REQUIRES(mutex_);
  bool leased_overlap(const Slot& slot) const TS_REQUIRES(mutex_);
  void check_unleased_locked() const TS_REQUIRES(mutex_);
  void note_held() TS_REQUIRES(mutex_);
  std::uint64_t held() const TS_REQUIRES(mutex_);
  void while_arranging(const std::function<void()>& move) TS_REQUIRES(mutex_);
  void quiesce() TS_REQUIRES(mutex_);
  void leave_places(const Plan& plan) TS_REQUIRES(mutex_);
  void take_places(const Plan& plan) TS_REQUIRES(mutex_);
  void take_arena(std::uint64_t size_bytes) TS_REQUIRES(mutex_);
  void place_required() TS_REQUIRES(mutex_);
  void place_resident(Slot& slot) TS_REQUIRES(mutex_);
  void place_in_arena(Slot& slot) TS_REQUIRES(mutex_);
  void keep_frames(Slot& slot) TS_REQUIRES(mutex_);
  Block let_frames_go(Slot& slot) TS_REQUIRES(mutex_);
  void drain_loads() const;
  void settle_residents() TS_REQUIRES(mutex_);
  void enqueue_settled(std::span<Issue> issues) TS_REQUIRES(mutex_);
  void look_ahead(Issue& issue, std::span<const Issue> later) const noexcept;
  void finish_settled(Slot& slot) TS_REQUIRES(mutex_);
  void make_spare_arena() TS_REQUIRES(mutex_);
  Slot* next_to_give_way() TS_REQUIRES(mutex_);
  bool may_give_way(const Slot& slot) const TS_REQUIRES(mutex_);
  bool has_room(std::uint64_t size_bytes, std::uint64_t spared_bytes) const;
  std::uint64_t try_take_back(Slot& slot, std::uint64_t spared_bytes) TS_REQUIRES(mutex_);
  std::uint64_t try_keep_frames(Slot& slot, std::uint64_t spared_bytes) TS_REQUIRES(mutex_);
  bool gives_leases(const Slot& slot) const TS_REQUIRES(mutex_);
  bool lies_in_sources(const Slot& slot) const TS_REQUIRES(mutex_);
  void move(Slot& slot, Where where, std::byte* data) TS_REQUIRES(mutex_);
  static std::exception_ptr hand_out(Slot& slot, Stream& stream, const Stream* last_stream,
                                     bool arrived);
  bool observe(const Slot& slot) TS_REQUIRES(mutex_);
  void join_uses(Slot& slot, Stream& stream) TS_REQUIRES(mutex_);
  void join_leased(Stream& stream) TS_REQUIRES(mutex_);
  void note_use(Slot& slot, Stream& stream) TS_REQUIRES(mutex_);
  std::exception_ptr end_use(Slot& slot, Stream& stream, bool all) TS_REQUIRES(mutex_);
  void wait_for_uses(Slot& slot, Stream& stream) TS_REQUIRES(mutex_);
  void release_for_all(Slot& slot, Stream& stream) TS_REQUIRES(mutex_);
  Slot& slot_of(GroupId group) const;

  // Constant after construction.
  Pool& pool_;
  Device& device_;
  const SourceTable& sources_;
  const EngineOptions options_;
  const Prefetch prefetch_;  // resolved
  StagingRing* const staging_;
  const std::unique_ptr<StagedReader> staged_;  // of staging_
  DecodeRing* const ring_;
  std::vector<std::unique_ptr<Slot>> slots_;  // by GroupId. What they hold is guarded by mutex_.

  // Guarded by mutex_.
  mutable Mutex mutex_;
  Block arena_ TS_GUARDED_BY(mutex_);
  std::uint64_t spare_arena_bytes_ TS_GUARDED_BY(mutex_) = 0;
  Block required_ TS_GUARDED_BY(mutex_);  // of all groups that every plan has resident
  // Groups that are leased at each use, in planned order, for predictions alone: none of them where
  // there was no memory to say which.
  std::vector<GroupId> streamed_ TS_GUARDED_BY(mutex_);
  ResidentUse residents_ TS_GUARDED_BY(mutex_) = ResidentUse::kSettled;
  bool arranging_ TS_GUARDED_BY(mutex_) = false;
  std::uint64_t uses_ TS_GUARDED_BY(mutex_) = 0;
  OrderTable order_ TS_GUARDED_BY(mutex_);
  std::deque<GroupId> demanded_ TS_GUARDED_BY(mutex_);
  std::uint32_t in_flight_ TS_GUARDED_BY(mutex_) = 0;  // loads that cross the link
  std::uint32_t readers_ TS_GUARDED_BY(mutex_) = 0;    // of places, without a lease
  std::size_t kept_groups_ TS_GUARDED_BY(mutex_) = 0;  // whose frames stay on the device
  // The slot that the thread enqueues into without the lock, and those that it overwrites.
  std::vector<const Slot*> enqueuing_ TS_GUARDED_BY(mutex_);
  std::size_t windows_ TS_GUARDED_BY(mutex_) = 0;
  Statistics counted_ TS_GUARDED_BY(mutex_);
  Clock::time_point last_finish_ TS_GUARDED_BY(mutex_);

  // Own synchronisation.
  std::atomic<std::uint64_t> place_moves_ = 0;
  Bell work_;      // for the thread
  Bell changed_;   // for callers
  Bell unleased_;  // for who waits for the end of leases
  FinishedLoads finished_;
  std::unique_ptr<Stream> copy_stream_;
  std::unique_ptr<Stream> done_stream_;  // of callbacks; null on a device that is the host
  // Of loads that cross no link, which wait for none that does. Null where there is no ring.
  std::unique_ptr<Stream> decode_stream_;
  std::unique_ptr<ReadAhead> read_ahead_ TS_GUARDED_BY(mutex_);  // for Prefetch::kReadAhead alone
  std::jthread thread_;                                          // last: it uses all of the above
};

}  // namespace tensorstream
