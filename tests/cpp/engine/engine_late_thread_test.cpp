// A thread that is not scheduled for a while once it has enqueued a load, which is over meanwhile.
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <thread>

#include "engine/kept_groups.h"
#include "engine/on_gpu.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kAll = std::uint64_t{1} << 40U;

class EngineLateThread : public ::testing::Test {
 protected:
  EngineLateThread() { fake_.reset(); }
  ~EngineLateThread() override {
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
  }
  bool is_late() const {
    return eventually([&] { return fake_.get("held_calls") == 1; });
  }
  /// Once the first load's callback has told of its end.
  bool is_over() const {
    return eventually([&] { return fake_.calls("host functions") == 1; });
  }
  const FakeCuda fake_;
};

TEST_F(EngineLateThread, FramesThatGiveWayMeanwhileAreNotSaidToBeThere) {
  const TestModel model = small_bf16_model(20);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options(Prefetch::kNone);
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 72, options), options);
  for (GroupId group = 0; group < 20; ++group) engine->bring_home(group);
  ASSERT_EQ(placed(*engine, Placement::kResidentCoded).size(), 20U);
  ReadBack read(*engine, model, *stream);
  fake_.set("late_host_functions", 1);
  std::jthread user([&] { EXPECT_TRUE(read.use(7)); });  // over the link: its first load
  ASSERT_TRUE(is_late());
  ASSERT_TRUE(is_over());
  EXPECT_GT(engine->give_way(kAll), 0U);
  fake_.set("late_host_functions", 0);
  user.join();
  EXPECT_EQ(read.wrong(), 0);
  std::atomic<bool> done = false;
  std::jthread again([&] {
    read.pass();
    done = true;
  });
  if (!eventually([&] { return done.load(); })) {
    std::cerr << "a use of group 7 never ends\n";
    std::_Exit(EXIT_FAILURE);  // nobody would end that thread
  }
  again.join();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_F(EngineLateThread, PlacesDoNotMoveMeanwhile) {
  const TestModel model = small_bf16_model(8);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options(Prefetch::kNone);
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 72, options), options);
  for (GroupId group = 0; group < 8; ++group) engine->bring_home(group);
  ReadBack read(*engine, model, *stream);
  fake_.set("late_host_functions", 1);
  std::jthread user([&] { EXPECT_TRUE(read.use(2)); });
  ASSERT_TRUE(is_late());
  ASSERT_TRUE(is_over());
  std::atomic<bool> moved = false;
  std::jthread mover([&] {
    static_cast<void>(engine->take_back(0));
    moved = true;
  });
  EXPECT_TRUE(stays_false([&] { return moved.load(); }));
  fake_.set("late_host_functions", 0);
  user.join();
  mover.join();
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_F(EngineLateThread, AWriteToAHomeWhoseGroupIsSettledMeanwhileIsRefused) {
  const TestModel model = small_bf16_model(8);
  const ModelSpec spec = model.in_memory();
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const std::uint64_t all_bytes = everything_of(spec, ComputePlace::kAccelerator);
  const auto engine = open_engine(*device, spec, all_bytes / 2, with_prefetch(Prefetch::kNone));
  for (GroupId group = 0; group < 8; ++group) engine->bring_home(group);
  GroupId group = 0;
  while (engine->settled(group)) ++group;
  const TensorId tensor = engine->groups()[group].tensors[0];
  ASSERT_NE(engine->home_address(tensor), nullptr);
  engine->note_write(tensor, *stream);  // not settled yet
  fake_.set("late_host_functions", 1);
  std::jthread mover([&] { engine->set_budget(all_bytes * 2); });
  EXPECT_TRUE(is_late());
  EXPECT_TRUE(eventually([&] { return engine->settled(group); }));
  EXPECT_THROW(engine->note_write(tensor, *stream), ConfigError);
  fake_.set("late_host_functions", 0);
  mover.join();
  EXPECT_THROW(engine->note_write(tensor, *stream), ConfigError);
  EXPECT_TRUE(engine->tensor_equals(tensor, *model.bytes(tensor)));
}

}  // namespace
}  // namespace tensorstream
