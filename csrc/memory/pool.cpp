#include "memory/pool.h"

#include <bit>
#include <limits>
#include <string>
#include <utility>

#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {

Block& Block::operator=(Block&& other) noexcept {
  if (this == &other) return *this;
  // The old memory goes before its reservation, or the device would hold more than the budget says.
  memory_ = std::move(other.memory_);
  reservation_ = std::move(other.reservation_);
  return *this;
}

Pool::Pool(Device& device, std::shared_ptr<Budget> budget)
    : device_(device), budget_(std::move(budget)) {}

Block Pool::allocate(std::uint64_t size_bytes, std::uint64_t alignment, std::string_view purpose) {
  if (!is_power_of_two(alignment) || alignment > kGroupAlignment) {
    throw ConfigError("alignment " + std::to_string(alignment) + " of " + std::string(purpose) +
                      " cannot be had; give a power of two up to " +
                      std::to_string(kGroupAlignment));
  }
  Block block;
  if (size_bytes == 0) return block;
  const auto padded = checked_add(size_bytes, alignment - 1);
  if (!padded) {
    throw BudgetError("budget: " + std::string(purpose) + " needs " + std::to_string(size_bytes) +
                          " bytes, which no device has",
                      std::numeric_limits<std::uint64_t>::max(), budget_->limit_bytes());
  }
  const std::uint64_t rounded = *padded & ~(alignment - 1);
  block.reservation_ = budget_->reserve(rounded, purpose);
  block.memory_ = device_.allocate(rounded);
  if (std::bit_cast<std::uint64_t>(block.data()) % alignment != 0) {
    throw Error("device " + device_.name() + " gave memory for " + std::string(purpose) +
                " that is not aligned to " + std::to_string(alignment) + " bytes");
  }
  return block;
}

}  // namespace tensorstream
