// PassPeriod: how long the last pass took, from its beginning to that of the next, and what it
// moved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "engine/host_time.h"

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

  void begin(Clock::time_point now, const HostTime::Counted& counted, std::size_t leased_groups);
  /// The one that was before this, if it was a pass over all of `leased_groups`.
  std::optional<Pass> last() const { return last_; }

 private:
  std::optional<Clock::time_point> begun_;
  HostTime::Counted counted_;
  std::optional<Pass> last_;
};

}  // namespace tensorstream
