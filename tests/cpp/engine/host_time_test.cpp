#include "engine/host_time.h"

#include <gtest/gtest.h>

#include <chrono>
#include <optional>

namespace tensorstream {
namespace {

using std::chrono::milliseconds;

/// Runs passes by a clock of its own.
class Passes {
 public:
  void run(int wall_ms, int stalled_ms, std::uint64_t acquires = 4) {
    time_.begin(now_, counted_);
    now_ += milliseconds(wall_ms);
    counted_.acquires += acquires;
    counted_.stalled_seconds += stalled_ms * 1e-3;
    time_.end(now_, counted_, 4);
    now_ += milliseconds(1000);  // of whoever runs them
  }
  HostTime& time() { return time_; }

 private:
  HostTime time_;
  Clock::time_point now_{};
  HostTime::Counted counted_{100, 7};
};

TEST(HostTime, IsWhatAPassTookLessWhatItWaited) {
  Passes passes;
  passes.run(30, 10);
  passes.run(30, 10);
  EXPECT_EQ(passes.time().seconds(), std::nullopt) << "the first ones compile kernels";
  passes.run(30, 10);
  EXPECT_NEAR(passes.time().seconds().value(), 0.02, 1e-9);
}

TEST(HostTime, IsTheMedianOfTheLastPasses) {
  Passes passes;
  for (const int wall_ms : {900, 20, 21, 22, 800}) passes.run(wall_ms, 0);
  EXPECT_NEAR(passes.time().seconds().value(), 0.022, 1e-9);
  for (int pass = 0; pass < 5; ++pass) passes.run(40, 0);
  EXPECT_NEAR(passes.time().seconds().value(), 0.04, 1e-9);
}

TEST(HostTime, PartsOfAPassDoNotCount) {
  Passes passes;
  for (int pass = 0; pass < 5; ++pass) passes.run(30, 0, 3);
  EXPECT_EQ(passes.time().seconds(), std::nullopt);
  for (int pass = 0; pass < 3; ++pass) passes.run(30, 0, 5);
  EXPECT_NEAR(passes.time().seconds().value(), 0.03, 1e-9);
}

TEST(HostTime, APassThatNeverEndedIsForgotten) {
  Passes passes;
  passes.time().begin(Clock::time_point{} - milliseconds(5000), {});
  for (int pass = 0; pass < 3; ++pass) passes.run(30, 0);
  EXPECT_NEAR(passes.time().seconds().value(), 0.03, 1e-9);
  passes.time().end(Clock::time_point{} + milliseconds(90000), {1000, 0}, 4);
  EXPECT_NEAR(passes.time().seconds().value(), 0.03, 1e-9);
  passes.time().forget();
  EXPECT_EQ(passes.time().seconds(), std::nullopt);
}

}  // namespace
}  // namespace tensorstream
