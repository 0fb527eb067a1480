// PassPeriod: how long the last pass took, from its beginning to that of the next, and what it
// moved.
#pragma once

#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace tensorstream {

/// On a device that works beside the host, the end of a pass says little: whoever runs passes in a
/// row waits for one before the next. What else the caller does between two counts too. Not
/// thread-safe.
class PassPeriod {
 public:
  struct Pass {
    double seconds = 0;
    std::uint64_t moved_bytes = 0;
  };

  /// A pass begins; `moved_bytes` were moved until now.
  void begin(Clock::time_point now, std::uint64_t moved_bytes);
  /// The last one after which another began.
  std::optional<Pass> last() const { return last_; }

 private:
  std::optional<Clock::time_point> begun_;
  std::uint64_t moved_bytes_ = 0;
  std::optional<Pass> last_;
};

}  // namespace tensorstream
