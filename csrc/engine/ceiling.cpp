#include "engine/ceiling.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// What torch asks for where it makes room for small tensors, and what is left for such requests.
constexpr std::uint64_t kSmallSegmentBytes = 2_MiB;
constexpr std::uint64_t kForSmallBytes = 16_MiB;
constexpr std::uint64_t kForSmallShare = 64;  // of the budget, at most
// As expected, after which an order that surprises is a new one.
constexpr std::uint64_t kForwardsToForget = 16;
// That are counted: then every 32nd such forward is looked at.
constexpr std::uint64_t kMostArrangements = 6;

}  // namespace

/// Memory that torch holds.
struct Ceiling::Segment {
  std::shared_ptr<Device> device;  // shared with the ceiling and its engine
  std::weak_ptr<Ceiling> from;
  Reservation room;
  bool is_beyond = false;                // the budget, which has no room for it
  std::unique_ptr<DeviceMemory> memory;  // goes first
};

/// What torch holds, and whom it asks. One for the process, as torch's callbacks are: they say
/// nothing but an address. Thread-safe.
class SegmentTable {
 public:
  static SegmentTable& of_process() {
    // Never destroyed: torch may give memory back while the process ends, and says not whose.
    // NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
    static auto* const table = new SegmentTable;
    return *table;
  }

  std::byte* add(std::unique_ptr<Ceiling::Segment> segment) {
    std::byte* const data = segment->memory->data();
    const MutexLock lock(mutex_);
    segments_.emplace(data, std::move(segment));
    return data;
  }

  std::unique_ptr<Ceiling::Segment> remove(std::byte* data) {
    const MutexLock lock(mutex_);
    const auto found = segments_.find(data);
    if (found == segments_.end()) return nullptr;
    std::unique_ptr<Ceiling::Segment> segment = std::move(found->second);
    segments_.erase(found);
    return segment;
  }

  void set_last(int device_index, const std::weak_ptr<Ceiling>& ceiling) {
    const MutexLock lock(mutex_);
    last_entered_[device_index] = ceiling;
  }
  void end_last(int device_index, const Ceiling* ceiling) {
    const MutexLock lock(mutex_);
    const auto found = last_entered_.find(device_index);
    if (found != last_entered_.end() && found->second.lock().get() == ceiling) {
      last_entered_.erase(found);
    }
  }
  std::shared_ptr<Ceiling> last(int device_index) {
    const MutexLock lock(mutex_);
    const auto found = last_entered_.find(device_index);
    return found == last_entered_.end() ? nullptr : found->second.lock();
  }

 private:
  Mutex mutex_;
  std::map<std::byte*, std::unique_ptr<Ceiling::Segment>> segments_ TS_GUARDED_BY(mutex_);
  std::map<int, std::weak_ptr<Ceiling>> last_entered_ TS_GUARDED_BY(mutex_);
};

/// That a thread is under a ceiling, until any thread says that it is not any more.
struct Ceiling::Entry {
  std::weak_ptr<Ceiling> ceiling;
  std::atomic<bool> is_over{false};

  /// Those of this thread, the innermost last: models run inside each other.
  static std::vector<std::shared_ptr<Entry>>& of_thread() {
    thread_local std::vector<std::shared_ptr<Entry>> stack;
    std::erase_if(stack, [](const std::shared_ptr<Entry>& entry) { return entry->is_over.load(); });
    return stack;
  }
};

Ceiling::Ceiling(std::shared_ptr<Device> device, std::shared_ptr<Budget> budget, Engine& engine,
                 const Options& options)
    : device_(std::move(device)), budget_(std::move(budget)), options_(options), engine_(&engine) {}

void Ceiling::enter() {
  auto entry = std::make_shared<Entry>();
  entry->ceiling = weak_from_this();
  Entry::of_thread().push_back(entry);
  {
    const MutexLock lock(counts_mutex_);
    entries_.push_back(std::move(entry));
  }
  SegmentTable::of_process().set_last(options_.device_index, weak_from_this());
}

void Ceiling::leave() noexcept {
  {
    const MutexLock lock(counts_mutex_);
    for (const std::shared_ptr<Entry>& entry : entries_) entry->is_over = true;
    entries_.clear();
  }
  SegmentTable::of_process().end_last(options_.device_index, this);
}

std::shared_ptr<Ceiling> Ceiling::current(int device_index) {
  const auto& stack = Entry::of_thread();
  for (auto it = stack.rbegin(); it != stack.rend(); ++it) {
    std::shared_ptr<Ceiling> ceiling = (*it)->ceiling.lock();
    if (ceiling && ceiling->options_.device_index == device_index) return ceiling;
  }
  return SegmentTable::of_process().last(device_index);
}

