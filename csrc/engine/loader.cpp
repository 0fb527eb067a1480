#include "engine/loader.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/units.h"
#include "platform/cuda_driver.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// Loads that the copy stream holds at once: one that runs and one that follows it without a gap.
// More would only delay a load that is asked for out of turn.
constexpr std::uint32_t kLoadsInFlight = 2;
// Bytes of the groups that come next which the disk reads ahead: enough to keep it busy while a
// group computes.
constexpr std::uint64_t kReadAheadBytes = 64_MiB;

// A GPU that lost its context runs nothing any more, callbacks neither: nothing is left to wait
// for. What else a driver refuses has no one to go to either.
template <typename Wait>
void wait_or_log(const Wait& wait) noexcept {
  try {
    wait();
  } catch (const Error& error) {
    log(LogLevel::kError, std::string("ending an engine: ") + error.what());
  }
}

}  // namespace

Loader::Loader(Pool& pool, const SourceTable& sources, StagingRing* staging, DecodeRing* ring,
               std::vector<LoadedGroup> groups, const EngineOptions& options)
    : pool_(pool),
      device_(pool.device()),
      sources_(sources),
      options_(options),
      prefetch_(resolve_prefetch(options.prefetch, compute_place(device_))),
      staging_(staging),
      staged_(staging_ != nullptr ? std::make_unique<StagedReader>(*staging_, ring) : nullptr),
      ring_(ring),
      order_({}),
      copy_stream_(device_.create_stream()),
      done_stream_(staging_ != nullptr ? device_.create_stream() : nullptr),
      decode_stream_(ring_ != nullptr ? device_.create_stream() : nullptr) {
  for (LoadedGroup& group : groups) {
    auto slot = std::make_unique<Slot>();
    slot->loaded = device_.create_event();
    slot->last_use = device_.create_event();
    slot->written = device_.create_event();
    slot->group = std::move(group);
    slots_.push_back(std::move(slot));
  }
}

Loader::~Loader() {
  if (thread_.joinable()) {
    thread_.request_stop();
    work_.ring();
    thread_.join();
  }
  if (staged_ != nullptr) staged_->drop();
  if (staging_ != nullptr) staging_->drain();  // it may know copies of the stream that goes
  // Callbacks of loads under way use this object, copies write into the places, and work that was
  // enqueued before a release still reads from them.
  wait_or_log([&] { drain_loads(); });
  wait_or_log([&] {
    if (done_stream_ != nullptr) done_stream_->synchronize();
  });
  for (const auto& slot : slots_) {
    wait_or_log([&] {
      slot->record_use();
      slot->last_use->synchronize();  // guard: wait-before-freeing
    });
  }
}

bool Loader::acquire(GroupId group, Stream& stream) {
  Slot& slot = slot_of(group);
  MutexLock lock(mutex_);
  wait_until([&]() TS_REQUIRES(mutex_) { return !arranging_; });
  if (slot.where == Where::kNowhere) return false;
  if (slot.settled) {
    ++slot.leases;
    ++counted_.acquires;
    ++counted_.hits;
    return true;
  }
  if (slot.leases == 0 && leased_overlap(slot)) return false;  // guard: leased-overlap
  const bool expected = observe(slot);
  ++slot.leases;  // from here on nothing evicts it
  ++slot.waiting;
  const Stream* const last_stream = slot.last_stream;
  const Clock::time_point start = Clock::now();
  try {
    if (last_stream != nullptr && last_stream != &stream) slot.record_use();
    demand(slot, expected);
  } catch (...) {  // no memory to ask for it, or a file that has changed
    --slot.waiting;
    --slot.leases;
    if (slot.leases == 0) static_cast<void>(slot.close_windows());
    throw;
  }
  std::exception_ptr error = wait_until_usable(slot);
  const bool arrived = slot.content == Content::kReady;
  lock.unlock();  // a host's wait blocks, and loads need the lock to finish
  if (!error) error = hand_out(slot, stream, last_stream, arrived);
  lock.lock();
  --slot.waiting;
  counted_.stalled_seconds += seconds_since(start);
  if (error) {
    --slot.leases;
    if (slot.leases == 0) static_cast<void>(slot.close_windows());
    std::rethrow_exception(error);
  }
  return true;
}

// What is there as expected frees no place, and what comes next was seen from the group before it,
// but where no more than that is looked at.
void Loader::demand(Slot& slot, bool expected) {
  start_threads();  // where that failed as places were found
  const bool missing = slot.content == Content::kEmpty || slot.content == Content::kFailed;
  if (prefetch_ == Prefetch::kReadAhead) {
    read_ahead();
    if (missing) load_at_use(slot);
    return;
  }
  if (missing) {
    demanded_.push_back(slot.group.id);
    slot.content = Content::kQueued;
  }
  if (missing || !expected || prefetch_ == Prefetch::kNext) wake_if_needed();
}

