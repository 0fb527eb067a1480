// The fake driver's queues and completions.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace tensorstream::fake_cuda {

/// Happens once.
class Completion {
 public:
  void set() {
    const std::lock_guard lock(mutex_);
    happened_ = true;
    changed_.notify_all();
  }
  bool happened() {
    const std::lock_guard lock(mutex_);
    return happened_;
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return happened_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool happened_ = false;
};

/// Work done in order on a thread of its own, all of it before the queue goes.
class Queue {
 public:
  Queue() : worker_([this] { work(); }) {}
  ~Queue() {
    close();
    worker_.join();
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  void submit(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
    changed_.notify_one();
  }
  /// What completes once all that was submitted before is done.
  std::shared_ptr<Completion> mark() {
    auto done = std::make_shared<Completion>();
    submit([done] { done->set(); });
    return done;
  }
  /// Does what is left, and ends.
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::function<void()> next;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
        if (queue_.empty()) return;
        next = std::move(queue_.front());
        queue_.pop_front();
      }
      next();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool closed_ = false;
  std::thread worker_;  // last: it uses the others
};

}  // namespace tensorstream::fake_cuda
