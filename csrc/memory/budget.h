// Budget: a number of bytes that reservations share. Refusal is an outcome, not an exception.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "base/mutex.h"

namespace tensorstream {

class Budget;

/// Bytes taken from a Budget; gives them back when it goes. Move-only. Keeps its budget alive.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation();

  std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  /// Takes over the bytes of another of the same budget.
  void add(Reservation other) noexcept;
  /// Gives the bytes back now.
  void release() noexcept;

 private:
  friend class Budget;
  Reservation(std::shared_ptr<Budget> budget, std::uint64_t size_bytes);

  std::shared_ptr<Budget> budget_;  // shared by the budget's maker and every reservation
  std::uint64_t size_bytes_ = 0;
};

/// A ceiling in bytes. Several engines may share one. Thread-safe.
class Budget : public std::enable_shared_from_this<Budget> {
 public:
  static std::shared_ptr<Budget> create(std::uint64_t limit_bytes);

  /// Takes `size_bytes`, or nothing where that would pass the limit.
  [[nodiscard]] std::optional<Reservation> try_reserve(std::uint64_t size_bytes);
  /// Takes `size_bytes` even where that passes the limit.
  [[nodiscard]] Reservation reserve_beyond(std::uint64_t size_bytes);
  /// Takes `size_bytes` for `purpose`, or raises BudgetError with the numbers.
  [[nodiscard]] Reservation reserve(std::uint64_t size_bytes, std::string_view purpose);

  /// Moves the ceiling. False, and nothing changes, where it would come below what is in use; one
  /// that is passed already may be raised by less than that takes.
  [[nodiscard]] bool try_set_limit(std::uint64_t limit_bytes);

  std::uint64_t limit_bytes() const;
  std::uint64_t used_bytes() const;
  /// What is left of the limit.
  std::uint64_t free_bytes() const;
  /// The most that was ever reserved at once.
  std::uint64_t peak_bytes() const;

 private:
  friend class Reservation;
  explicit Budget(std::uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  void give_back(std::uint64_t size_bytes) noexcept;

  std::uint64_t left() const TS_REQUIRES(mutex_);
  Reservation take(std::uint64_t size_bytes, std::shared_ptr<Budget> self) TS_REQUIRES(mutex_);

  // Guarded by mutex_.
  mutable Mutex mutex_;
  std::uint64_t limit_bytes_ TS_GUARDED_BY(mutex_);
  std::uint64_t used_bytes_ TS_GUARDED_BY(mutex_) = 0;
  std::uint64_t peak_bytes_ TS_GUARDED_BY(mutex_) = 0;
};

}  // namespace tensorstream