std::byte* Ceiling::allocate(std::uint64_t size_bytes) noexcept {
  try {
    std::unique_ptr<Segment> segment;
    {
      const MutexLock lock(mutex_);
      const bool again = withdraw_refusal_of(size_bytes);
      segment = take(size_bytes, again ? 0 : left_for_small(size_bytes));
    }
    if (segment == nullptr) return nullptr;
    const std::uint64_t given_bytes = segment->room.size_bytes();
    const bool is_beyond = segment->is_beyond;
    std::byte* const data = SegmentTable::of_process().add(std::move(segment));
    note_given(given_bytes, is_beyond);
    return data;
  } catch (const std::exception& error) {  // torch raises that it is out of memory
    log(LogLevel::kError, std::string("memory for torch could not be had: ") + error.what());
    return nullptr;
  }
}

std::unique_ptr<Ceiling::Segment> Ceiling::take(std::uint64_t size_bytes,
                                                std::uint64_t left_bytes) {
  auto segment = std::make_unique<Segment>();
  segment->device = device_;
  segment->from = weak_from_this();
  for (;;) {
    segment->is_beyond = false;
    std::optional<Reservation> room = reserve(size_bytes, left_bytes, segment->is_beyond);
    if (!room) return nullptr;
    segment->room = *std::move(room);
    try {
      segment->memory = device_->allocate(size_bytes);
      return segment;
    } catch (const BudgetError& error) {
      // Something else took what the budget counts on: residents make room on the device.
      segment->room.release();
      if (options_.pressure != Pressure::kStrict && give_way(size_bytes) > 0) continue;
      refuse(size_bytes, 0, error.what());
      return nullptr;
    }
  }
}

// Leaves `left_bytes` of the budget free.
std::optional<Reservation> Ceiling::reserve(std::uint64_t size_bytes, std::uint64_t left_bytes,
                                            bool& is_beyond) {
  const auto try_reserve = [&]() -> std::optional<Reservation> {
    if (left_bytes != 0 && budget_->free_bytes() < size_bytes + left_bytes) return std::nullopt;
    return budget_->try_reserve(size_bytes);
  };
  std::optional<Reservation> room = try_reserve();
  while (!room && options_.pressure != Pressure::kStrict) {
    const std::uint64_t free_bytes = budget_->free_bytes();
    const std::uint64_t needed_bytes = size_bytes + left_bytes;
    const std::uint64_t wanted = needed_bytes > free_bytes ? needed_bytes - free_bytes : 0;
    if (wanted != 0 && give_way(wanted) == 0) break;
    room = try_reserve();
  }
  if (room) return room;
  if (options_.pressure == Pressure::kLenient) room = budget_->try_reserve(size_bytes);
  if (room) return room;
  if (options_.pressure == Pressure::kLenient && device_->free_bytes() >= size_bytes) {
    if (!std::exchange(said_beyond_, true)) {
      warn_later("pressure='lenient': torch takes " + format_size(size_bytes) +
                 " beyond the budget of " + format_size(budget_->limit_bytes()) +
                 "; it is counted in the statistics, and not said again");
    }
    is_beyond = true;
    return budget_->reserve_beyond(size_bytes);
  }
  refuse(size_bytes, left_bytes, "");
  return std::nullopt;
}

std::uint64_t Ceiling::give_way(std::uint64_t wanted_bytes) {
  return engine_ == nullptr ? 0 : engine_->give_way(wanted_bytes);
}

void Ceiling::refuse(std::uint64_t size_bytes, std::uint64_t left_bytes, const std::string& why) {
  std::uint64_t torch_bytes = 0;
  last_refused_ = LastRefused{.size_bytes = size_bytes,
                              .needed_by_torch_bytes = needed_by_torch_bytes_,
                              .was_first = !refusal_};
  {
    const MutexLock lock(counts_mutex_);
    ++counts_.refusals;
    last_refused_->releases = releases_;
    torch_bytes = counts_.torch_bytes;
  }
  needed_by_torch_bytes_ = std::max(needed_by_torch_bytes_, torch_bytes + size_bytes + left_bytes);
  if (refusal_) return;
  const std::uint64_t used = budget_->used_bytes();
  const std::uint64_t needed = checked_add(used, size_bytes + left_bytes).value_or(used);
  std::string text = "CUDA out of memory: torch asks for " + format_size(size_bytes) + " more on " +
                     device_->name() + "; of the budget of " + format_size(budget_->limit_bytes()) +
                     ", " + format_size(torch_bytes) + " are torch's and " +
                     format_size(used - std::min(used, torch_bytes)) +
                     " are weights, and what calling code has room for, that cannot give way";
  text += why.empty() ? "; raise vram_budget to at least " + format_size(needed) +
                            ", or run a smaller batch or a shorter sequence"
                      : "; " + why;
  refusal_ = Refusal{std::move(text), needed, budget_->limit_bytes()};
}

