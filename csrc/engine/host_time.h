// HostTime: what the thread that runs passes takes for one, by the clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>

#include "base/clock.h"

namespace tensorstream {

/// Times passes on the thread that runs them: from begin() to end(), less what it was blocked in
/// acquire(). The device's work goes on beside it and is not in that. Not thread-safe.
class HostTime {
 public:
  /// What a loader has counted until now.
  struct Counted {
    std::uint64_t acquires = 0;
    double stalled_seconds = 0;
    std::uint64_t moved_bytes = 0;
  };

  /// A pass that never ended is forgotten.
  void begin(Clock::time_point now, const Counted& counted);
  /// Only a pass over all of `leased_groups` counts.
  void end(Clock::time_point now, const Counted& counted, std::size_t leased_groups);
  /// Leases are others from now on.
  void forget();

  /// The median of the last passes; nothing before some were run.
  std::optional<double> seconds() const;

 private:
  struct Begin {
    Clock::time_point time;
    Counted counted;
  };
  std::optional<Begin> begin_;
  std::deque<double> passes_;
};

}  // namespace tensorstream
