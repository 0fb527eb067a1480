// TransferQueue: single reads of the system's, several at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

namespace tensorstream {

/// One read that the system is asked for. It may come short, be interrupted or fail: whoever asked
/// looks at that.
struct Transfer {
  int descriptor = -1;
  std::uint64_t offset_bytes = 0;
  std::span<std::byte> target;
  /// Whether the target lies in memory that the queue was given by use_memory().
  bool in_memory = false;
};

/// Who makes transfers. Thread-safe.
class TransferQueue {
 public:
  /// Told of each transfer that was started, once, on a thread of the queue's or on the one that
  /// started it: the bytes that were read, or -errno. Throws nothing.
  using Done = std::function<void(Transfer& transfer, std::int64_t result)>;

  virtual ~TransferQueue() = default;

  /// How many transfers may be under way.
  virtual std::size_t depth() const noexcept = 0;
  /// Sets who is told; to be called once, before the first start(). `done` is called until stop().
  virtual void run(Done done) = 0;
  /// Ends the threads. No transfer is under way, and none is started again.
  virtual void stop() noexcept = 0;
  /// Memory that many transfers will have as their target, which outlives the queue. To be called
  /// once, before run().
  virtual void use_memory(std::span<std::byte> memory) noexcept = 0;
  /// Starts transfers, which stay where they are until they are done.
  virtual void start(std::span<Transfer* const> transfers) noexcept = 0;
};

/// Makes one transfer: the bytes that it read, or -errno. Thread-safe.
using MakeTransfer = std::function<std::int64_t(const Transfer& transfer)>;

/// Threads that call pread, or `make`, as many as may be under way. Raise UnsupportedError where
/// there are none to be had.
std::unique_ptr<TransferQueue> create_thread_transfers(std::size_t depth);
std::unique_ptr<TransferQueue> create_thread_transfers_by(std::size_t depth, MakeTransfer make);

/// The kernel's io_uring, and one thread that hears of what is done. Raises UnsupportedError.
std::unique_ptr<TransferQueue> create_ring_transfers(std::size_t depth);

}  // namespace tensorstream
