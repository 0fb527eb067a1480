#include "memory/pinned_memory.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/log.h"
#include "memory/page_toucher.h"
#include "platform/numa.h"
#include "platform/process_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

void check_piece(std::uint64_t piece_bytes) {
  if (piece_bytes != 0 && piece_bytes % page_size_bytes() == 0) return;
  throw ConfigError("pinned memory cannot be registered in pieces of " +
                    std::to_string(piece_bytes) + " bytes; give a multiple of the page size, " +
                    std::to_string(page_size_bytes()));
}

/// Linux gives out memory that it does not have and ends a process that then uses it.
void check_available(std::uint64_t size_bytes, std::string_view purpose) {
  // Pinned memory cannot be swapped: some is left for everything else.
  const std::uint64_t now = available_ram_bytes();
  const std::uint64_t available = now < 2_GiB ? now / 2 : now - 1_GiB;
  if (size_bytes <= available) return;
  throw BudgetError("host memory: " + std::string(purpose) + " needs " + format_size(size_bytes) +
                        " of RAM, " + format_size(available) +
                        " are available to this process beside what it leaves to others; lower the "
                        "RAM budget, end what else uses "
                        "memory, or raise the container's limit",
                    size_bytes, available);
}

void log_refusal(const Device& device, std::string_view purpose, const PinnedMemory& memory) {
  log(LogLevel::kWarning,
      "device " + device.name() + ": " + format_size(memory.pinned_bytes()) + " of " +
          format_size(memory.size_bytes()) + " of host memory for " + std::string(purpose) +
          " are pinned, the system refuses more; copies of the rest are staged, which is slower");
}

}  // namespace

PinnedMemory::PinnedMemory(Device& device, std::uint64_t size_bytes, std::string_view purpose,
                           const PinnedMemoryOptions& options)
    : size_bytes_(size_bytes), piece_bytes_(options.piece_bytes) {
  check_piece(piece_bytes_);
  if (size_bytes == 0) return;
  charge(purpose, options);
  check_available(size_bytes, purpose);
  mapping_ = Mapping::anonymous(size_bytes);
  // A fork would make the pages copies-on-write, and the next write of this process would be to
  // pages that the device does not read; newer kernels copy all that is pinned instead.
  if (!device.host_accessible()) mapping_.keep_from_children();
  if (const auto node = device.numa_node()) prefer_numa_node(mapping_, *node);
  pin(device);
  if (pinned_bytes() < size_bytes_) log_refusal(device, purpose, *this);
}

PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept
    : size_bytes_(std::exchange(other.size_bytes_, 0)),
      piece_bytes_(other.piece_bytes_),
      reservation_(std::move(other.reservation_)),
      mapping_(std::move(other.mapping_)),
      registrations_(std::exchange(other.registrations_, {})) {}

PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  if (this == &other) return *this;
  // What was held goes in the order in which it is destroyed.
  registrations_ = std::exchange(other.registrations_, {});
  mapping_ = std::move(other.mapping_);
  reservation_ = std::move(other.reservation_);
  size_bytes_ = std::exchange(other.size_bytes_, 0);
  piece_bytes_ = other.piece_bytes_;
  return *this;
}

std::uint64_t PinnedMemory::pinned_bytes() const noexcept {
  return std::min(size_bytes_, registrations_.size() * piece_bytes_);
}

bool PinnedMemory::is_pinned(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept {
  return offset_bytes < pinned_bytes() && size_bytes <= piece_end(offset_bytes) - offset_bytes;
}

std::uint64_t PinnedMemory::piece_end(std::uint64_t offset_bytes) const noexcept {
  if (offset_bytes >= pinned_bytes()) return size_bytes_;
  return std::min((offset_bytes / piece_bytes_ + 1) * piece_bytes_, pinned_bytes());
}

std::byte* PinnedMemory::device_address(std::uint64_t offset_bytes) const noexcept {
  if (offset_bytes >= pinned_bytes()) return nullptr;
  return registrations_[offset_bytes / piece_bytes_]->device_address() +
         offset_bytes % piece_bytes_;
}

void PinnedMemory::charge(std::string_view purpose, const PinnedMemoryOptions& options) {
  if (options.budget == nullptr) return;
  constexpr std::uint64_t kLargest = std::numeric_limits<std::uint64_t>::max();
  const auto padded = checked_add(size_bytes_, page_size_bytes() - 1);
  reservation_ =
      options.budget->reserve(padded ? *padded & ~(page_size_bytes() - 1) : kLargest, purpose);
}

void PinnedMemory::pin(Device& device) {
  const std::span<std::byte> pages(mapping_.data(), mapping_.size_bytes());
  PageToucher toucher(pages);
  // The next pieces are touched while one is registered, which a driver does on one thread.
  for (std::uint64_t offset = 0; offset < pages.size();) {
    const std::uint64_t size = std::min(piece_bytes_, pages.size() - offset);
    toucher.wait_for(offset + size);
    auto registration = device.try_register_host(pages.subspan(offset, size));
    if (registration == nullptr) break;
    registrations_.push_back(std::move(registration));
    offset += size;
  }
  toucher.wait_for(pages.size());
}

}  // namespace tensorstream
