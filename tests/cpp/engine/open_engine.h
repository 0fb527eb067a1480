// An engine on a host device that checks, and code that computes with its weights.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "device/host_device.h"
#include "engine/test_model.h"
#include "memory/budget.h"
#include "tensorstream/engine.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// A device whose mistakes show: rights are real and its streams are delayed.
inline std::unique_ptr<Device> checking_device(std::uint64_t seed = 1,
                                               std::uint32_t longest_delay_us = 20) {
  return create_host_device(
      {.checking = Checking::kOn, .seed = seed, .longest_delay_us = longest_delay_us});
}

inline EngineOptions with_prefetch(Prefetch prefetch) {
  EngineOptions options;
  options.prefetch = prefetch;
  return options;
}

/// Loads ahead where the test says nothing else: what a device does that is not the host.
inline std::unique_ptr<Engine> open_engine(
    Device& device, ModelSpec model, std::uint64_t budget_bytes,
    const EngineOptions& options = with_prefetch(Prefetch::kAhead)) {
  return std::make_unique<Engine>(device, Budget::create(budget_bytes), std::move(model), options);
}

inline std::string loading_name(const ::testing::TestParamInfo<Prefetch>& prefetch) {
  if (prefetch.param == Prefetch::kNone) return "WhenAcquired";
  return prefetch.param == Prefetch::kAhead ? "Ahead" : "AtUse";
}

/// Which stream computes.
enum class On { kCaller, kQueue };

inline std::string on_name(const ::testing::TestParamInfo<On>& on) {
  return on.param == On::kCaller ? "OnCaller" : "OnQueue";
}

/// The device's caller stream, or a queue of its own.
class ComputeStream {
 public:
  ComputeStream(Device& device, On on)
      : own_(on == On::kQueue ? device.create_stream() : nullptr),
        stream_(own_ ? *own_ : device.caller_stream()) {}

  Stream& get() const { return stream_; }

 private:
  const std::unique_ptr<Stream> own_;
  Stream& stream_;
};

/// Computes with leased groups: compares their places with the truth, on the stream.
class Computation {
 public:
  Computation(Engine& engine, const TestModel& model) : engine_(engine), model_(model) {}

  /// Gives `stream` the comparison of a leased group's places with what the model holds now.
  void compute(GroupId group, Stream& stream) {
    for (const TensorPlace& place : engine_.places(group)) {
      stream.run([counts = counts_, place, truth = model_.bytes(place.tensor)] {
        const bool right =
            place.size_bytes == truth->size() &&
            (truth->empty() || std::memcmp(place.data, truth->data(), truth->size()) == 0);
        ++(right ? counts->right : counts->wrong);
      });
    }
  }

  /// One use: a lease, the comparison, the lease's end. False where the group has no place.
  bool use(GroupId group, Stream& stream) {
    if (!engine_.acquire(group, stream)) return false;
    compute(group, stream);
    engine_.release(group, stream);
    return true;
  }

  /// Uses groups one after the other; each has a place.
  void pass(std::span<const GroupId> order, Stream& stream) {
    for (const GroupId group : order) ASSERT_TRUE(use(group, stream)) << "group " << group;
  }
  void pass(Stream& stream) {
    for (GroupId group = 0; group < model_.group_count(); ++group) {
      ASSERT_TRUE(use(group, stream)) << "group " << group;
    }
  }

  /// Tensors compared so far.
  std::uint64_t right() const { return counts_->right; }
  std::uint64_t wrong() const { return counts_->wrong; }

 private:
  struct Counts {
    std::atomic<std::uint64_t> right = 0;
    std::atomic<std::uint64_t> wrong = 0;
  };

  Engine& engine_;
  const TestModel& model_;
  std::shared_ptr<Counts> counts_ = std::make_shared<Counts>();  // shared with queued comparisons
};

/// Waits until `condition` holds. False after ten seconds.
inline bool eventually(const std::function<bool()>& condition) {
  const Clock::time_point start = Clock::now();
  while (!condition()) {
    if (seconds_since(start) > 10) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

/// Whether `condition` still does not hold after a time in which other threads could have run.
inline bool stays_false(const std::function<bool()>& condition) {
  for (int i = 0; i < 30; ++i) {
    if (condition()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace tensorstream
