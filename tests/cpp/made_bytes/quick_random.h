// Random numbers that cost little: those of the standard library take most of a test's time where
// nothing is optimised.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace tensorstream {

/// SplitMix64: any two seeds give streams that have nothing to do with each other.
class QuickRandom {
 public:
  using result_type = std::uint64_t;
  explicit QuickRandom(std::uint64_t seed) : state_(seed) {}

  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return ~result_type{0}; }
  result_type operator()() {
    std::uint64_t mixed = state_ += 0x9E3779B97F4A7C15U;
    mixed = (mixed ^ (mixed >> 30U)) * 0xBF58476D1CE4E5B9U;
    mixed = (mixed ^ (mixed >> 27U)) * 0x94D049BB133111EBU;
    return mixed ^ (mixed >> 31U);
  }
  std::uint64_t below(std::uint64_t end) { return (*this)() % end; }
  /// From 0 to below 1.
  double share() { return static_cast<double>((*this)() >> 11U) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

/// Numbers of a normal distribution, two at a time (Box and Muller).
class QuickGaussian {
 public:
  QuickGaussian(std::uint64_t seed, double sigma) : random_(seed), sigma_(sigma) {}

  double operator()() {
    if (has_next_) {
      has_next_ = false;
      return next_;
    }
    const double radius = sigma_ * std::sqrt(-2 * std::log(1 - random_.share()));
    const double angle = 2 * std::numbers::pi * random_.share();
    next_ = radius * std::sin(angle);
    has_next_ = true;
    return radius * std::cos(angle);
  }

 private:
  QuickRandom random_;
  double sigma_;
  double next_ = 0;
  bool has_next_ = false;
};

}  // namespace tensorstream
