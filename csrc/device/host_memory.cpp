#include "device/host_memory.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr int kStale = 0xFF;

std::uint64_t address_of(const std::byte* data) { return std::bit_cast<std::uint64_t>(data); }

Mapping map_memory(std::uint64_t size_bytes, Checking checking) {
  if (checking == Checking::kOff) return Mapping::anonymous(size_bytes);
  const auto guarded = checked_add(size_bytes, 2 * page_size_bytes());
  if (!guarded) return Mapping::anonymous(size_bytes, HugePages::kNever);
  return Mapping::anonymous(align_up(size_bytes, page_size_bytes()) + page_size_bytes(),
                            HugePages::kNever);
}

class OwnedHostMemory final : public DeviceMemory {
 public:
  OwnedHostMemory(HostMemory& memory, std::shared_ptr<HostAllocation> allocation)
      : memory_(memory), allocation_(std::move(allocation)) {}
  ~OwnedHostMemory() override { memory_.forget(*allocation_); }
  OwnedHostMemory(const OwnedHostMemory&) = delete;
  OwnedHostMemory& operator=(const OwnedHostMemory&) = delete;

  std::byte* data() const noexcept override { return allocation_->data(); }
  std::uint64_t size_bytes() const noexcept override { return allocation_->size_bytes(); }

 private:
  HostMemory& memory_;
  std::shared_ptr<HostAllocation> allocation_;  // shared with access changes that are still queued
};

}  // namespace

HostAllocation::HostAllocation(std::uint64_t size_bytes, Checking checking)
    : size_bytes_(size_bytes), mapping_(map_memory(size_bytes, checking)) {
  if (checking == Checking::kOff) return;
  page_access_.assign(mapping_.size_bytes() / page_size_bytes(), Access::kNone);
  std::memset(mapping_.data(), kStale, mapping_.size_bytes());
  mapping_.set_access(0, mapping_.size_bytes(), Access::kNone);
}

void HostAllocation::set_access(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                                Access access) {
  if (size_bytes == 0) return;
  const MutexLock lock(mutex_);
  mapping_.set_access(offset_bytes, size_bytes, access);  // guard: access-rights
  const std::uint64_t last = (offset_bytes + size_bytes - 1) / page_size_bytes();
  for (std::uint64_t page = offset_bytes / page_size_bytes(); page <= last; ++page) {
    page_access_[page] = access;
  }
}

void HostAllocation::poison(std::uint64_t offset_bytes, std::uint64_t size_bytes) {
  if (size_bytes == 0) return;
  const MutexLock lock(mutex_);
  mapping_.set_access(offset_bytes, size_bytes, Access::kReadWrite);
  std::memset(mapping_.data() + offset_bytes, kStale, size_bytes);
  const std::uint64_t page_bytes = page_size_bytes();
  const std::uint64_t end = (offset_bytes + size_bytes - 1) / page_bytes + 1;
  for (std::uint64_t page = offset_bytes / page_bytes; page < end;) {
    std::uint64_t run = page;
    while (run < end && page_access_[run] == page_access_[page]) ++run;
    if (page_access_[page] == Access::kNone) {
      mapping_.set_access(page * page_bytes, (run - page) * page_bytes, Access::kNone);
    }
    page = run;
  }
}

std::unique_ptr<DeviceMemory> HostMemory::allocate(std::uint64_t size_bytes) {
  if (size_bytes == 0) throw ConfigError("device cpu: an allocation of 0 bytes was asked for");
  auto allocation = std::make_shared<HostAllocation>(size_bytes, checking_);
  {
    const MutexLock lock(mutex_);
    by_address_.emplace(address_of(allocation->data()), allocation);
  }
  return std::make_unique<OwnedHostMemory>(*this, std::move(allocation));
}

HostMemory::Range HostMemory::find(const std::byte* data, std::uint64_t size_bytes) const {
  const std::uint64_t address = address_of(data);
  const MutexLock lock(mutex_);
  auto after = by_address_.upper_bound(address);
  if (after != by_address_.begin()) {
    const auto& [begin, allocation] = *std::prev(after);
    const std::uint64_t offset = address - begin;
    const std::uint64_t whole = allocation->size_bytes();
    if (offset <= whole && size_bytes <= whole - offset) return {allocation, offset, size_bytes};
  }
  throw LeaseError("device cpu: " + std::to_string(size_bytes) + " bytes at address " +
                   std::to_string(address) + " are not inside one of its allocations");
}

void HostMemory::forget(const HostAllocation& allocation) noexcept {
  const MutexLock lock(mutex_);
  by_address_.erase(address_of(allocation.data()));
}

}  // namespace tensorstream
