// ReadMemory: where what is read from a disk waits to be decoded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "platform/mapping.h"

namespace tensorstream {

/// Slots of memory in huge pages, which a disk fills with the fewest requests. Touched only where
/// it is used. Thread-safe. Shared by readers and the slots that are taken.
class ReadMemory : public std::enable_shared_from_this<ReadMemory> {
 public:
  /// The most that is read to one slot.
  static constexpr std::uint64_t kSlotBytes = 4_MiB + 64_KiB;
  static constexpr std::size_t kSlots = 16;

  /// Memory to read to, and to give back by being gone. Move-only.
  class Slot {
   public:
    Slot() = default;
    Slot(Slot&& other) noexcept;
    Slot& operator=(Slot&& other) noexcept;
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;
    ~Slot();

    /// `size_bytes` of it, kSlotBytes at most, that begin `shift_bytes` behind a page.
    std::span<std::byte> bytes(std::uint64_t shift_bytes, std::uint64_t size_bytes) const;

   private:
    friend class ReadMemory;
    Slot(std::shared_ptr<ReadMemory> owner, std::byte* data)
        : owner_(std::move(owner)), data_(data) {}

    std::shared_ptr<ReadMemory> owner_;  // shared with readers and other slots
    std::unique_ptr<std::byte[]> own_;   // where the owner had none left
    std::byte* data_ = nullptr;
  };

  /// Raises BudgetError where the system has no addresses left.
  static std::shared_ptr<ReadMemory> create();

  /// Memory of its own where all slots are taken.
  Slot take();

 private:
  ReadMemory();

  // Constant after construction.
  const std::uint64_t stride_bytes_;
  const Mapping memory_;

  // Guarded by mutex_.
  Mutex mutex_;
  std::vector<std::byte*> free_ TS_GUARDED_BY(mutex_);  // the one used last is last
};

}  // namespace tensorstream