// On the threads that compute: they would wait for the load, and on a host a thread of the loader's
// takes a core from them. What is enqueued is done at once, and needs the lock to finish.
void Loader::load_at_use(Slot& slot) {
  enqueue_unlocked(device_.caller_stream(), slot, issue(slot));
}

// The slot is leased: nothing but the order of streams is still to be kept. What has `arrived` is
// there for all of them.
std::exception_ptr Loader::hand_out(Slot& slot, Stream& stream, const Stream* last_stream,
                                    bool arrived) {
  try {
    if (!arrived) stream.wait(*slot.loaded);  // guard: wait-for-copy
    if (last_stream != nullptr && last_stream != &stream) {
      stream.wait(*slot.last_use);  // guard: wait-between-streams
    }
    stream.set_access(slot.data, slot.size_bytes(), Access::kReadWrite);
  } catch (...) {  // acquire() raises it
    return std::current_exception();
  }
  return nullptr;
}

// False where another group was expected.
bool Loader::observe(const Slot& slot) {
  ++counted_.acquires;
  switch (slot.content) {
    case Content::kReady:
      ++counted_.hits;
      break;
    case Content::kQueued:
    case Content::kIssued:
      ++counted_.partial_hits;
      break;
    case Content::kEmpty:
    case Content::kFailed:
      ++counted_.misses;
      break;
  }
  bool expected = true;
  if (slot.leases == 0) expected = order_.observe(slot.group.id);  // guard: order-check
  return expected;
}

bool Loader::change(GroupId group, const std::function<void()>& change) {
  Slot& slot = slot_of(group);
  const MutexLock lock(mutex_);
  // Said before its load begins: what that brings stays, whatever its source becomes.
  if (slot.settled) return false;  // guard: replaced-resident
  if (slot.leases != 0) {          // guard: replaced-while-leased
    throw LeaseError("a weight of group " + std::to_string(group) +
                     " cannot be replaced while the group is in use");
  }
  // Before the change, which may fail midway.
  if (slot.on_device()) {            // guard: replaced-bytes
    slot.content = Content::kEmpty;  // a load under way goes on and is not looked at
    slot.load = nullptr;
  }
  slot.at_hand = false;
  change();
  if (slot.group.drop_replaced_windows(sources_)) {  // guard: window-of-source
    ++slot.place_number;
    ++place_moves_;
  }
  return true;
}

bool Loader::note_write(GroupId group, Stream& stream) {
  return change(group, [&] {
    Slot& slot = slot_of(group);
    stream.record(*slot.written);
    copy_stream_->wait(*slot.written);  // guard: wait-for-written-source
    if (ring_ != nullptr) ring_->wait(*slot.written);
  });
}

void Loader::run(const std::stop_token& stop) {
  MutexLock lock(mutex_);
  while (!stop.stop_requested()) {
    const std::uint64_t rung = work_.count();
    note_finished();
    if (!arranging_) decode_at_hand();
    if (const auto group = next(Way::kLink)) {
      load_apart(*group);
      changed_.ring();
      continue;
    }
    if (!arranging_ && stage_ahead()) continue;
    lock.unlock();
    if (!stop.stop_requested()) work_.wait(rung);
    lock.lock();
  }
}

std::optional<GroupId> Loader::next(Way way) {
  if (arranging_) return std::nullopt;
  const std::optional<GroupId> demanded = next_demanded(way);
  return demanded ? demanded : next_prefetch(way);
}

std::optional<GroupId> Loader::next_demanded(Way way) {
  std::erase_if(demanded_, [&](GroupId group) TS_REQUIRES(mutex_) {
    return slot_of(group).content != Content::kQueued;
  });
  const auto next = std::ranges::find_if(demanded_, [&](GroupId group) TS_REQUIRES(mutex_) {
    const Slot& slot = slot_of(group);
    return slot.way() == way && may_issue(slot);
  });
  if (next == demanded_.end()) return std::nullopt;
  const GroupId group = *next;
  demanded_.erase(next);
  return group;
}

bool Loader::may_issue(const Slot& slot) const {
  if (slot.way() == Way::kLink) return in_flight_ < kLoadsInFlight;
  if (is_being_filled(slot)) return false;  // guard: decode-beside-the-thread
  return true;
}

// What the thread enqueues without the lock writes to these slots.
bool Loader::is_being_filled(const Slot& slot) const {
  return std::ranges::any_of(enqueuing_, [&](const Slot* other) { return slot.overlaps(*other); });
}

// To look costs less than to wake a thread that finds nothing to do.
void Loader::wake_if_needed() {
  if (arranging_) return;
  decode_at_hand();
  if (in_flight_ >= kLoadsInFlight) return;  // whatever is asked for has to wait
  const bool asked_for = std::ranges::any_of(demanded_, [&](GroupId group) TS_REQUIRES(mutex_) {
    return slot_of(group).way() == Way::kLink;
  });
  if (asked_for || next_prefetch(Way::kLink)) work_.ring();
}

