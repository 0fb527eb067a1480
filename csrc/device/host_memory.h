// HostDevice's memory: mappings whose access rights can be checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "device/device.h"
#include "device/host_device.h"
#include "platform/mapping.h"

namespace tensorstream {

/// One piece of host memory. In checking mode it starts stale (0xFF) and untouchable, and an
/// untouchable page follows it. Thread-safe.
class HostAllocation {
 public:
  HostAllocation(std::uint64_t size_bytes, Checking checking);

  std::byte* data() const noexcept { return mapping_.data(); }
  std::uint64_t size_bytes() const noexcept { return size_bytes_; }

  /// Gives or takes the right to touch the pages of the range. Raises Error.
  void set_access(std::uint64_t offset_bytes, std::uint64_t size_bytes, Access access);
  /// Writes 0xFF over the range and leaves the rights of its pages as they were. Raises Error.
  void poison(std::uint64_t offset_bytes, std::uint64_t size_bytes);

 private:
  // Constant after construction.
  std::uint64_t size_bytes_;
  Mapping mapping_;

  // Guarded by mutex_.
  Mutex mutex_;
  std::vector<Access> page_access_ TS_GUARDED_BY(mutex_);
};

/// The live allocations of one device, by address. Thread-safe.
class HostMemory {
 public:
  explicit HostMemory(Checking checking) : checking_(checking) {}

  /// The registry outlives the memory.
  std::unique_ptr<DeviceMemory> allocate(std::uint64_t size_bytes);

  /// A range inside one allocation, which it keeps alive.
  struct Range {
    std::shared_ptr<HostAllocation> allocation;  // shared by its DeviceMemory and queued work
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
  };
  /// Raises LeaseError where [data, data + size_bytes) is not inside one allocation.
  Range find(const std::byte* data, std::uint64_t size_bytes) const;
  void forget(const HostAllocation& allocation) noexcept;

 private:
  // Constant after construction.
  const Checking checking_;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<HostAllocation>> by_address_ TS_GUARDED_BY(mutex_);
};

}  // namespace tensorstream