// Where torch gave back what it had free and asks again, which it returns: only the last answer
// counts.
bool Ceiling::withdraw_refusal_of(std::uint64_t size_bytes) {
  const std::optional<LastRefused> last = std::exchange(last_refused_, std::nullopt);
  if (!last || last->size_bytes != size_bytes) return false;
  {
    const MutexLock lock(counts_mutex_);
    if (releases_ == last->releases) return false;
    --counts_.refusals;
  }
  needed_by_torch_bytes_ = last->needed_by_torch_bytes;
  if (last->was_first) refusal_.reset();
  return true;
}

void Ceiling::keep_for_small_segments() {
  const MutexLock lock(mutex_);
  keeps_for_small_ = true;
}

// Nothing where torch has no large blocks that it could give back for the request.
std::uint64_t Ceiling::left_for_small(std::uint64_t size_bytes) const {
  if (!keeps_for_small_ || size_bytes <= kSmallSegmentBytes) return 0;
  const MutexLock lock(counts_mutex_);
  if (large_bytes_ < size_bytes) return 0;
  return std::min(kForSmallBytes, budget_->limit_bytes() / kForSmallShare);
}

std::optional<Refusal> Ceiling::take_refusal() {
  const MutexLock lock(mutex_);
  last_refused_.reset();
  return std::exchange(refusal_, std::nullopt);
}

bool Ceiling::forward_ended() {
  bool is_to_trim = false;
  std::string warning;
  {
    const MutexLock lock(mutex_);
    is_to_trim = end_forward();
    note_lacking_places();
    warning.swap(warning_);
  }
  // Which may wait for the interpreter, whose holder may wait for this lock, or for torch's, which
  // is held for every request.
  if (!warning.empty()) log(LogLevel::kWarning, warning);
  return is_to_trim;
}

void Ceiling::warn_later(const std::string& text) {
  warning_ += (warning_.empty() ? "" : "; ") + text;
}

void Ceiling::note_lacking_places() {
  const bool lacks = engine_ != nullptr && engine_->lacks_places();
  if (!std::exchange(said_lacking_, lacks) && lacks) {
    warn_later(
        "the device had no memory for some weights when they were moved, which another process may "
        "hold: they are read from host memory or files at each use until it has some");
  }
}

bool Ceiling::end_forward() {
  last_refused_.reset();
  if (engine_ == nullptr) return false;
  const Statistics engine = engine_->counters();
  const std::uint64_t refusals = statistics().refusals;
  const bool refused_now = std::exchange(refusals_, refusals) != refusals;
  const bool refused = std::exchange(room_pending_, false) || refused_now;
  const bool gave_way = std::exchange(gave_way_, engine.gave_way) != engine.gave_way;
  const ReturnPolicy::Step step =
      policy_.forward_ended({.pressed = gave_way || refused,
                             .away = engine.given_way_bytes != 0 || engine.made_room_bytes != 0 ||
                                     engine_->lacks_places()});
  const bool may_exchange = exchange_.forward_ended(gave_way || refused);
  const std::uint64_t headroom_bytes = take_headroom();
  const bool order_is_new = is_order_new(engine.surprises);
  if (refused && order_is_new) order_pending_ = true;
  try {
    if (refused) {
      make_room_for_refused();
    } else if (gave_way) {
      engine_->adapt(headroom_bytes);
    } else if (order_is_new) {
      if (!engine_->adapt_to_order(headroom_bytes)) order_pending_ = true;
    } else if (may_exchange) {
      engine_->exchange_residents(headroom_bytes);
    }
    needed_by_torch_bytes_ = 0;
    if (step == ReturnPolicy::Step::kReturn) return_to_residents(headroom_bytes);
  } catch (const LeaseError&) {  // a backward of another thread reads a weight: later, then
    room_pending_ = refused;
  }
  return step == ReturnPolicy::Step::kTrim;
}

