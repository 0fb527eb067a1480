// Uses in other orders than the planned one: right all the same, and refused only where a lease is
// in the way.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "engine/group_layout.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

class EngineOrder : public ::testing::TestWithParam<On> {
 protected:
  /// Uses the groups in each of `orders`, at a small, a middle and a large budget.
  void run(const std::vector<std::vector<GroupId>>& orders) {
    const TestModel model = uneven_model(8, 5);
    const ModelSpec spec = model.in_memory();
    for (const std::uint64_t budget_bytes : budgets_of(spec, 4)) {
      SCOPED_TRACE("budget " + std::to_string(budget_bytes));
      const auto device = checking_device(budget_bytes);
      const ComputeStream stream(*device, GetParam());
      const auto engine = open_engine(*device, spec, budget_bytes);
      Computation computation(*engine, model);
      for (const std::vector<GroupId>& order : orders) computation.pass(order, stream.get());
      stream.get().synchronize();
      EXPECT_EQ(computation.wrong(), 0U);
      EXPECT_GT(computation.right(), 0U);
    }
  }
};

TEST_P(EngineOrder, Backwards) { run({{7, 6, 5, 4, 3, 2, 1, 0}, {7, 6, 5, 4, 3, 2, 1, 0}}); }

TEST_P(EngineOrder, ForwardsAndBackwards) {
  run({{0, 1, 2, 3, 4, 5, 6, 7}, {7, 6, 5, 4, 3, 2, 1, 0}, {0, 1, 2, 3, 4, 5, 6, 7}});
}

TEST_P(EngineOrder, SkippedGroups) {
  run({{0, 1, 2, 3, 4, 5, 6, 7}, {0, 2, 3, 5, 7}, {0, 1, 7}, {0, 1, 2, 3, 4, 5, 6, 7}});
}

TEST_P(EngineOrder, RepeatedGroups) {
  run({{0, 0, 1, 1, 2, 2, 2, 3, 4, 3, 4, 5, 6, 7}, {0, 1, 0, 1, 2, 3, 4, 5, 6, 6, 7}});
}

TEST_P(EngineOrder, AnEarlyExitAndAFirstPassThatDiffers) {
  run({{5, 1, 3}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2, 3, 4, 5, 6, 7}});
}

/// A random walk: groups acquired in any order, up to three leases at a time.
class Walk {
 public:
  Walk(const TestModel& model, Engine& engine, Stream& stream, std::uint64_t seed)
      : engine_(engine),
        stream_(stream),
        random_(seed),
        sizes_(footprints(engine.groups(), model.in_memory().tensors)),
        computation_(engine, model) {}

  void run(int steps) {
    for (int step = 0; step < steps; ++step) {
      if (leased_.size() == 3 || (!leased_.empty() && random_() % 2 == 0)) {
        const auto chosen =
            leased_.begin() + static_cast<std::ptrdiff_t>(random_() % leased_.size());
        computation_.compute(*chosen, stream_);
        engine_.release(*chosen, stream_);
        leased_.erase(chosen);
      } else {
        acquire_some();
      }
    }
    for (const GroupId group : leased_) engine_.release(group, stream_);
    stream_.synchronize();
    EXPECT_EQ(computation_.wrong(), 0U);
    EXPECT_GT(refused_ + computation_.right(), 0U);
  }

  std::uint64_t refused() const { return refused_; }

 private:
  void acquire_some() {
    const auto group = static_cast<GroupId>(random_() % sizes_.size());
    const bool in_the_way = std::any_of(leased_.begin(), leased_.end(), [&](GroupId other) {
      return other != group && share_bytes(group, other);
    });
    const bool held = std::find(leased_.begin(), leased_.end(), group) != leased_.end();
    const bool acquired = engine_.acquire(group, stream_);
    ASSERT_EQ(acquired, held || !in_the_way) << "group " << group;
    if (!acquired) {
      ++refused_;
      return;
    }
    leased_.push_back(group);
    computation_.compute(group, stream_);
  }

  bool share_bytes(GroupId a, GroupId b) const {
    const GroupPlacement of_a = engine_.plan().groups[a];
    const GroupPlacement of_b = engine_.plan().groups[b];
    return of_a.placement == Placement::kStreamed && of_b.placement == Placement::kStreamed &&
           of_a.offset_bytes < of_b.offset_bytes + sizes_[b].size_bytes &&
           of_b.offset_bytes < of_a.offset_bytes + sizes_[a].size_bytes;
  }

  Engine& engine_;
  Stream& stream_;
  std::mt19937_64 random_;
  const std::vector<GroupFootprint> sizes_;
  Computation computation_;
  std::vector<GroupId> leased_;
  std::uint64_t refused_ = 0;
};

TEST_P(EngineOrder, RandomOrdersAndLeases) {
  std::uint64_t refused = 0;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const TestModel model = uneven_model(5 + seed, seed);
    const ModelSpec spec = model.in_memory();
    const auto device = checking_device(seed, 5);
    const ComputeStream stream(*device, GetParam());
    const auto engine =
        open_engine(*device, spec, budgets_of(spec, 8)[seed % 6],
                    with_prefetch(std::vector{Prefetch::kNone, Prefetch::kNext, Prefetch::kAhead,
                                              Prefetch::kReadAhead}[seed % 4]));
    Walk walk(model, *engine, stream.get(), seed);
    walk.run(300);
    refused += walk.refused();
  }
  EXPECT_GT(refused, 0U);
}

INSTANTIATE_TEST_SUITE_P(Streams, EngineOrder, ::testing::Values(On::kCaller, On::kQueue), on_name);

}  // namespace
}  // namespace tensorstream
