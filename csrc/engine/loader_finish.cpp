// What the callbacks of the loader's streams tell it, who waits for that, and what is counted of
// it.
#include <algorithm>
#include <utility>

#include "engine/loader.h"

namespace tensorstream {

// In a callback of a stream: whoever has the lock next notes it. The thread looks whether there is
// more to load now.
void Loader::finish(std::shared_ptr<Load> load) noexcept {
  load->end();  // readers end here, not under the lock
  finished_.add(std::move(load));
  changed_.ring();
  work_.ring();
}

void Loader::note_finished() {
  while (const std::shared_ptr<Load> load = finished_.take()) {
    load->has_ended = true;
    if (!load->being_enqueued) note_over(*load);
  }
}

// It has ended, and who enqueued it has noted what it brought: from here on nobody but who has the
// lock writes to its slot, whose place and frames may go. Only now it counts: what is counted is
// there.
void Loader::note_over(const Load& load) {
  Slot& slot = slot_of(load.group());
  if (!slot.settled) count_load(load, load.error() == nullptr);
  --slot.in_flight;
  --in_flight_;
  slot.note_end(load, load.error());
}

void Loader::count_load(const Load& load, bool done) {
  ++counted_.loads;
  // A load that was enqueued behind another began when that one was done.
  const Clock::time_point started = std::max(load.started(), last_finish_);
  last_finish_ = load.ended();
  if (!done) return;
  counted_.kept_decoded_bytes += load.kept_decoded_bytes();
  counted_.load_seconds += seconds_between(started, last_finish_);
  counted_.streamed_ram_bytes += load.ram_bytes();
  counted_.streamed_disk_bytes += load.disk_bytes();
  counted_.streamed_bytes += load.ram_bytes() + load.disk_bytes();
  counted_.decoded_bytes += load.decoded_bytes();
}

std::exception_ptr Loader::wait_until_usable(const Slot& slot) {
  try {
    wait_until(
        [&]() TS_REQUIRES(mutex_) { return slot.usable() || slot.content == Content::kFailed; });
  } catch (...) {  // acquire() raises it
    return std::current_exception();
  }
  return slot.content == Content::kFailed ? slot.error : nullptr;
}

// Without the lock meanwhile. A GPU that lost its context runs no callback any more, so that nobody
// would end this wait: it is asked from time to time.
void Loader::wait_until(const std::function<bool()>& done) {
  for (;;) {
    const std::uint64_t rung = changed_.count();
    note_finished();
    if (done()) return;
    if (!wait_for_change(rung)) check_health();
  }
}

// Without the lock. False where nothing changed for long.
bool Loader::wait_for_change(std::uint64_t rung) {
  mutex_.unlock();
  const bool changed = changed_.wait_for(rung, kHealthCheck);
  mutex_.lock();
  return changed;
}

// A context that is lost says so at each event.
void Loader::check_health() {
  mutex_.unlock();
  std::exception_ptr lost;
  try {
    if (!slots_.empty()) static_cast<void>(slots_.front()->loaded->complete());
  } catch (...) {
    lost = std::current_exception();
  }
  mutex_.lock();
  if (lost) std::rethrow_exception(lost);
}

void Loader::add_to(Statistics& statistics) {
  const MutexLock lock(mutex_);
  note_finished();
  statistics.held_bytes += held();
  statistics.peak_held_bytes += counted_.peak_held_bytes;
  statistics.gave_way += counted_.gave_way;
  for (const auto& slot : slots_) {
    if (slot->gave_way()) statistics.given_way_bytes += slot->size_bytes();
    if (slot->kept != nullptr) statistics.kept_bytes += slot->kept->size_bytes();
    if (slot->kept == nullptr) statistics.given_way_bytes += slot->kept_bytes;
  }
  statistics.acquires += counted_.acquires;
  statistics.hits += counted_.hits;
  statistics.partial_hits += counted_.partial_hits;
  statistics.misses += counted_.misses;
  statistics.surprises += counted_.surprises + order_.surprises();
  statistics.loads += counted_.loads;
  statistics.streamed_bytes += counted_.streamed_bytes;
  statistics.streamed_ram_bytes += counted_.streamed_ram_bytes;
  statistics.streamed_disk_bytes += counted_.streamed_disk_bytes;
  if (staged_ != nullptr) statistics.read_ahead_bytes += staged_->ahead_bytes();
  statistics.decoded_bytes += counted_.decoded_bytes;
  statistics.kept_decoded_bytes += counted_.kept_decoded_bytes;
  statistics.load_seconds += counted_.load_seconds;
  statistics.stalled_seconds += counted_.stalled_seconds;
}

HostTime::Counted Loader::counted() const {
  const MutexLock lock(mutex_);
  return {counted_.acquires, counted_.stalled_seconds, counted_.streamed_bytes};
}

std::size_t Loader::leased_groups() const {
  const MutexLock lock(mutex_);
  return streamed_.size();
}

}  // namespace tensorstream
