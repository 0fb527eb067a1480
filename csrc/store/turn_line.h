// Work that threads do beside each other, parts of it in order.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <vector>

#include "base/mutex.h"

namespace tensorstream {

/// The numbers 0, 1, 2, ... that threads take, each with a turn in that order. Thread-safe.
class TurnLine {
 public:
  using Work = std::function<void(std::uint64_t number)>;

  explicit TurnLine(std::uint64_t count) : count_(count) {}

  /// Has every number worked on by up to `threads` threads, the calling one included; each has a
  /// Work of its own. Each number calls in_turn() once. Once all threads are done, raises the error
  /// of the lowest number that failed; those before it had their turns, those after it may not have
  /// been worked on.
  void run(unsigned threads, const std::function<Work()>& make_work);

  /// Calls `part` when every number before this one has had its turn.
  void in_turn(std::uint64_t number, const std::function<void()>& part);

 private:
  /// Ends the work on a number because another failed.
  struct Stopped {};

  void work_through(const Work& work) noexcept;
  std::optional<std::uint64_t> take();
  bool failed_before(std::uint64_t number) const TS_REQUIRES(mutex_) {
    return error_ && failed_ < number;
  }
  void keep(std::uint64_t number, const std::exception_ptr& error) noexcept;

  // Constant after construction.
  const std::uint64_t count_;

  // Guarded by mutex_.
  Mutex mutex_;
  /// The number n waits for its turn at n modulo their count: of the numbers from the turn on that
  /// threads have, at most one a thread, no two wait at the same, and a turn wakes the next alone.
  std::vector<ConditionVariable> changed_;
  std::uint64_t next_ TS_GUARDED_BY(mutex_) = 0;
  std::uint64_t turn_ TS_GUARDED_BY(mutex_) = 0;
  std::exception_ptr error_ TS_GUARDED_BY(mutex_);
  std::uint64_t failed_ TS_GUARDED_BY(mutex_) = 0;
};

}  // namespace tensorstream
