#include "engine/pass_period.h"

#include <utility>

namespace tensorstream {

void PassPeriod::begin(Clock::time_point now, std::uint64_t moved_bytes) {
  const std::uint64_t before = std::exchange(moved_bytes_, moved_bytes);
  if (begun_) last_ = Pass{seconds_between(*begun_, now), moved_bytes - before};
  begun_ = now;
}

}  // namespace tensorstream
