// Device: memory, streams and events behind one interface. Nothing above this layer knows which
// device it drives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "platform/mapping.h"

namespace tensorstream {

/// A point in a stream's order. Recorded by a stream, waited for by streams or by the host. An
/// event never recorded counts as complete.
class Event {
 public:
  virtual ~Event() = default;
  /// True once everything that its stream held before the last record is done.
  virtual bool complete() const = 0;
  /// Blocks the calling thread until complete().
  virtual void synchronize() const = 0;
};

/// An ordered queue of work. Each call enqueues and returns; work of two streams is ordered by
/// events alone. Thread-safe.
class Stream {
 public:
  virtual ~Stream() = default;

  /// Copies host bytes to device memory. `source` stays valid and unchanged until the copy is done.
  virtual void copy_to_device(std::byte* target, const std::byte* source,
                              std::uint64_t size_bytes) = 0;
  /// Work after this call starts once what `event` last recorded is done.
  virtual void wait(const Event& event) = 0;
  /// `event` completes once all work enqueued before this call is done.
  virtual void record(Event& event) = 0;
  /// Runs `callback` on a thread of the device, in this stream's order. It must not throw and must
  /// not call the device.
  virtual void run(std::function<void()> callback) = 0;
  /// Blocks the calling thread until all enqueued work is done.
  virtual void synchronize() = 0;

  /// In a checking device: gives or takes, in this stream's order, the right to touch [data, data +
  /// size_bytes) of the device's memory. A no-op elsewhere.
  virtual void set_access(std::byte* data, std::uint64_t size_bytes, Access access) = 0;
  /// In a checking device: makes the range unmistakably stale (0xFF), in this stream's order. A
  /// no-op elsewhere.
  virtual void poison(std::byte* data, std::uint64_t size_bytes) = 0;
};

/// Device memory, owned. The device outlives it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual std::byte* data() const noexcept = 0;
  virtual std::uint64_t size_bytes() const noexcept = 0;
};

/// One place where models compute. Thread-safe. Outlives every stream, event and memory that it
/// made.
class Device {
 public:
  virtual ~Device() = default;

  /// "cpu", "cuda:0".
  virtual std::string name() const = 0;
  /// Bytes that the device has in all, for budgets given as a share.
  virtual std::uint64_t total_bytes() const = 0;
  /// True where the host reads and writes the device's memory by its address.
  virtual bool host_accessible() const noexcept = 0;

  /// `size_bytes` (more than 0) at a multiple of kGroupAlignment. Raises BudgetError when the
  /// device has no such memory.
  virtual std::unique_ptr<DeviceMemory> allocate(std::uint64_t size_bytes) = 0;
  /// A stream of its own.
  virtual std::unique_ptr<Stream> create_stream() = 0;
  /// The stream that the calling code computes on. On a host that is the calling thread itself:
  /// waiting blocks, recording completes at once.
  virtual Stream& caller_stream() = 0;
  virtual std::unique_ptr<Event> create_event() = 0;
};

}  // namespace tensorstream
