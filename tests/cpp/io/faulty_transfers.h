// Transfers that come short, are interrupted, fail or are slow on order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "io/transfer_queue.h"

namespace tensorstream {

struct TransferFaults {
  /// The most bytes that a transfer says it has read.
  std::int64_t longest_bytes = std::numeric_limits<std::int64_t>::max();
  /// Of so many transfers one is interrupted; 0 for none.
  int interrupted_every = 0;
  /// The error of such a transfer.
  int interruption = EINTR;
  /// A transfer that has this byte of its file fails with EIO.
  std::optional<std::uint64_t> bad_byte = std::nullopt;
  /// How late it is told that a transfer is done.
  std::chrono::microseconds delay{0};
  /// What it waits for besides, where that is valid.
  std::shared_future<void> told_after = {};
};

/// What was done, kept by the test.
struct TransferCounts {
  std::atomic<int> started = 0;
  std::atomic<int> under_way = 0;
  std::atomic<int> most_under_way = 0;
};

/// Hands transfers on to another queue, with faults. Thread-safe.
class FaultyTransfers final : public TransferQueue {
 public:
  FaultyTransfers(std::unique_ptr<TransferQueue> queue, const TransferFaults& faults,
                  std::shared_ptr<TransferCounts> counts)
      : queue_(std::move(queue)), faults_(faults), counts_(std::move(counts)) {}

  std::size_t depth() const noexcept override { return queue_->depth(); }
  void run(Done done) override {
    queue_->run([this, done = std::move(done)](Transfer& transfer, std::int64_t result) {
      if (faults_.told_after.valid()) faults_.told_after.wait();
      if (faults_.delay.count() > 0) std::this_thread::sleep_for(faults_.delay);
      --counts_->under_way;
      done(transfer, told_of(transfer, result));
    });
  }
  void stop() noexcept override { queue_->stop(); }
  void use_memory(std::span<std::byte> memory) noexcept override { queue_->use_memory(memory); }
  void start(std::span<Transfer* const> transfers) noexcept override {
    counts_->started += static_cast<int>(transfers.size());
    const int now = counts_->under_way += static_cast<int>(transfers.size());
    int most = counts_->most_under_way;
    while (most < now && !counts_->most_under_way.compare_exchange_weak(most, now)) {
    }
    queue_->start(transfers);
  }

 private:
  std::int64_t told_of(const Transfer& transfer, std::int64_t result) {
    if (faults_.interrupted_every > 0 && ++number_ % faults_.interrupted_every == 0) {
      return -faults_.interruption;
    }
    const auto& bad = faults_.bad_byte;
    if (bad && *bad >= transfer.offset_bytes &&
        *bad < transfer.offset_bytes + transfer.target.size()) {
      return -EIO;
    }
    return std::min(result, faults_.longest_bytes);
  }

  // Constant after construction.
  const std::unique_ptr<TransferQueue> queue_;
  const TransferFaults faults_;
  const std::shared_ptr<TransferCounts> counts_;  // shared with the test

  // Own synchronisation.
  std::atomic<int> number_ = 0;
};

}  // namespace tensorstream
