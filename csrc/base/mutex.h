// std::mutex and std::condition_variable with clang's thread-safety annotations.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define TS_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define TS_THREAD_ANNOTATION(x)
#endif

#define TS_CAPABILITY(x) TS_THREAD_ANNOTATION(capability(x))
#define TS_SCOPED_CAPABILITY TS_THREAD_ANNOTATION(scoped_lockable)
#define TS_GUARDED_BY(x) TS_THREAD_ANNOTATION(guarded_by(x))
#define TS_REQUIRES(...) TS_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define TS_EXCLUDES(...) TS_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define TS_ACQUIRE(...) TS_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define TS_RELEASE(...) TS_THREAD_ANNOTATION(release_capability(__VA_ARGS__))

namespace tensorstream {

class TS_CAPABILITY("mutex") Mutex {
 public:
  void lock() TS_ACQUIRE() { mutex_.lock(); }
  void unlock() TS_RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

/// Holds a Mutex for a scope; may be let go and taken again within it.
class TS_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) TS_ACQUIRE(mutex) : lock_(mutex) {}
  ~MutexLock() TS_RELEASE() = default;
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  void unlock() TS_RELEASE() { lock_.unlock(); }
  void lock() TS_ACQUIRE() { lock_.lock(); }

 private:
  friend class ConditionVariable;
  std::unique_lock<Mutex> lock_;
};

/// A condition variable for Mutex. Wait in a loop on the condition: wakes may be spurious.
class ConditionVariable {
 public:
  void wait(MutexLock& lock) { condition_.wait(lock.lock_); }
  /// As wait(), for `longest` at most; false where that passed.
  bool wait_for(MutexLock& lock, std::chrono::milliseconds longest) {
    return condition_.wait_for(lock.lock_, longest) == std::cv_status::no_timeout;
  }
  void notify_all() noexcept { condition_.notify_all(); }
  void notify_one() noexcept { condition_.notify_one(); }

 private:
  std::condition_variable_any condition_;
};

}  // namespace tensorstream
