#include "scheduler/pass_time.h"

#include <algorithm>
#include <cstddef>

namespace tensorstream {
namespace {

// The first pass fills the pipeline and is left out. Where the period spans several passes, their
// mean is the steady state.
constexpr int kMeasuredPasses = 3;

}  // namespace

double decode_seconds(const PassStep& step, const Rates& rates) {
  if (!step.decoded()) return 0;
  const double late = step.kept && step.sharing_distance == 1 ? kLateDecodeSeconds : 0;
  return static_cast<double>(step.size_bytes) / rates.decode_bytes_per_second +
         kDecodeOverheadSeconds + late;
}

double pass_seconds(std::span<const PassStep> steps, const Rates& rates) {
  double all_bytes = 0;
  for (const PassStep& step : steps) all_bytes += static_cast<double>(step.size_bytes);
  const double compute_per_byte = all_bytes > 0 ? rates.compute_seconds / all_bytes : 0;
  const double ahead = static_cast<double>(rates.disk_ahead_bytes) / rates.disk_bytes_per_second;
  double disk_free = 0;
  double link_free = 0;
  double compute_free = 0;
  double first_pass_end = 0;
  std::vector<double> use_ends;
  for (int pass = 0; pass <= kMeasuredPasses; ++pass) {
    for (const PassStep& step : steps) {
      const auto bytes = static_cast<double>(step.size_bytes);
      if (step.streamed) {
        double start = rates.loading == Loading::kAtUse ? compute_free : link_free;
        if (step.sharing_distance <= use_ends.size()) {
          start = std::max(start, use_ends[use_ends.size() - step.sharing_distance]);
        }
        link_free = start + static_cast<double>(step.link_bytes()) / rates.link_bytes_per_second;
        if (step.from_disk) {
          disk_free = std::max(disk_free, start - ahead) + bytes / rates.disk_bytes_per_second;
          link_free = std::max(link_free, disk_free);
        }
        compute_free = std::max(compute_free, link_free);
      }
      compute_free += decode_seconds(step, rates) + bytes * compute_per_byte;
      if (step.streamed || step.kept) use_ends.push_back(compute_free);
    }
    if (pass == 0) first_pass_end = std::max(compute_free, link_free);
  }
  return (std::max(compute_free, link_free) - first_pass_end) / kMeasuredPasses;
}

}  // namespace tensorstream
