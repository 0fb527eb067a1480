#include "scheduler/residents.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

namespace tensorstream {
namespace {

// A little less, so that a sum of fractions that should be a half counts as one.
constexpr double kHalf = 0.5 - 1e-9;

// A set of residents that grows within a capacity.
class ResidentSet {
 public:
  ResidentSet(std::span<const std::uint64_t> sizes, std::uint64_t capacity)
      : sizes_(sizes), left_(capacity), resident_(sizes.size(), false) {}

  bool fits(std::size_t i) const { return !resident_[i] && sizes_[i] <= left_; }
  bool holds(std::size_t i) const { return resident_[i]; }
  std::uint64_t left() const { return left_; }

  void take(std::size_t i) {
    resident_[i] = true;
    left_ -= sizes_[i];
  }

  // Bresenham's line over bytes: takes `quota` of the `free_bytes` that are not resident yet,
  // evenly along the order. Starting halfway spreads the rounding.
  void take_evenly(std::uint64_t quota, std::uint64_t free_bytes) {
    if (free_bytes == 0) return;
    const double share = static_cast<double>(quota) / static_cast<double>(free_bytes);
    double owed = 0;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      if (resident_[i]) continue;
      const auto bytes = static_cast<double>(sizes_[i]);
      owed += share * bytes;
      if (owed < bytes * kHalf || !fits(i)) continue;
      owed -= bytes;
      take(i);
    }
  }

  // Takes the largest groups that still fit; of several equal ones the one that lies furthest from
  // other residents.
  void fill() {
    while (true) {
      const std::vector<std::uint64_t> distances = distances_to_residents();
      std::size_t best = sizes_.size();
      for (std::size_t i = 0; i < sizes_.size(); ++i) {
        if (!fits(i)) continue;
        if (best == sizes_.size() || sizes_[i] > sizes_[best] ||
            (sizes_[i] == sizes_[best] && distances[i] > distances[best])) {
          best = i;
        }
      }
      if (best == sizes_.size()) return;
      take(best);
    }
  }

  std::vector<bool> release() { return std::move(resident_); }

 private:
  // Streamed bytes between each group and the nearest resident, before or after it in the cycle.
  std::vector<std::uint64_t> distances_to_residents() const {
    const std::size_t count = sizes_.size();
    const std::uint64_t all = std::accumulate(sizes_.begin(), sizes_.end(), std::uint64_t{0});
    std::vector<std::uint64_t> distances(count, all);
    std::uint64_t run = all;
    for (std::size_t step = 0; step < 2 * count; ++step) {
      const std::size_t i = step % count;
      run = resident_[i] ? 0 : std::min(all, run + sizes_[i]);
      distances[i] = std::min(distances[i], run);
    }
    run = all;
    for (std::size_t step = 2 * count; step-- > 0;) {
      const std::size_t i = step % count;
      run = resident_[i] ? 0 : std::min(all, run + sizes_[i]);
      distances[i] = std::min(distances[i], run);
    }
    return distances;
  }

  std::span<const std::uint64_t> sizes_;
  std::uint64_t left_;
  std::vector<bool> resident_;
};

}  // namespace

std::vector<bool> choose_residents(std::span<const std::uint64_t> sizes,
                                   const ResidentChoice& choice) {
  ResidentSet forced(sizes, choice.capacity);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > choice.largest_streamed || sizes[i] == 0) forced.take(i);
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] <= choice.small_bytes && forced.fits(i)) forced.take(i);
  }
  std::uint64_t free_bytes = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (!forced.holds(i)) free_bytes += sizes[i];
  }
  // The bytes that can really be filled are known only after a first try; spreading exactly those
  // leaves no uneven rest.
  ResidentSet tried = forced;
  tried.take_evenly(std::min(forced.left(), free_bytes), free_bytes);
  tried.fill();
  ResidentSet spread = forced;
  spread.take_evenly(forced.left() - tried.left(), free_bytes);
  spread.fill();
  return spread.left() <= tried.left() ? spread.release() : tried.release();
}

}  // namespace tensorstream
