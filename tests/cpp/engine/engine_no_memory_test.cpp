// Host memory that ends while groups find other places: an error, and an engine that goes on.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>

#include "engine/no_memory.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

/// Ends the process where `steps` never end: nobody could end their thread.
void within_time(const std::function<void()>& steps) {
  std::atomic<bool> done = false;
  std::jthread thread([&] {
    EXPECT_NO_THROW(steps());
    done = true;
  });
  if (eventually([&] { return done.load(); })) return;
  std::cerr << "an engine that had no memory waits for ever\n";
  std::_Exit(EXIT_FAILURE);
}

class EngineNoMemory : public ::testing::TestWithParam<Prefetch> {
 protected:
  /// Uses every group that has a place.
  void use_all(Engine& engine) const {
    Computation computation(engine, model_);
    for (int pass = 0; pass < 2; ++pass) {
      for (GroupId group = 0; group < model_.group_count(); ++group) {
        static_cast<void>(computation.use(group, device_->caller_stream()));
      }
    }
    EXPECT_EQ(computation.wrong(), 0U);
  }

  /// Whether the allocation of that number was made on the way from one budget to the other.
  bool fails_on_the_way(int nth, std::uint64_t from_bytes, std::uint64_t to_bytes) const {
    const auto engine =
        open_engine(*device_, model_.in_memory(), from_bytes, with_prefetch(GetParam()));
    use_all(*engine);
    bool has_failed = false;
    {
      const NoMemory none(nth);
      try {
        engine->set_budget(to_bytes);
      } catch (const std::bad_alloc&) {  // or nobody needed it
      }
      has_failed = none.has_failed();
    }
    use_all(*engine);
    engine->set_budget(to_bytes);
    Computation computation(*engine, model_);
    computation.pass(device_->caller_stream());
    EXPECT_EQ(computation.wrong(), 0U);
    return has_failed;
  }

  const TestModel model_ = equal_model(6, 6000);
  const std::unique_ptr<Device> device_ = checking_device(1, 0);
};

TEST_P(EngineNoMemory, ABudgetThatMovesFindsNone) {
  const ModelSpec spec = model_.in_memory();
  const std::uint64_t small = budgets_of(spec, 4)[1];
  const std::uint64_t all = everything_of(spec);
  for (const auto& [from, to] : {std::pair(all, small), std::pair(small, all)}) {
    int nth = 1;
    for (bool goes_on = true; goes_on; ++nth) {
      SCOPED_TRACE("allocation " + std::to_string(nth) + " from " + std::to_string(from));
      within_time([&] { goes_on = fails_on_the_way(nth, from, to); });
      ASSERT_FALSE(HasFailure());
    }
    EXPECT_GT(nth, 20);
  }
}

INSTANTIATE_TEST_SUITE_P(Loading, EngineNoMemory,
                         ::testing::Values(Prefetch::kNone, Prefetch::kAhead, Prefetch::kReadAhead),
                         loading_name);

}  // namespace
}  // namespace tensorstream
