// Bell: tells threads that something has changed. Whoever rings needs no lock of theirs.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/mutex.h"

namespace tensorstream {

/// Thread-safe. To wait for a condition: take count(), look, and where it does not hold wait() for
/// a ring since that count.
class Bell {
 public:
  /// How often it was rung.
  std::uint64_t count() const {
    const MutexLock lock(mutex_);
    return count_;
  }
  void ring() noexcept {
    const MutexLock lock(mutex_);
    ++count_;
    rung_.notify_all();
  }
  /// Blocks until it was rung since `count`.
  void wait(std::uint64_t count) {
    MutexLock lock(mutex_);
    while (count_ == count) rung_.wait(lock);
  }
  /// As wait(), for `longest` at most; false where that passed.
  bool wait_for(std::uint64_t count, std::chrono::milliseconds longest) {
    MutexLock lock(mutex_);
    while (count_ == count) {
      if (!rung_.wait_for(lock, longest)) return count_ != count;
    }
    return true;
  }

 private:
  mutable Mutex mutex_;
  ConditionVariable rung_;
  std::uint64_t count_ TS_GUARDED_BY(mutex_) = 0;
};

}  // namespace tensorstream
