// ThreadTeam: a few threads that share pieces of work with whoever has some.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace tensorstream {

/// Threads that sleep between two uses, and are started at the first. Thread-safe; one use at a
/// time. In a forked child, or where the system has no threads left, callers work by themselves.
class ThreadTeam {
 public:
  /// Of `threads` beside the caller's; none where that is 0. In a forked child it is not destroyed:
  /// its threads, which that would wait for, are not there.
  static std::shared_ptr<ThreadTeam> create(std::size_t threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  /// Calls `work` with each number below `count`, on the calling thread and on others, and returns
  /// when all calls have. Raises what the call with the lowest number raised.
  void share(std::size_t count, const std::function<void(std::size_t)>& work);

 private:
  explicit ThreadTeam(std::size_t threads);

  /// One use. Guarded by mutex_, but for `work`.
  struct Job {
    std::size_t count = 0;
    const std::function<void(std::size_t)>* work = nullptr;
    std::size_t next = 0;
    std::size_t under_way = 0;
    std::size_t failed = 0;    // the lowest number whose call raised
    std::exception_ptr error;  // that
  };

  void start() noexcept TS_REQUIRES(mutex_);
  void run();
  void work_on(Job& job) TS_REQUIRES(mutex_);

  // Constant after construction.
  const std::size_t helpers_;
  const std::int64_t process_;

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable changed_;  // there is a job, or no more will come
  ConditionVariable done_;     // all calls of a job have returned
  Job* job_ TS_GUARDED_BY(mutex_) = nullptr;
  bool stopped_ TS_GUARDED_BY(mutex_) = false;
  bool started_ TS_GUARDED_BY(mutex_) = false;

  Mutex use_;  // held for one use
  std::vector<std::jthread> threads_;
};

}  // namespace tensorstream
