// What is loaded while groups are used that are there already: nobody waits for a load then.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "engine/on_gpu.h"

namespace tensorstream {
namespace {

class EngineLookAhead : public ::testing::Test {
 protected:
  EngineLookAhead() {
    fake_.reset();
    device_ = create_cuda_device(on_fake(Checking::kOff));
  }

  std::unique_ptr<Engine> open(const TestModel& model, std::uint64_t budget_bytes,
                               Prefetch prefetch) {
    EngineOptions options = with_prefetch(prefetch);
    options.residents = ResidentUse::kLeased;
    auto engine = open_engine(*device_, model.in_memory(), budget_bytes, options);
    for (GroupId group = 0; group < model.group_count(); ++group) engine->bring_home(group);
    return engine;
  }
  void use(Engine& engine, GroupId group) {
    ASSERT_TRUE(engine.acquire(group, device_->stream_of(0)));
    engine.release(group, device_->stream_of(0));
  }

  /// How many loads there were once none is under way.
  static std::uint64_t loads_at_rest(const Engine& engine) {
    std::uint64_t loads = 0;
    EXPECT_TRUE(eventually([&] {
      const std::uint64_t before = std::exchange(loads, engine.statistics().loads);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      return before == loads && loads != 0;
    }));
    return loads;
  }

  const FakeCuda fake_;
  std::unique_ptr<Device> device_;
};

TEST_F(EngineLookAhead, TheNextIsLoadedWhileOneThatWasThereIsUsed) {
  const TestModel model = equal_model(4, 9000);
  const auto engine = open(model, 2 * smallest_budget_of(model.in_memory()), Prefetch::kNext);
  const Plan plan = engine->plan();
  ASSERT_EQ(std::ranges::count(plan.groups, Placement::kStreamed, &GroupPlacement::placement), 4);
  for (int pass = 0; pass < 3; ++pass) {
    for (GroupId group = 0; group < 4; ++group) use(*engine, group);
  }
  use(*engine, 0);
  static_cast<void>(loads_at_rest(*engine));
  for (GroupId group = 1; group < 4; ++group) {
    const Statistics before = engine->statistics();
    ASSERT_TRUE(engine->acquire(group, device_->stream_of(0)));
    EXPECT_EQ(engine->statistics().hits, before.hits + 1);
    ASSERT_TRUE(eventually([&] { return engine->statistics().loads > before.loads; })) << group;
    engine->release(group, device_->stream_of(0));
  }
}

TEST_F(EngineLookAhead, GoesOnBehindManyUsesOfResidents) {
  const TestModel model = equal_model(10, 9000);
  const auto engine = open(model, 7 * smallest_budget_of(model.in_memory()), Prefetch::kAdaptive);
  const Plan plan = engine->plan();
  std::vector<GroupId> residents;
  std::vector<GroupId> streamed;
  for (GroupId group = 0; group < 10; ++group) {
    const bool stays = plan.groups[group].placement == Placement::kResident;
    (stays ? residents : streamed).push_back(group);
  }
  ASSERT_GE(residents.size(), 4U);
  ASSERT_GE(streamed.size(), 4U);
  const std::vector<std::size_t> pattern = {0, 1, 2, 3, 0, 2, 1, 3, 1, 0, 3, 2, 2, 0, 1, 3};
  const auto pass = [&](const auto& after_streamed) {
    for (std::size_t i = 0; i < 4; ++i) {  // the last eight uses tell what follows
      use(*engine, streamed[i]);
      after_streamed();
      for (const std::size_t which : pattern) use(*engine, residents[(which + i) % 4]);
    }
  };
  for (int i = 0; i < 4; ++i) pass([&] { static_cast<void>(loads_at_rest(*engine)); });
  std::uint64_t loads = loads_at_rest(*engine);
  const Statistics before = engine->statistics();
  for (int i = 0; i < 5; ++i) {
    pass([&] {  // each of them makes room for one that comes later
      ++loads;
      ASSERT_TRUE(eventually([&] { return engine->statistics().loads >= loads; }));
    });
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(engine->statistics().surprises, before.surprises);
  EXPECT_EQ(engine->statistics().misses, before.misses);
}

}  // namespace
}  // namespace tensorstream
