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

std::uint64_t whole_pages(std::uint64_t size_bytes) {
  const auto padded = checked_add(size_bytes, page_size_bytes() - 1);
  return padded ? *padded & ~(page_size_bytes() - 1) : std::numeric_limits<std::uint64_t>::max();
}

}  // namespace

PinnedMemory::PinnedMemory(Device& device, std::uint64_t size_bytes, std::string_view purpose,
                           const PinnedMemoryOptions& options)
    : size_bytes_(size_bytes), piece_bytes_(options.piece_bytes) {
  check_piece(piece_bytes_);
  if (size_bytes == 0) return;
  if (options.budget != nullptr) {
    reservation_ = options.budget->reserve(whole_pages(size_bytes), purpose);
  }
  check_available(size_bytes, purpose);
  map(device, size_bytes);
  PageToucher toucher({mapping_.data(), mapping_.size_bytes()});
  pin(device, purpose, &toucher);
}

void PinnedMemory::map(Device& device, std::uint64_t size_bytes) {
  mapping_ = Mapping::anonymous(size_bytes);
  // A fork would make the pages copies-on-write, and the next write of this process would be to
  // pages that the device does not read; newer kernels copy all that is pinned instead.
  if (!device.host_accessible()) mapping_.keep_from_children();
  if (const auto node = device.numa_node()) prefer_numa_node(mapping_, *node);
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

void PinnedMemory::pin(Device& device, std::string_view purpose, PageToucher* toucher) {
  const std::span<std::byte> pages(mapping_.data(), whole_pages(size_bytes_));
  const auto have_present = [&](std::uint64_t end) {
    if (toucher != nullptr) toucher->wait_for(end);
  };
  // The next pieces are touched while one is registered, which a driver does on one thread.
  for (std::uint64_t offset = 0; offset < pages.size();) {
    const std::uint64_t size = std::min(piece_bytes_, pages.size() - offset);
    have_present(offset + size);
    auto registration = device.try_register_host(pages.subspan(offset, size));
    if (registration == nullptr) break;
    registrations_.push_back(std::move(registration));
    offset += size;
  }
  have_present(pages.size());
  if (pinned_bytes() < size_bytes_) log_refusal(device, purpose, *this);
}

PinnedBuilder::PinnedBuilder(Device& device, std::uint64_t most_bytes, std::string purpose,
                             std::shared_ptr<Budget> budget)
    : device_(device), purpose_(std::move(purpose)), budget_(std::move(budget)) {
  if (most_bytes != 0) memory_.map(device, most_bytes);
}

std::uint64_t PinnedBuilder::room_for(std::uint64_t part_bytes) noexcept {
  return align_up(part_bytes, kTensorAlignment);
}

std::span<std::byte> PinnedBuilder::take(std::uint64_t part_bytes) {
  check_available(part_bytes, purpose_);
  const MutexLock lock(mutex_);
  const std::uint64_t left = memory_.mapping_.size_bytes() - used_bytes_;
  if (part_bytes > left) {
    throw BudgetError("host memory: " + purpose_ + " needs " + format_size(part_bytes) + " where " +
                          format_size(left) +
                          " were expected at most; it is larger than it was said to be",
                      part_bytes, left);
  }
  const std::uint64_t end = used_bytes_ + std::min(room_for(part_bytes), left);
  if (budget_ != nullptr) {
    const std::uint64_t new_bytes = whole_pages(end) - whole_pages(used_bytes_);
    memory_.reservation_.add(budget_->reserve(new_bytes, purpose_));
  }
  const std::uint64_t begin = std::exchange(used_bytes_, end);
  memory_.size_bytes_ = begin + part_bytes;
  return {memory_.mapping_.data() + begin, part_bytes};
}

PinnedMemory PinnedBuilder::finish() {
  const MutexLock lock(mutex_);
  if (memory_.size_bytes_ == 0) return {};
  memory_.mapping_.shrink(memory_.size_bytes_);
  memory_.piece_bytes_ = whole_pages(memory_.size_bytes_);
  memory_.pin(device_, purpose_, nullptr);
  used_bytes_ = 0;
  return std::move(memory_);
}

}  // namespace tensorstream
