// HostDevice's streams: queues on threads, and the calling thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stop_token>
#include <thread>

#include "base/mutex.h"
#include "device/device.h"
#include "device/host_device.h"
#include "device/host_memory.h"

namespace tensorstream {

/// What a stream's work is, however it is ordered. Thread-safe where submit() is. The memory
/// outlives the stream.
class HostStream : public Stream {
 public:
  HostStream(HostMemory& memory, Checking checking) : memory_(memory), checking_(checking) {}

  void copy_to_device(std::byte* target, const std::byte* source,
                      std::uint64_t size_bytes) override;
  void copy_to_host(std::byte* target, const std::byte* source, std::uint64_t size_bytes) override;
  void wait(const Event& event) override;
  void record(Event& event) override;
  void run(std::function<void()> callback) override;
  void set_access(std::byte* data, std::uint64_t size_bytes, Access access) override;
  void poison(std::byte* data, std::uint64_t size_bytes) override;

 protected:
  using Work = std::function<void()>;
  /// Has `work` done after everything submitted before.
  virtual void submit(Work work) = 0;

 private:
  // Constant after construction.
  HostMemory& memory_;
  const Checking checking_;
};

/// A queue with a thread of its own. Drained when it goes.
class QueueStream final : public HostStream {
 public:
  QueueStream(HostMemory& memory, const HostDeviceOptions& options, std::uint64_t seed);
  ~QueueStream() override;
  QueueStream(const QueueStream&) = delete;
  QueueStream& operator=(const QueueStream&) = delete;

  void synchronize() override;

 protected:
  void submit(Work work) override;

 private:
  void work_until(const std::stop_token& stop);
  void delay();

  // Used by the worker alone.
  std::uint32_t longest_delay_us_;
  std::mt19937_64 random_;

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable changed_;
  std::deque<Work> queue_ TS_GUARDED_BY(mutex_);

  // Last: the thread stops before what it uses goes.
  std::jthread worker_;
};

/// The calling thread: work is done when it is submitted, and waiting blocks.
class CallerStream final : public HostStream {
 public:
  using HostStream::HostStream;
  void synchronize() override {}

 protected:
  void submit(Work work) override;
};

}  // namespace tensorstream
