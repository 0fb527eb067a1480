#include <cerrno>
#include <deque>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "io/transfer_queue.h"
#include "platform/file.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

class ThreadTransfers final : public TransferQueue {
 public:
  ThreadTransfers(std::size_t depth, MakeTransfer make) : depth_(depth), make_(std::move(make)) {}
  ThreadTransfers(const ThreadTransfers&) = delete;
  ThreadTransfers& operator=(const ThreadTransfers&) = delete;
  ~ThreadTransfers() override { stop(); }

  std::size_t depth() const noexcept override { return depth_; }

  void run(Done done) override {
    done_ = std::move(done);
    try {
      while (threads_.size() < depth_) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error& error) {
      if (threads_.empty()) {
        throw UnsupportedError(std::string("no thread to read files can be had: ") + error.what());
      }
      // Fewer threads make the same transfers.
    }
  }

  void stop() noexcept override {
    {
      const MutexLock lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    threads_.clear();
  }

  void use_memory(std::span<std::byte> /*memory*/) noexcept override {}

  void start(std::span<Transfer* const> transfers) noexcept override {
    const MutexLock lock(mutex_);
    for (Transfer* const transfer : transfers) {
      waiting_.push_back(transfer);
      changed_.notify_one();
    }
  }

 private:
  void work() {
    while (Transfer* const transfer = take()) {
      done_(*transfer, make_(*transfer));
    }
  }

  Transfer* take() {
    MutexLock lock(mutex_);
    while (waiting_.empty() && !stopped_) changed_.wait(lock);
    if (waiting_.empty()) return nullptr;
    Transfer* const transfer = waiting_.front();
    waiting_.pop_front();
    return transfer;
  }

  // Constant after run().
  const std::size_t depth_;
  const MakeTransfer make_;
  Done done_;

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable changed_;
  std::deque<Transfer*> waiting_ TS_GUARDED_BY(mutex_);
  bool stopped_ TS_GUARDED_BY(mutex_) = false;

  std::vector<std::jthread> threads_;  // last: they use all of the above
};

}  // namespace

std::unique_ptr<TransferQueue> create_thread_transfers(std::size_t depth) {
  return create_thread_transfers_by(depth, [](const Transfer& transfer) {
    return read_once(transfer.descriptor, transfer.offset_bytes, transfer.target);
  });
}

std::unique_ptr<TransferQueue> create_thread_transfers_by(std::size_t depth, MakeTransfer make) {
  return std::make_unique<ThreadTransfers>(depth, std::move(make));
}

}  // namespace tensorstream
