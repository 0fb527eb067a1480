#include "io/read_memory.h"

#include <utility>

namespace tensorstream {

ReadMemory::Slot::Slot(Slot&& other) noexcept
    : owner_(std::move(other.owner_)),
      own_(std::move(other.own_)),
      data_(std::exchange(other.data_, nullptr)) {}

ReadMemory::Slot& ReadMemory::Slot::operator=(Slot&& other) noexcept {
  std::swap(owner_, other.owner_);
  std::swap(own_, other.own_);
  std::swap(data_, other.data_);
  return *this;
}

ReadMemory::Slot::~Slot() {
  if (owner_ == nullptr || own_ != nullptr) return;
  const MutexLock lock(owner_->mutex_);
  owner_->free_.push_back(data_);  // there is room: it was taken from there
}

std::span<std::byte> ReadMemory::Slot::bytes(std::uint64_t shift_bytes,
                                             std::uint64_t size_bytes) const {
  return {data_ + shift_bytes, size_bytes};
}

std::shared_ptr<ReadMemory> ReadMemory::create() {
  return std::shared_ptr<ReadMemory>(new ReadMemory());
}

ReadMemory::ReadMemory()
    : stride_bytes_(align_up(kSlotBytes + page_size_bytes(), page_size_bytes())),
      memory_(Mapping::anonymous(kSlots * stride_bytes_)) {
  const MutexLock lock(mutex_);
  free_.reserve(kSlots);
  for (std::size_t i = kSlots; i > 0; --i)
    free_.push_back(memory_.data() + (i - 1) * stride_bytes_);
}

ReadMemory::Slot ReadMemory::take() {
  {
    const MutexLock lock(mutex_);
    if (!free_.empty()) {
      Slot slot(shared_from_this(), free_.back());
      free_.pop_back();
      return slot;
    }
  }
  Slot slot;
  slot.own_ = std::make_unique_for_overwrite<std::byte[]>(stride_bytes_ + page_size_bytes());
  const auto address = reinterpret_cast<std::uintptr_t>(slot.own_.get());
  slot.data_ = slot.own_.get() + (align_up(address, page_size_bytes()) - address);
  return slot;
}

}  // namespace tensorstream
