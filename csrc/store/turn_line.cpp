#include "store/turn_line.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "platform/threads.h"

namespace tensorstream {

void TurnLine::run(unsigned threads, const std::function<Work()>& make_work) {
  const std::uint64_t wanted = std::min<std::uint64_t>(std::max(threads, 1U), count_);
  if (wanted == 0) return;
  changed_ = std::vector<ConditionVariable>(wanted);
  std::vector<Work> works(wanted);  // one for each thread
  std::ranges::generate(works, make_work);
  {
    std::atomic<std::size_t> taken = 1;
    const auto helpers =
        start_helpers(wanted, "files are coded", [&] { work_through(works[taken.fetch_add(1)]); });
    work_through(works[0]);
  }
  const MutexLock lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

void TurnLine::in_turn(std::uint64_t number, const std::function<void()>& part) {
  {
    MutexLock lock(mutex_);
    while (turn_ != number && !failed_before(number)) changed_[number % changed_.size()].wait(lock);
    if (turn_ != number) throw Stopped();
  }
  part();
  const MutexLock lock(mutex_);
  ++turn_;
  changed_[turn_ % changed_.size()].notify_all();
}

void TurnLine::work_through(const Work& work) noexcept {
  while (const auto number = take()) {
    try {
      work(*number);
    } catch (const Stopped&) {
      return;
    } catch (...) {
      keep(*number, std::current_exception());
      return;
    }
  }
}

std::optional<std::uint64_t> TurnLine::take() {
  const MutexLock lock(mutex_);
  if (next_ == count_ || error_) return std::nullopt;
  return next_++;
}

void TurnLine::keep(std::uint64_t number, const std::exception_ptr& error) noexcept {
  const MutexLock lock(mutex_);
  if (!error_ || number < failed_) {
    error_ = error;
    failed_ = number;
  }
  for (ConditionVariable& changed : changed_) changed.notify_all();
}

}  // namespace tensorstream
