// PinnedMemory: host memory from which a device copies at the full rate of its link, and
// PinnedBuilder, which makes some of a size that is not known before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "device/device.h"
#include "memory/budget.h"
#include "platform/mapping.h"

namespace tensorstream {

class PageToucher;

struct PinnedMemoryOptions {
  /// Of host RAM; null where nothing is charged. Shared with all that takes from it.
  std::shared_ptr<Budget> budget = nullptr;
  /// Bytes of one registration, a multiple of the page size. Registered in pieces of 1 GiB, memory
  /// is pinned ten times faster than the driver allocates it.
  std::uint64_t piece_bytes = 1_GiB;
};

/// Host memory, zeroed, near the device, present, and registered with it piece by piece. A piece
/// that the system does not pin is an outcome: it and all that follows is pageable memory.
/// Move-only; one that was moved from is empty. The device outlives it, and no copy is under way
/// when it goes. Where the device is not the host, forked processes do not get the memory. Not
/// thread-safe to move; everything else may be called by all threads.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  /// `size_bytes` for `purpose`. Raises BudgetError where the budget or the RAM that is available
  /// to this process (cgroups included) has no room, ConfigError for a piece that cannot be had,
  /// and CudaError.
  PinnedMemory(Device& device, std::uint64_t size_bytes, std::string_view purpose,
               const PinnedMemoryOptions& options = {});
  PinnedMemory(PinnedMemory&& other) noexcept;
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory() = default;

  std::byte* data() const noexcept { return mapping_.data(); }
  std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  std::span<std::byte> bytes() const noexcept { return {data(), size_bytes_}; }

  /// The first so many bytes are pinned, the others pageable.
  std::uint64_t pinned_bytes() const noexcept;
  /// True where [offset_bytes, offset_bytes + size_bytes) lies in one registration: one copy of it
  /// is asynchronous, and device_address() of its beginning is good for all of it.
  bool is_pinned(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;
  /// Where a copy that begins at `offset_bytes` has to end: a device refuses one that goes on into
  /// another registration, or out of one.
  std::uint64_t piece_end(std::uint64_t offset_bytes) const noexcept;
  /// Where kernels see the byte at `offset_bytes`; null where it is not pinned. Pieces need not
  /// follow one another there: good up to piece_end().
  std::byte* device_address(std::uint64_t offset_bytes) const noexcept;

 private:
  friend class PinnedBuilder;

  void map(Device& device, std::uint64_t size_bytes);
  /// Each piece once `toucher` has touched it; null where all pages are present.
  void pin(Device& device, std::string_view purpose, PageToucher* toucher);

  std::uint64_t size_bytes_ = 0;
  std::uint64_t piece_bytes_ = 1_GiB;
  // Registrations end before the mapping, and that before the reservation: members are destroyed in
  // reverse order.
  Reservation reservation_;
  Mapping mapping_;
  std::vector<std::unique_ptr<HostRegistration>> registrations_;  // of the first pieces, in order
};

/// Makes pinned memory whose size shows only as it is filled. Its parts lie in huge pages where the
/// system gives them, however small each of them is. Before it is finished, none of it is pinned.
class PinnedBuilder {
 public:
  /// Parts of at most `most_bytes` in all, for `purpose`. Of that, only what is taken is memory,
  /// and charged to `budget`, where there is one. Raises BudgetError where the process has no
  /// addresses.
  PinnedBuilder(Device& device, std::uint64_t most_bytes, std::string purpose,
                std::shared_ptr<Budget> budget);

  /// What a part of so many bytes takes of most_bytes.
  static std::uint64_t room_for(std::uint64_t part_bytes) noexcept;
  /// The next part: zeroed, where finish() leaves it, from a multiple of kTensorAlignment on.
  /// Thread-safe. Raises BudgetError as PinnedMemory does, and where it is more than the rest.
  std::span<std::byte> take(std::uint64_t part_bytes);
  /// All parts, pinned in one registration. To be called once nobody takes or writes any more.
  /// Raises CudaError.
  PinnedMemory finish();

 private:
  // Constant after construction.
  Device& device_;
  const std::string purpose_;
  const std::shared_ptr<Budget> budget_;

  Mutex mutex_;
  PinnedMemory memory_ TS_GUARDED_BY(mutex_);
  std::uint64_t used_bytes_ TS_GUARDED_BY(mutex_) = 0;
};

}  // namespace tensorstream
