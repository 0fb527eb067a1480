// FinishedLoads: from the callbacks of streams to the loader.
#pragma once

#include <memory>
#include <utility>

#include "base/mutex.h"
#include "engine/load.h"

namespace tensorstream {

/// Loads that are done, in that order. Its lock is held while nothing else is called: a driver may
/// hold up a thread until a callback has run, so that callbacks take no lock that may be held
/// while a driver is called. Thread-safe.
class FinishedLoads {
 public:
  /// Takes no memory: callbacks must not fail.
  void add(std::shared_ptr<Load> load) noexcept {
    const MutexLock lock(mutex_);
    Load* const added = load.get();
    (last_ == nullptr ? first_ : last_->next_finished) = std::move(load);
    last_ = added;
  }
  /// The first of them; null where there is none.
  std::shared_ptr<Load> take() noexcept {
    const MutexLock lock(mutex_);
    std::shared_ptr<Load> load = std::move(first_);
    if (load == nullptr) return nullptr;
    first_ = std::move(load->next_finished);
    if (first_ == nullptr) last_ = nullptr;
    return load;
  }

 private:
  Mutex mutex_;
  std::shared_ptr<Load> first_ TS_GUARDED_BY(mutex_);
  Load* last_ TS_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace tensorstream
