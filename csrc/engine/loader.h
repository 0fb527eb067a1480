// Loader: brings streamed groups into the arena, ahead of their use or for whoever uses them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "device/device.h"
#include "engine/load.h"
#include "engine/read_ahead.h"
#include "engine/source_table.h"
#include "engine/streamed_group.h"
#include "memory/pool.h"
#include "memory/staging_ring.h"
#include "scheduler/order.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// Owns the arena, what is in it, and who leases it. Thread-safe. The device and the source table
/// outlive it.
class Loader {
 public:
  /// `groups` are the streamed ones, in their planned order.
  /// `staging` is null on a device that is the host; else it outlives the loader.
  Loader(Device& device, const SourceTable& sources, Block arena, StagingRing* staging,
         std::vector<StreamedGroup> groups, const EngineOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// As Engine::acquire, for streamed groups.
  bool acquire(GroupId group, Stream& stream);
  void release(GroupId group, Stream& stream);
  void release_all(Stream& stream) noexcept;
  /// Runs `change`, after which what the arena holds of `group` is out of date. Raises LeaseError
  /// while the group is leased.
  void change(GroupId group, const std::function<void()>& change);
  /// As change(), for bytes that work of `stream` has changed: later copies wait for that work.
  void note_write(GroupId group, Stream& stream);
  /// Where the group's tensors are while it is leased, in their order.
  std::vector<std::byte*> addresses(GroupId group) const;

  /// Adds what the loader counted.
  void add_to(Statistics& statistics) const;

 private:
  struct Slot;
  enum class Content { kEmpty, kQueued, kIssued, kReady, kFailed };

  /// A load that is ready to be enqueued, and what it has to wait for.
  struct Issue {
    std::shared_ptr<Load> load;  // shared by the slot and the stream's callbacks
    std::vector<const Slot*> overwritten;
    std::vector<const Slot*> stale;  // of these, those that held bytes
  };

  struct Slot {
    StreamedGroup group;
    std::unique_ptr<Event> loaded;
    std::unique_ptr<Event> last_use;
    std::unique_ptr<Event> written;       // the last write by the device to the group's source
    const Stream* last_stream = nullptr;  // compared, never used
    Content content = Content::kEmpty;
    std::uint32_t leases = 0;
    std::uint32_t waiting = 0;   // of the leases, those whose acquire() has not returned yet
    std::shared_ptr<Load> load;  // the one that `content` speaks of; shared with callbacks
    std::exception_ptr error;
  };

  void run(const std::stop_token& stop);
  std::optional<GroupId> next_demanded() TS_REQUIRES(mutex_);
  std::optional<GroupId> next_prefetch() const noexcept TS_REQUIRES(mutex_);
  std::optional<GroupId> find_prefetch() const TS_REQUIRES(mutex_);
  void wake_if_needed() TS_REQUIRES(mutex_);
  void demand(Slot& slot) TS_REQUIRES(mutex_);
  std::exception_ptr wait_until_usable(const Slot& slot, MutexLock& lock) TS_REQUIRES(mutex_);
  void load_apart(GroupId group) TS_REQUIRES(mutex_);
  void load_at_use(Slot& slot) TS_REQUIRES(mutex_);
  void read_ahead() TS_REQUIRES(mutex_);
  Issue issue(Slot& slot) TS_REQUIRES(mutex_);
  void evict_overlapping(const Slot& slot, Issue& issue) TS_REQUIRES(mutex_);
  void note_issued(Slot& slot, const std::shared_ptr<Load>& load) TS_REQUIRES(mutex_);
  void enqueue(Stream& stream, const Slot& slot, const Issue& issue);
  void enqueue_reads(Stream& stream, const std::shared_ptr<Load>& load);
  void enqueue_unlocked(Stream& stream, Slot& slot, const Issue& issue) TS_REQUIRES(mutex_);
  void finish(const std::shared_ptr<Load>& load) TS_EXCLUDES(mutex_);
  static void settle(Slot& slot, const Load& load, const std::exception_ptr& error);
  static bool on_device(const Slot& slot);
  std::byte* place(GroupId group) const;
  void finish_work(Stream& stream) const;
  static std::exception_ptr close_windows(Slot& slot) noexcept;
  bool leased_overlap(const Slot& slot) const TS_REQUIRES(mutex_);
  bool usable(const Slot& slot) const TS_REQUIRES(mutex_);
  std::exception_ptr hand_out(Slot& slot, Stream& stream, const Stream* last_stream) const;
  void count_acquire(const Slot& slot) TS_REQUIRES(mutex_);
  Slot& slot_of(GroupId group) const;

  // Constant after construction.
  Device& device_;
  const SourceTable& sources_;
  const EngineOptions options_;
  const Prefetch prefetch_;  // resolved
  StagingRing* const staging_;
  Block arena_;
  std::vector<std::unique_ptr<Slot>> slots_;  // by GroupId; null for groups that are not streamed.
                                              // What the slots hold is guarded by mutex_.
  std::vector<GroupId> streamed_;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  OrderTable order_ TS_GUARDED_BY(mutex_);
  std::deque<GroupId> demanded_ TS_GUARDED_BY(mutex_);
  std::uint32_t in_flight_ TS_GUARDED_BY(mutex_) = 0;
  bool dirty_ TS_GUARDED_BY(mutex_) = true;
  Statistics counted_ TS_GUARDED_BY(mutex_);
  Clock::time_point last_finish_ TS_GUARDED_BY(mutex_);

  // Own synchronisation.
  std::unique_ptr<ReadAhead> read_ahead_;  // null for other ways to prefetch
  ConditionVariable work_;
  ConditionVariable changed_;
  std::unique_ptr<Stream> copy_stream_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace tensorstream
