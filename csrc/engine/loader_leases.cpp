// How leases are given back, and what their last use leaves behind.
#include <algorithm>
#include <exception>
#include <string>

#include "base/log.h"
#include "engine/loader.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Giving leases back does not end for one that fails: others would stay for good.
void log_unreleased(const std::exception& error) {
  log(LogLevel::kError, std::string("giving back all leases failed: ") + error.what());
}

/// The default stream never is: beside another stream's capture, calls on it may fail.
bool is_captured(const Stream& stream) {
  if (stream.lasts()) return false;
  try {
    return stream.is_capturing();
  } catch (const CudaError&) {  // what follows fails as well, and says so
    return false;
  }
}

}  // namespace

void Loader::release(GroupId group, Stream& stream) {
  Slot& slot = slot_of(group);
  if (is_captured(stream)) {  // guard: released-in-capture
    throw UnsupportedError("group '" + std::to_string(group) +
                           "' is given back while its stream is captured into a CUDA graph, which "
                           "would keep the end of its use: it stays leased until it is given back "
                           "after the capture");
  }
  if (!slot.group.windows.empty()) finish_work(stream);  // guard: wait-for-window-reader
  const MutexLock lock(mutex_);
  std::exception_ptr error = end_use(slot, stream, false);
  if (slot.leases == 0) {  // guard: lease-check
    throw LeaseError("group '" + std::to_string(group) + "' is released but not leased");
  }
  --slot.leases;
  if (!slot.settled && slot.where != Where::kPrivate) {  // nothing waits for memory of its own
    wake_if_needed();
  }
  if (slot.leases == 0) unleased_.ring();
  if (!slot.settled && slot.leases == 0) {
    if (const std::exception_ptr changed = slot.close_windows()) error = changed;
  }
  if (error) std::rethrow_exception(error);
}

// Of one lease, or of all that are not waited for; others may come and go meanwhile. A device that
// does not record the end of a use is waited for instead: then the place is free all the same.
// Null, or why it did not.
std::exception_ptr Loader::end_use(Slot& slot, Stream& stream, bool all) {
  try {
    join_uses(slot, stream);
    if (slot.leases == 0) return nullptr;
    const std::uint32_t left = all ? slot.waiting : slot.leases - 1;
    if (!slot.settled && left == 0) {  // guard: access-rights
      stream.set_access(slot.data, slot.size_bytes(), Access::kNone);
    }
    note_use(slot, stream);
    return nullptr;
  } catch (...) {
    std::exception_ptr error = std::current_exception();
    wait_for_uses(slot, stream);
    return error;
  }
}

void Loader::wait_for_uses(Slot& slot, Stream& stream) {
  Stream* const unrecorded = slot.unrecorded;
  mutex_.unlock();
  std::exception_ptr error;
  try {
    stream.synchronize();
    if (unrecorded != nullptr) unrecorded->synchronize();
    slot.last_use->synchronize();
  } catch (...) {  // it stays leased
    error = std::current_exception();
  }
  mutex_.lock();
  if (error) std::rethrow_exception(error);
  slot.unrecorded = nullptr;
  slot.last_stream = &stream;
  slot.last_used = ++uses_;
}

// The last use's end is that of all before it: leases may overlap on several streams, and those of
// what is settled wait for nothing. A host's wait blocks, and what it waits for may need the lock.
void Loader::join_uses(Slot& slot, Stream& stream) {
  while (slot.last_stream != nullptr && slot.last_stream != &stream) {
    slot.record_use();
    const std::uint64_t joined = slot.last_used;
    mutex_.unlock();
    std::exception_ptr error;
    try {
      stream.wait(*slot.last_use);  // guard: wait-between-uses
    } catch (...) {
      error = std::current_exception();
    }
    mutex_.lock();
    if (error) std::rethrow_exception(error);
    if (slot.last_used == joined) slot.last_stream = &stream;
  }
}

// One may be given back, or leased, while another is joined: until none is left.
void Loader::join_leased(Stream& stream) {
  const auto is_apart = [&](const std::unique_ptr<Slot>& slot) {
    const bool apart = slot->last_stream != nullptr && slot->last_stream != &stream;
    return apart && slot->leases != slot->waiting;
  };
  for (auto slot = std::ranges::find_if(slots_, is_apart); slot != slots_.end();
       slot = std::ranges::find_if(slots_, is_apart)) {
    join_uses(**slot, stream);
  }
}

void Loader::note_use(Slot& slot, Stream& stream) {
  // Nothing waits for memory of its own, but what lets it go.
  slot.unrecorded = nullptr;
  if (slot.where == Where::kPrivate && !slot.settled && stream.lasts()) {
    slot.unrecorded = &stream;
  } else {
    stream.record(*slot.last_use);
  }
  slot.after_use = nullptr;  // guard: used-again
  slot.last_stream = &stream;
  slot.last_used = ++uses_;
}

void Loader::release_all(Stream& stream) noexcept {
  try {
    if (is_captured(stream)) {
      log(LogLevel::kError, "leases stay: their stream is captured into a CUDA graph");
      return;
    }
    if (prefetch_ == Prefetch::kReadAhead) finish_work(stream);
  } catch (const std::exception& error) {
    log_unreleased(error);
  }
  const MutexLock lock(mutex_);
  try {
    join_leased(stream);
  } catch (const std::exception& error) {
    log_unreleased(error);
  }
  for (const auto& slot : slots_) {  // in one hold of the lock: what was leased at one moment
    try {
      if (slot->leases != slot->waiting) release_for_all(*slot, stream);
    } catch (const std::exception& error) {
      log_unreleased(error);
    }
  }
  order_.restart();
  unleased_.ring();
  wake_if_needed();
}

void Loader::release_for_all(Slot& slot, Stream& stream) {
  const std::exception_ptr error = end_use(slot, stream, true);
  slot.leases = slot.waiting;  // who still waits for its lease gets it
  if (slot.leases == 0) static_cast<void>(slot.close_windows());
  if (error) std::rethrow_exception(error);
}

}  // namespace tensorstream