// Those that a plan gave a place come back to less than it spared: what torch keeps is never just
// what it was. What was spared before the first forward is for all that torch holds by now, so that
// what stays on the device is what plan_model() foresaw; a refusal shows that torch needs more.
void Ceiling::return_to_residents(std::uint64_t headroom_bytes) {
  const std::uint64_t spared = spared_bytes(budget_->limit_bytes());
  std::uint64_t left = spared / 2;
  if (engine_->counters().made_room_bytes != 0) {
    const CeilingStatistics counts = statistics();
    const std::uint64_t held = counts.refusals == 0 ? counts.torch_bytes : 0;
    left = std::max(left, spared - std::min(spared, held));
  }
  const std::uint64_t taken = engine_->take_back(headroom_bytes + left);
  if (taken == 0) policy_.nothing_returned();
  if (taken != 0) engine_->adapt(headroom_bytes);
}

// The same forward fits next time, if a smaller arena can make it fit.
void Ceiling::make_room_for_refused() {
  if (options_.pressure == Pressure::kStrict) return;
  const std::uint64_t has_bytes = std::min(needed_by_torch_bytes_, statistics().torch_bytes);
  const std::uint64_t wanted = needed_by_torch_bytes_ - has_bytes;
  // A forward that ended early had more to ask for.
  const bool made = engine_->make_room(wanted + spared_bytes(budget_->limit_bytes()));
  if (!made) static_cast<void>(engine_->make_room(wanted));
}

CeilingStatistics Ceiling::statistics() const {
  const MutexLock lock(counts_mutex_);
  return counts_;
}

void Ceiling::detach() {
  const MutexLock lock(mutex_);
  engine_ = nullptr;
}

// The first two times at once: what follows a pass shows in the second. Of a model whose order is
// another each time, less and less often.
bool Ceiling::is_order_new(std::uint64_t surprises) {
  const bool surprised = std::exchange(surprises_, surprises) != surprises;
  as_expected_ = surprised ? 0 : as_expected_ + 1;
  if (surprised) order_pending_ = true;
  if (as_expected_ == kForwardsToForget) arrangements_ = 0;
  const std::uint64_t wait = arrangements_ < 2 ? 1 : std::uint64_t{1} << (arrangements_ - 1);
  if (!order_pending_ || ++waited_ < wait) return false;
  order_pending_ = surprised;  // it is being learnt still
  waited_ = 0;
  arrangements_ = std::min(arrangements_ + 1, kMostArrangements);
  return true;
}

void Ceiling::note_given(std::uint64_t size_bytes, bool is_beyond) {
  const MutexLock lock(counts_mutex_);
  if (is_beyond) counts_.beyond_bytes += size_bytes;
  counts_.torch_bytes += size_bytes;
  if (size_bytes > kSmallSegmentBytes) large_bytes_ += size_bytes;
  counts_.peak_torch_bytes = std::max(counts_.peak_torch_bytes, counts_.torch_bytes);
  highest_bytes_ = std::max(highest_bytes_, counts_.torch_bytes);  // guard: room-for-the-peak
}

std::uint64_t Ceiling::take_headroom() {
  const MutexLock lock(counts_mutex_);
  const std::uint64_t highest_bytes = std::exchange(highest_bytes_, 0);
  return highest_bytes - std::min(highest_bytes, counts_.torch_bytes);
}

void Ceiling::note_released(std::uint64_t size_bytes) noexcept {
  const MutexLock lock(counts_mutex_);
  counts_.torch_bytes -= size_bytes;
  if (size_bytes > kSmallSegmentBytes) large_bytes_ -= size_bytes;
  ++releases_;
}

bool Ceiling::release(std::byte* data) noexcept {
  const std::unique_ptr<Segment> segment = SegmentTable::of_process().remove(data);
  if (segment == nullptr) return false;
  const std::uint64_t size_bytes = segment->room.size_bytes();
  segment->memory.reset();
  segment->room.release();
  if (const std::shared_ptr<Ceiling> ceiling = segment->from.lock()) {
    ceiling->note_released(size_bytes);
  }
  return true;
}

}  // namespace tensorstream

void* ts_torch_alloc(std::int64_t size_bytes, int device, void* /*stream*/) noexcept {
  const auto ceiling = tensorstream::Ceiling::current(device);
  if (ceiling == nullptr || size_bytes <= 0) return nullptr;
  return ceiling->allocate(static_cast<std::uint64_t>(size_bytes));
}

void ts_torch_free(void* data, std::int64_t /*size_bytes*/, int /*device*/,
                   void* /*stream*/) noexcept {
  if (data == nullptr) return;
  if (!tensorstream::Ceiling::release(static_cast<std::byte*>(data))) {
    tensorstream::log(tensorstream::LogLevel::kError,
                      "torch gives back memory that it was not given here");
  }
}