std::optional<GroupId> Loader::next_prefetch(Way way) const noexcept {
  try {
    return find_prefetch(way);
  } catch (...) {  // no memory to look ahead: the group is loaded when it is asked for
    return std::nullopt;
  }
}

std::optional<GroupId> Loader::find_prefetch(Way way) const {
  const bool loads_ahead = prefetch_ == Prefetch::kNext || prefetch_ == Prefetch::kAhead;
  if (!loads_ahead || (way == Way::kLink && in_flight_ >= kLoadsInFlight)) return std::nullopt;
  const std::size_t ahead = prefetch_ == Prefetch::kNext ? 1 : kLookAhead;
  std::vector<const Slot*> sooner;
  if (const auto again = order_.expected_again()) sooner.push_back(&slot_of(*again));
  OrderTable::Ahead upcoming(order_, kMostUsesAhead);
  std::size_t looked_at = 0;
  while (const std::optional<GroupId> group = looked_at < ahead ? upcoming.next() : std::nullopt) {
    const Slot& slot = slot_of(*group);
    if (slot.where == Where::kNowhere) continue;
    // Its use wakes nobody, and it is in nobody's way.
    if (slot.where == Where::kPrivate && slot.on_device()) continue;
    ++looked_at;
    // The link is not to idle while what needs none waits for its place.
    const bool passed_by = way == Way::kLink && slot.way() == Way::kDecode;
    if (slot.content == Content::kEmpty && !passed_by) {
      const auto needed = [&](const Slot* other) { return slot.overlaps(*other); };
      bool place_free = true;
      if (leased_overlap(slot)) place_free = false;                 // guard: prefetch-over-lease
      if (std::ranges::any_of(sooner, needed)) place_free = false;  // guard: needed-sooner
      if (!place_free) return std::nullopt;
      if (slot.way() == way && may_issue(slot)) return group;
    }
    if (slot.content == Content::kFailed) return std::nullopt;  // tried again when it is asked for
    sooner.push_back(&slot);
  }
  return std::nullopt;
}

// Without the lock, while a read is begun. True where there may be more to begin.
bool Loader::stage_ahead() {
  std::vector<StagedRead> next;
  try {
    next = next_disk_reads(std::nullopt);
  } catch (...) {  // no memory to look ahead: left to the load that needs it
    return false;
  }
  if (next.empty()) return false;
  mutex_.unlock();
  const bool begun = staged_->read_ahead(next);
  mutex_.lock();
  return begun;
}

// As much as the ring holds of what the next loads, but that of `issued`, read from files.
std::vector<StagedRead> Loader::next_disk_reads(std::optional<GroupId> issued) const {
  std::vector<StagedRead> next;
  if (staged_ == nullptr || (prefetch_ != Prefetch::kAhead && prefetch_ != Prefetch::kNext)) {
    return next;
  }
  OrderTable::Ahead upcoming(order_, std::min(kLookAhead, streamed_.size()));
  while (const std::optional<GroupId> group = upcoming.next()) {
    const Slot& slot = slot_of(*group);
    if (slot.where == Where::kNowhere || slot.on_device() || group == issued) continue;
    if (slot.content == Content::kFailed) break;
    const bool is_read =
        sources_.in_files(slot.group.tensors) && !sources_.in_pinned_files(slot.group.tensors);
    if (!is_read) continue;
    Load load(*group, Load::Reads::kStaged, staged_->frame_room_bytes());
    try {
      slot.place().add_to(load, slot.group, sources_, options_.piece_bytes);
    } catch (const Error&) {  // left to the load that needs it
      break;
    }
    const bool has_room = add_disk_reads(load, next);
    if (!has_room || prefetch_ == Prefetch::kNext) break;
  }
  return next;
}

bool Loader::add_disk_reads(const Load& load, std::vector<StagedRead>& next) const {
  if (staged_ == nullptr) return false;
  for (StagedRead& read : load.staged_reads(staged_->piece_bytes())) {
    if (read.reader->tier() == Tier::kDisk) next.push_back(std::move(read));
  }
  std::uint64_t ahead_bytes = 0;
  for (const StagedRead& read : next) ahead_bytes += read.moved_bytes();
  return ahead_bytes < staged_->ring_bytes();
}

// From the page cache to its place a group is copied by load_at_use().
void Loader::read_ahead() {
  std::uint64_t ahead_bytes = 0;
  OrderTable::Ahead upcoming(order_, std::min(kLookAhead, streamed_.size()));
  while (const std::optional<GroupId> group = upcoming.next()) {
    const Slot& slot = slot_of(*group);
    if (!slot.on_device()) read_ahead_->want(*group, slot.group.tensors);
    ahead_bytes += slot.size_bytes();
    if (ahead_bytes > kReadAheadBytes) return;
  }
}

Loader::Slot& Loader::slot_of(GroupId group) const { return *slots_.at(group); }

}  // namespace tensorstream
