// Pool: device memory in pieces, every byte of it charged to a budget.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "device/device.h"
#include "memory/budget.h"

namespace tensorstream {

/// One piece of device memory and the reservation that pays for it. Move-only.
class Block {
 public:
  Block() = default;
  Block(Block&& other) noexcept = default;
  Block& operator=(Block&& other) noexcept;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() = default;

  std::byte* data() const noexcept { return memory_ ? memory_->data() : nullptr; }
  std::uint64_t size_bytes() const noexcept { return memory_ ? memory_->size_bytes() : 0; }

 private:
  friend class Pool;
  // The memory goes before the reservation: members are destroyed in reverse order.
  Reservation reservation_;
  std::unique_ptr<DeviceMemory> memory_;
};

/// Hands out blocks of one device under one budget. Thread-safe. The device outlives the pool and
/// its blocks.
class Pool {
 public:
  Pool(Device& device, std::shared_ptr<Budget> budget);

  /// A block of `size_bytes`, rounded up to `alignment` (a power of two up to kGroupAlignment), at
  /// a multiple of it. Size 0 gives an empty block. Raises BudgetError where the budget or the
  /// device has no room and ConfigError for an alignment that cannot be had; nothing is charged
  /// then.
  Block allocate(std::uint64_t size_bytes, std::uint64_t alignment, std::string_view purpose);

  Device& device() const noexcept { return device_; }
  Budget& budget() const noexcept { return *budget_; }

 private:
  // Constant after construction.
  Device& device_;
  std::shared_ptr<Budget> budget_;  // shared with the engines under the same budget
};

}  // namespace tensorstream
