#include "scheduler/pass_time.h"

#include <algorithm>
#include <cstddef>

namespace tensorstream {
namespace {

// The first pass fills the pipeline and is left out. Where the period spans several passes, their
// mean is the steady state.
constexpr int kMeasuredPasses = 3;
// A resident's lease waits for no load and moves no place: 29 us beside an H100 where one of the
// arena took 91 (benchmarks/results/gpu_llama.json).
constexpr double kResidentLeaseShare = 1.0 / 3;
// The thread that leases a group that stays coded enqueues decodings too: a quarter of its time in
// the hooks of groups of one to four matrices (docs/adr/0022-what-a-lease-costs.md).
constexpr double kKeptLeaseShare = 2;
// Loads meet the thread that computes in the driver and in the host's memory, so that what they
// hide behind takes longer than is predicted.
constexpr double kFeltLinkShare = 0.02;
// Loads that are under way at once: who asks for another waits.
constexpr std::size_t kLoadsInFlight = 2;

double lease_seconds(const PassStep& step, const Rates& rates) {
  if (step.settled) return 0;
  const double lending = rates.lend_seconds * static_cast<double>(step.tensors);
  if (step.kept) return kKeptLeaseShare * rates.lease_seconds + lending;
  return (rates.lease_seconds + lending) * (step.streamed ? 1 : kResidentLeaseShare);
}

/// When all that works on a pass is free next.
class Timeline {
 public:
  Timeline(std::span<const PassStep> steps, const Rates& rates)
      : rates_(rates),
        ahead_seconds_(static_cast<double>(rates.disk_ahead_bytes) / rates.disk_bytes_per_second) {
    double all_bytes = 0;
    for (const PassStep& step : steps) all_bytes += static_cast<double>(step.size_bytes);
    if (!(all_bytes > 0)) return;
    compute_per_byte_ = rates.compute_seconds / all_bytes;
    host_per_byte_ = rates.host_seconds / all_bytes;
  }

  void use(const PassStep& step) {
    if (rates_.loading == Loading::kAhead) lease(step);
    if (step.streamed) load(step);
    if (is_late(step)) compute_free_ = std::max(compute_free_, host_free_);
    const auto bytes = static_cast<double>(step.size_bytes);
    compute_free_ += decode_seconds(step, rates_) + bytes * compute_per_byte_;
    if (rates_.loading == Loading::kAhead) {
      host_free_ += bytes * host_per_byte_;
      compute_free_ = std::max(compute_free_, host_free_);
    }
    if (step.streamed || step.kept || step.still_there) use_ends_.push_back(compute_free_);
  }

  /// Whoever runs passes looks at what one gave before the next.
  void end_pass() { host_free_ = std::max(host_free_, compute_free_); }

  double now() const { return std::max(compute_free_, link_free_); }

 private:
  // Its decoding is enqueued once the group before it was given back.
  static bool is_late(const PassStep& step) { return step.kept && step.sharing_distance == 1; }

  void lease(const PassStep& step) {
    host_free_ += lease_seconds(step, rates_);
    if (step.streamed && load_ends_.size() >= kLoadsInFlight) {
      host_free_ = std::max(host_free_, load_ends_[load_ends_.size() - kLoadsInFlight]);
    }
  }

  void load(const PassStep& step) {
    double start = rates_.loading == Loading::kAtUse ? compute_free_ : link_free_;
    if (step.sharing_distance <= use_ends_.size()) {
      start = std::max(start, use_ends_[use_ends_.size() - step.sharing_distance]);
    }
    link_free_ = start + link_seconds(step, rates_);
    if (step.from_disk) {
      disk_free_ = std::max(disk_free_, start - ahead_seconds_) +
                   static_cast<double>(step.disk_bytes()) / rates_.disk_bytes_per_second;
      link_free_ = std::max(link_free_, disk_free_);
    }
    link_free_ += host_decode_seconds(step, rates_);
    load_ends_.push_back(link_free_);
    compute_free_ = std::max(compute_free_, link_free_);
  }

  const Rates& rates_;
  const double ahead_seconds_;
  double compute_per_byte_ = 0;
  double host_per_byte_ = 0;
  double disk_free_ = 0;
  double link_free_ = 0;
  double compute_free_ = 0;
  double host_free_ = 0;
  std::vector<double> use_ends_;   // of groups in the arena
  std::vector<double> load_ends_;  // of streamed ones
};

}  // namespace

double decode_seconds(const PassStep& step, const Rates& rates) {
  if (!step.decoded()) return 0;
  return static_cast<double>(step.size_bytes) / rates.decode_bytes_per_second +
         kDecodeOverheadSeconds;
}

double host_decode_seconds(const PassStep& step, const Rates& rates) {
  if (!step.host_decodes()) return 0;
  return static_cast<double>(step.size_bytes) / rates.host_decode_bytes_per_second;
}

double link_seconds(const PassStep& load, const Rates& rates) {
  return load.copies_seconds() +
         static_cast<double>(load.link_bytes()) / rates.link_bytes_per_second;
}

double link_seconds(std::span<const PassStep> steps, const Rates& rates) {
  double seconds = 0;
  for (const PassStep& step : steps) {
    if (step.streamed) seconds += link_seconds(step, rates);
  }
  return seconds;
}

double felt_link_seconds(std::span<const PassStep> steps, const Rates& rates) {
  return kFeltLinkShare * link_seconds(steps, rates);
}

double leases_seconds(std::span<const PassStep> steps, const Rates& rates) {
  double seconds = 0;
  for (const PassStep& step : steps) seconds += lease_seconds(step, rates);
  return seconds;
}

double pass_seconds(std::span<const PassStep> steps, const Rates& rates) {
  Timeline timeline(steps, rates);
  double first_pass_end = 0;
  for (int pass = 0; pass <= kMeasuredPasses; ++pass) {
    for (const PassStep& step : steps) timeline.use(step);
    timeline.end_pass();
    if (pass == 0) first_pass_end = timeline.now();
  }
  return (timeline.now() - first_pass_end) / kMeasuredPasses;
}

}  // namespace tensorstream
