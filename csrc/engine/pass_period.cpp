#include "engine/pass_period.h"

#include <utility>

namespace tensorstream {

void PassPeriod::begin(Clock::time_point now, const HostTime::Counted& counted,
                       std::size_t leased_groups) {
  const HostTime::Counted before = std::exchange(counted_, counted);
  const std::optional<Clock::time_point> begun = std::exchange(begun_, now);
  last_.reset();
  if (!begun || counted.acquires - before.acquires < leased_groups) return;
  last_ = Pass{seconds_between(*begun, now), counted.moved_bytes - before.moved_bytes};
}

}  // namespace tensorstream
