// Ceiling: what torch's allocator takes is charged to the budget of an engine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "device/device.h"
#include "memory/budget.h"
#include "scheduler/return_policy.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// What happens where torch asks for memory that the budget has no room for.
enum class Pressure {
  /// It is refused at once; residents never give way.
  kStrict,
  /// Residents give way, and come back.
  kAdaptive,
  /// As kAdaptive; then the budget is passed while the device has free memory.
  kLenient,
};

/// Why a request for memory was refused.
struct Refusal {
  std::string message;
  /// The smallest budget that would have done, where a budget would have.
  std::uint64_t needed_bytes = 0;
  std::uint64_t budget_bytes = 0;
};

/// Bytes that torch's allocator holds under a ceiling, and what became of its requests.
struct CeilingStatistics {
  std::uint64_t torch_bytes = 0;
  std::uint64_t peak_torch_bytes = 0;
  /// Of all that was ever given, what passed the budget.
  std::uint64_t beyond_bytes = 0;
  std::uint64_t refusals = 0;
};

/// One engine's ceiling over the memory that torch asks for in its forwards. Thread-safe. What it
/// gives out keeps the device and the budget alive, and outlives the ceiling.
class Ceiling : public std::enable_shared_from_this<Ceiling> {
 public:
  /// `device_index` is the number by which torch asks.
  struct Options {
    Pressure pressure = Pressure::kAdaptive;
    int device_index = 0;
  };
  /// The engine outlives the ceiling, or ends it by detach().
  Ceiling(std::shared_ptr<Device> device, std::shared_ptr<Budget> budget, Engine& engine,
          const Options& options);

  /// From here on requests of the calling thread for the device are this ceiling's; those of
  /// threads that entered none are the last entered one's.
  void enter();
  /// The end of it for every thread that is under it, from any thread.
  void leave() noexcept;

  /// Memory for torch, or null: the refusal is noted. Residents give way for it, so it may wait for
  /// work of the device. Never throws.
  std::byte* allocate(std::uint64_t size_bytes) noexcept;
  /// From here on torch splits no large block: it gives free ones back for another of them, but not
  /// for a small segment, for which some is left free.
  void keep_for_small_segments();
  /// Why the first request was refused since this was asked.
  std::optional<Refusal> take_refusal();
  /// To be called between forwards, after each: lets residents come back where it is time. True
  /// where torch's allocator is to give back what it only keeps.
  [[nodiscard]] bool forward_ended();
  CeilingStatistics statistics() const;
  /// The engine goes: nothing makes room from now on.
  void detach();

  /// For the memory that allocate() gave. False where it is none of it.
  static bool release(std::byte* data) noexcept;
  /// The ceiling that a request of the calling thread for a device is for; null where there is
  /// none.
  static std::shared_ptr<Ceiling> current(int device_index);

 private:
  struct Segment;
  struct Entry;
  /// The last request, where it was refused, and what was known before.
  struct LastRefused {
    std::uint64_t size_bytes = 0;
    std::uint64_t releases = 0;
    std::uint64_t needed_by_torch_bytes = 0;
    bool was_first = false;
  };
  friend class SegmentTable;

  std::unique_ptr<Segment> take(std::uint64_t size_bytes, std::uint64_t left_bytes)
      TS_REQUIRES(mutex_);
  std::optional<Reservation> reserve(std::uint64_t size_bytes, std::uint64_t left_bytes,
                                     bool& is_beyond) TS_REQUIRES(mutex_);
  std::uint64_t give_way(std::uint64_t wanted_bytes) TS_REQUIRES(mutex_);
  void refuse(std::uint64_t size_bytes, std::uint64_t left_bytes, const std::string& why)
      TS_REQUIRES(mutex_);
  bool withdraw_refusal_of(std::uint64_t size_bytes) TS_REQUIRES(mutex_);
  std::uint64_t left_for_small(std::uint64_t size_bytes) const TS_REQUIRES(mutex_);
  bool end_forward() TS_REQUIRES(mutex_);
  /// When a forward has ended.
  void warn_later(const std::string& text) TS_REQUIRES(mutex_);
  void note_lacking_places() TS_REQUIRES(mutex_);
  void make_room_for_refused() TS_REQUIRES(mutex_);
  void return_to_residents(std::uint64_t headroom_bytes) TS_REQUIRES(mutex_);
  void note_given(std::uint64_t size_bytes, bool is_beyond);
  void note_released(std::uint64_t size_bytes) noexcept;
  /// What torch held at its most after a request in a forward that is over, beyond what it holds
  /// now.
  std::uint64_t take_headroom();
  /// Whether a forward that is over learnt an order for which groups are to be arranged now.
  bool is_order_new(std::uint64_t surprises) TS_REQUIRES(mutex_);

