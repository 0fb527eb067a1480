#include "engine/host_time.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace tensorstream {
namespace {

// A pass of another kind among them, or one that something held up, is not their median. The first
// ones compile kernels.
constexpr std::size_t kFewestPasses = 3;
constexpr std::size_t kMostPasses = 9;

}  // namespace

void HostTime::begin(Clock::time_point now, const Counted& counted) { begin_ = {now, counted}; }

void HostTime::end(Clock::time_point now, const Counted& counted, std::size_t leased_groups) {
  const std::optional<Begin> begun = std::exchange(begin_, std::nullopt);
  if (!begun || counted.acquires - begun->counted.acquires < leased_groups) return;
  const double stalled = counted.stalled_seconds - begun->counted.stalled_seconds;
  passes_.push_back(std::max(0.0, seconds_between(begun->time, now) - stalled));
  if (passes_.size() > kMostPasses) passes_.pop_front();
}

void HostTime::forget() {
  begin_.reset();
  passes_.clear();
}

std::optional<double> HostTime::seconds() const {
  if (passes_.size() < kFewestPasses) return std::nullopt;
  std::vector<double> sorted(passes_.begin(), passes_.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::ranges::nth_element(sorted, middle);
  return *middle;
}

}  // namespace tensorstream
