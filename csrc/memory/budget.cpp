#include "memory/budget.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {

Reservation::Reservation(std::shared_ptr<Budget> budget, std::uint64_t size_bytes)
    : budget_(std::move(budget)), size_bytes_(size_bytes) {}

Reservation::Reservation(Reservation&& other) noexcept
    : budget_(std::move(other.budget_)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this == &other) return *this;
  release();
  budget_ = std::move(other.budget_);
  size_bytes_ = std::exchange(other.size_bytes_, 0);
  return *this;
}

Reservation::~Reservation() { release(); }

void Reservation::add(Reservation other) noexcept {
  if (budget_ == nullptr) budget_ = std::move(other.budget_);
  size_bytes_ += std::exchange(other.size_bytes_, 0);
}

void Reservation::release() noexcept {
  if (budget_ == nullptr) return;
  budget_->give_back(std::exchange(size_bytes_, 0));
  budget_.reset();
}

std::shared_ptr<Budget> Budget::create(std::uint64_t limit_bytes) {
  // make_shared needs a public constructor; only this function sees the one it is given.
  struct Constructible : Budget {
    explicit Constructible(std::uint64_t limit) : Budget(limit) {}
  };
  return std::make_shared<Constructible>(limit_bytes);
}

std::optional<Reservation> Budget::try_reserve(std::uint64_t size_bytes) {
  auto self = shared_from_this();
  const MutexLock lock(mutex_);
  if (size_bytes > left()) return std::nullopt;  // guard: budget-check
  return take(size_bytes, std::move(self));
}

Reservation Budget::reserve_beyond(std::uint64_t size_bytes) {
  auto self = shared_from_this();
  const MutexLock lock(mutex_);
  return take(size_bytes, std::move(self));
}

Reservation Budget::take(std::uint64_t size_bytes, std::shared_ptr<Budget> self) {
  used_bytes_ += size_bytes;
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  return {std::move(self), size_bytes};
}

// More than the limit is used where something was reserved beyond it.
std::uint64_t Budget::left() const {
  return limit_bytes_ > used_bytes_ ? limit_bytes_ - used_bytes_ : 0;
}

bool Budget::try_set_limit(std::uint64_t limit_bytes) {
  const MutexLock lock(mutex_);
  const bool is_lower = limit_bytes < limit_bytes_;
  if (is_lower && used_bytes_ > limit_bytes) return false;  // guard: limit-in-use
  limit_bytes_ = limit_bytes;
  return true;
}

Reservation Budget::reserve(std::uint64_t size_bytes, std::string_view purpose) {
  if (auto reservation = try_reserve(size_bytes)) return *std::move(reservation);
  const MutexLock lock(mutex_);
  const std::uint64_t needed =
      checked_add(used_bytes_, size_bytes).value_or(std::numeric_limits<std::uint64_t>::max());
  throw BudgetError("budget: " + std::string(purpose) + " needs " + format_size(size_bytes) + ", " +
                        format_size(left()) + " of " + format_size(limit_bytes_) +
                        " are free; raise the budget to at least " + format_size(needed),
                    needed, limit_bytes_);
}

std::uint64_t Budget::limit_bytes() const {
  const MutexLock lock(mutex_);
  return limit_bytes_;
}

std::uint64_t Budget::free_bytes() const {
  const MutexLock lock(mutex_);
  return left();
}

std::uint64_t Budget::used_bytes() const {
  const MutexLock lock(mutex_);
  return used_bytes_;
}

std::uint64_t Budget::peak_bytes() const {
  const MutexLock lock(mutex_);
  return peak_bytes_;
}

void Budget::give_back(std::uint64_t size_bytes) noexcept {
  const MutexLock lock(mutex_);
  used_bytes_ -= size_bytes;
}

}  // namespace tensorstream