  // Constant after construction.
  const std::shared_ptr<Device> device_;  // shared with the engine and with what was given out
  const std::shared_ptr<Budget> budget_;  // likewise
  const Options options_;

  // Guarded by mutex_.
  Mutex mutex_;
  Engine* engine_ TS_GUARDED_BY(mutex_);  // null once it is gone
  std::optional<Refusal> refusal_ TS_GUARDED_BY(mutex_);
  ReturnPolicy policy_ TS_GUARDED_BY(mutex_);
  ExchangePolicy exchange_ TS_GUARDED_BY(mutex_);
  std::uint64_t gave_way_ TS_GUARDED_BY(mutex_) = 0;     // of the engine, when a forward last ended
  std::uint64_t refusals_ TS_GUARDED_BY(mutex_) = 0;     // likewise
  bool room_pending_ TS_GUARDED_BY(mutex_) = false;      // is to be made for what was refused
  std::uint64_t surprises_ TS_GUARDED_BY(mutex_) = 0;    // of the engine, likewise
  std::uint64_t as_expected_ TS_GUARDED_BY(mutex_) = 0;  // forwards without, in a row
  bool order_pending_ TS_GUARDED_BY(mutex_) = false;     // groups are to be arranged for it
  std::uint64_t arrangements_ TS_GUARDED_BY(mutex_) = 0;           // for orders that came in a row
  std::uint64_t waited_ TS_GUARDED_BY(mutex_) = 0;                 // forwards, while it is pending
  std::uint64_t needed_by_torch_bytes_ TS_GUARDED_BY(mutex_) = 0;  // the largest since
  std::optional<LastRefused> last_refused_ TS_GUARDED_BY(mutex_);
  bool keeps_for_small_ TS_GUARDED_BY(mutex_) = false;
  bool said_beyond_ TS_GUARDED_BY(mutex_) = false;
  bool said_lacking_ TS_GUARDED_BY(mutex_) = false;
  std::string warning_ TS_GUARDED_BY(mutex_);  // to be said without the lock

  // Guarded by counts_mutex_, which is held for no call: releases come while mutex_ is held.
  mutable Mutex counts_mutex_;
  CeilingStatistics counts_ TS_GUARDED_BY(counts_mutex_);
  std::uint64_t releases_ TS_GUARDED_BY(counts_mutex_) = 0;
  std::uint64_t large_bytes_ TS_GUARDED_BY(counts_mutex_) = 0;    // of segments that are not small
  std::uint64_t highest_bytes_ TS_GUARDED_BY(counts_mutex_) = 0;  // since a forward last ended
  std::vector<std::shared_ptr<Entry>> entries_ TS_GUARDED_BY(counts_mutex_);  // with their threads
};

}  // namespace tensorstream

// What torch.cuda.memory.CUDAPluggableAllocator finds by name; `stream` is a CUstream, not used.
extern "C" {
__attribute__((visibility("default"))) void* ts_torch_alloc(std::int64_t size_bytes, int device,
                                                            void* stream) noexcept;
__attribute__((visibility("default"))) void ts_torch_free(void* data, std::int64_t size_bytes,
                                                          int device, void* stream) noexcept;
}
