// Device: memory, streams and events behind one interface. Nothing above this layer knows which
// device it drives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "platform/mapping.h"

namespace tensorstream {

/// A point in a stream's order. Recorded by a stream, waited for by streams or by the host. An
/// event never recorded counts as complete. Raises CudaError as streams do.
class Event {
 public:
  virtual ~Event() = default;
  /// True once everything that its stream held before the last record is done.
  virtual bool complete() const = 0;
  /// Blocks the calling thread until complete().
  virtual void synchronize() const = 0;
};

/// An ordered queue of work. Each call enqueues and returns; work of two streams is ordered by
/// events alone. Raises CudaError where the device is a GPU and its driver refuses. Thread-safe.
class Stream {
 public:
  virtual ~Stream() = default;

  /// Copies host bytes to device memory. `source` stays valid and unchanged until the copy is done.
  /// It lies in one registered range, or in none: then the copy is right, but slower, and the call
  /// may block until the work enqueued before it is done, so that the caller holds no lock that a
  /// callback of this stream takes.
  virtual void copy_to_device(std::byte* target, const std::byte* source,
                              std::uint64_t size_bytes) = 0;
  /// Copies device memory to host bytes; as copy_to_device otherwise.
  virtual void copy_to_host(std::byte* target, const std::byte* source,
                            std::uint64_t size_bytes) = 0;
  /// Work after this call starts once what `event` last recorded is done.
  virtual void wait(const Event& event) = 0;
  /// `event` completes once all work enqueued before this call is done.
  virtual void record(Event& event) = 0;
  /// Runs `callback` on a thread of the device, in this stream's order. It must not throw, must not
  /// call the device, and must not wait for another stream: a device may run the callbacks of all
  /// streams one after another. A GPU that lost its context never runs it.
  virtual void run(std::function<void()> callback) = 0;
  /// Blocks the calling thread until all enqueued work is done.
  virtual void synchronize() = 0;
  /// True while work that is enqueued is not done, but recorded in a graph to be done later.
  virtual bool is_capturing() const { return false; }
  /// True where the stream is there for as long as its device: what it holds now can be recorded at
  /// any later time, too.
  virtual bool lasts() const noexcept { return false; }

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

/// Host memory that a device reads and writes without staging (pinned), for as long as this lives.
/// The memory stays mapped and the device outlives it; no copy of it is under way when it goes.
class HostRegistration {
 public:
  virtual ~HostRegistration() = default;
  /// Where kernels see the memory.
  virtual std::byte* device_address() const noexcept = 0;
};

/// One place where models compute. Thread-safe. Outlives every stream, event and memory that it
/// made. Shared from its own control block, so that bindings add none of their own language's.
class Device : public std::enable_shared_from_this<Device> {
 public:
  virtual ~Device() = default;

  /// "cpu", "cuda:0".
  virtual std::string name() const = 0;
  /// Bytes that the device has in all, for budgets given as a share.
  virtual std::uint64_t total_bytes() const = 0;
  /// Device memory that nobody, in any process, has taken now.
  virtual std::uint64_t free_bytes() const = 0;
  /// True where the host reads and writes the device's memory by its address.
  virtual bool host_accessible() const noexcept = 0;
  /// True where its streams' work may use host memory that it did not allocate: on a host that is
  /// not checking, which has to see every access.
  virtual bool uses_foreign_memory() const noexcept = 0;
  /// The NUMA node whose memory is near the device; nothing where none is nearer than another.
  virtual std::optional<int> numa_node() const = 0;

  /// `size_bytes` (more than 0) at a multiple of kGroupAlignment. Raises BudgetError when the
  /// device has no such memory.
  virtual std::unique_ptr<DeviceMemory> allocate(std::uint64_t size_bytes) = 0;
  /// A stream of its own.
  virtual std::unique_ptr<Stream> create_stream() = 0;
  /// The stream that calling code computes on where it says no other. On a host that is the calling
  /// thread itself: waiting blocks, recording completes at once.
  virtual Stream& caller_stream() = 0;
  /// The stream that the calling code computes on, by its native handle (a CUstream; 0 and 1 are
  /// caller_stream(), 2 the calling thread's own default stream, for that thread alone to use). The
  /// same object for the same stream, and another for each other stream that ever was, so that
  /// addresses may be compared; it lives as long as the device. A host has its caller_stream()
  /// only.
  virtual Stream& stream_of(std::uintptr_t native_handle) = 0;
  virtual std::unique_ptr<Event> create_event() = 0;
  /// Registers `bytes` (more than 0, none of their pages registered yet). Null where the system
  /// does not pin so much: copies are staged then.
  virtual std::unique_ptr<HostRegistration> try_register_host(std::span<std::byte> bytes) = 0;
  /// As try_register_host(), of memory that nobody writes to through its mapping: it is copied
  /// from. Null, too, where the device registers only what it may write to.
  virtual std::unique_ptr<HostRegistration> try_register_source(
      std::span<const std::byte> bytes) = 0;
};

}  // namespace tensorstream
