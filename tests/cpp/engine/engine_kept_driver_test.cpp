// Groups that stay on the device coded, with what only the fake driver can be told to do.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "device/gate.h"
#include "engine/kept_groups.h"
#include "engine/on_gpu.h"

namespace tensorstream {
namespace {

class EngineKeptFakeCuda : public ::testing::Test {
 protected:
  EngineKeptFakeCuda() { fake_.reset(); }
  ~EngineKeptFakeCuda() override {
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
  }
  const FakeCuda fake_;
};

/// Copies that come late show what does not wait for them.
TEST_F(EngineKeptFakeCuda, TheDecodingWaitsForWhatBringsItsFrames) {
  const TestModel model = equal_bf16_model(4);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options();
  const auto device = create_cuda_device(on_fake(Checking::kOn, 3000));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 97, options), options);
  for (GroupId group = 0; group < 4; ++group) engine->bring_home(group);
  ASSERT_TRUE(engine->plan_anew());
  ASSERT_GT(engine->plan().kept_bytes, 0U);
  ReadBack read(*engine, model, *stream);
  for (int i = 0; i < 4; ++i) {
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
    static_cast<void>(engine->give_way(budget_of(spec, 97, options)));
    static_cast<void>(engine->take_back(0));
  }
}

/// A load that crosses the link waits for the reader of its place; what is kept is decoded
/// meanwhile.
TEST_F(EngineKeptFakeCuda, WhatIsKeptWaitsForNoLoad) {
  fake_.set("serial_host_functions", 0);  // the gate is one
  const TestModel model = small_bf16_model(20);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options(Prefetch::kNone);
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 60, options), options);
  for (GroupId group = 0; group < 20; ++group) engine->bring_home(group);
  ASSERT_TRUE(engine->plan_anew());
  const Plan plan = engine->plan();
  const std::vector<GroupId> kept = placed(*engine, Placement::kResidentCoded);
  const std::vector<GroupId> streamed = placed(*engine, Placement::kStreamed);
  ASSERT_GT(kept.size(), 0U);
  const auto sharing = std::ranges::find_if(streamed, [&](GroupId group) {
    return group != streamed[0] &&
           plan.groups[group].offset_bytes == plan.groups[streamed[0]].offset_bytes;
  });
  ASSERT_NE(sharing, streamed.end());
  ReadBack read(*engine, model, *stream);
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  const auto reader = device->create_stream();
  const auto waiting = device->create_stream();
  ASSERT_TRUE(engine->acquire(streamed[0], *reader));
  Gate gate(*reader);
  engine->release(streamed[0], *reader);
  ASSERT_TRUE(engine->acquire(*sharing, *waiting));
  engine->release(*sharing, *waiting);
  const std::uint64_t before = engine->statistics().kept_decoded_bytes;
  ASSERT_TRUE(read.use(kept[0]));
  EXPECT_TRUE(eventually([&] { return engine->statistics().kept_decoded_bytes > before; }));
  EXPECT_EQ(read.wrong(), 0);
  gate.open();
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

/// The loader's thread brings frames and decodes them to their place, while another thread asks for
/// what is decoded to the same place and is at hand.
TEST_F(EngineKeptFakeCuda, TheDecodingWaitsForTheThreadThatFillsItsPlace) {
  const TestModel model = small_bf16_model(20);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options();
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 72, options), options);
  for (GroupId group = 0; group < 20; ++group) engine->bring_home(group);
  ASSERT_EQ(placed(*engine, Placement::kResidentCoded).size(), 20U);
  const Plan plan = engine->plan();
  ASSERT_EQ(plan.groups[5].offset_bytes, plan.groups[19].offset_bytes);
  ReadBack read(*engine, model, *stream);
  for (int i = 0; i < 2; ++i) read.pass();
  ASSERT_GT(engine->give_way(1), 0U);  // the frames of the last one used
  ASSERT_GT(engine->take_back(0), 0U);
  fake_.set("hold_copies", 1);
  for (GroupId group = 0; group < 19; ++group) ASSERT_TRUE(read.use(group));
  ASSERT_TRUE(eventually([&] { return fake_.get("held_calls") == 1; })) << "those of group 19";
  const auto other = device->create_stream();
  std::atomic<bool> leased = false;
  std::jthread user([&] {
    EXPECT_TRUE(engine->acquire(5, *other));
    leased = true;
  });
  EXPECT_TRUE(stays_false([&] { return leased.load(); }));
  const std::uint64_t before = engine->statistics().streamed_bytes;
  fake_.set("hold_copies", 0);
  user.join();
  EXPECT_TRUE(eventually([&] { return engine->statistics().streamed_bytes > before; }));
  EXPECT_TRUE(read.use(5));
  EXPECT_EQ(read.wrong(), 0);
  engine->release(5, *other);
}

/// A first load that failed once its frames were there leaves them to the next, which the thread
/// takes up as one over the link, and which then only decodes.
TEST_F(EngineKeptFakeCuda, FramesStayWhileTheThreadDecodesFromThem) {
  const TestModel model = small_bf16_model(20);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options(Prefetch::kNone);
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 72, options), options);
  for (GroupId group = 0; group < 20; ++group) engine->bring_home(group);
  ASSERT_EQ(placed(*engine, Placement::kResidentCoded).size(), 20U);
  ReadBack read(*engine, model, *stream);
  fake_.fail("cuEventRecord", 3, CudaResult::kOutOfMemory);
  EXPECT_THROW(static_cast<void>(read.use(7)), CudaError);
  const std::uint64_t crossed = engine->statistics().streamed_bytes;
  fake_.set("hold_launches", 1);
  std::jthread user([&] { EXPECT_TRUE(read.use(7)); });
  EXPECT_TRUE(eventually([&] { return fake_.get("held_calls") == 1; }));
  std::atomic<bool> freed = false;
  std::jthread torch([&] {
    EXPECT_GT(engine->give_way(std::uint64_t{1} << 40U), 0U);
    freed = true;
  });
  EXPECT_TRUE(stays_false([&] { return freed.load(); }));
  fake_.set("hold_launches", 0);
  user.join();
  torch.join();
  EXPECT_EQ(engine->statistics().streamed_bytes, crossed) << "it only decoded";
  EXPECT_EQ(read.wrong(), 0);
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_F(EngineKeptFakeCuda, AllBatchesOfWhatIsKeptAreDecodedByOneLaunch) {
  const TestModel model = equal_bf16_model(8);  // in two batches each
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options(Prefetch::kNone);
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 90, options), options);
  for (GroupId group = 0; group < 8; ++group) engine->bring_home(group);
  ASSERT_TRUE(engine->plan_anew());
  const std::vector<GroupId> kept = placed(*engine, Placement::kResidentCoded);
  ASSERT_GT(kept.size(), 2U);
  ASSERT_TRUE(placed(*engine, Placement::kStreamed).empty());
  ReadBack read(*engine, model, *stream);
  const auto passes_are_loaded = [&](std::size_t passes) {  // residents by the first alone
    const std::size_t loads = 8 + (passes - 1) * kept.size();
    return eventually([&] { return engine->statistics().loads == loads; });
  };
  for (int i = 0; i < 2; ++i) read.pass();
  ASSERT_TRUE(passes_are_loaded(2));  // each is counted once it is done, and launched before
  const auto launches = fake_.calls("cuLaunchKernel");
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
  ASSERT_TRUE(passes_are_loaded(3));
  EXPECT_EQ(fake_.calls("cuLaunchKernel") - launches, static_cast<std::int64_t>(kept.size()));
}

/// However many groups share a place: each call of the driver is paid for by the thread that
/// computes.
TEST_F(EngineKeptFakeCuda, ALoadWaitsOnceForEachUse) {
  const TestModel model = small_bf16_model(20);
  const ModelSpec spec = model.in_memory();
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  for (const std::uint64_t percent : {50U, 72U}) {
    const auto engine =
        open_engine(*device, spec, budget_of(spec, percent, kept_options()), kept_options());
    for (GroupId group = 0; group < 20; ++group) engine->bring_home(group);
    ReadBack read(*engine, model, *stream);
    for (int i = 0; i < 2; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
    const auto waits = fake_.calls("cuStreamWaitEvent");
    for (int i = 0; i < 3; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
    // For its last use, the filling of its place before on another stream, its copies' place in the
    // ring and their end, and its own end: by who leases it and by who tells of it.
    EXPECT_LE(fake_.calls("cuStreamWaitEvent") - waits, 3 * 20 * 6);
  }
}

TEST_F(EngineKeptFakeCuda, WhereNothingIsPinnedNothingIsKept) {
  fake_.set("most_registered_bytes", 1);
  const TestModel model = equal_bf16_model(4);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options();
  const auto device = create_cuda_device(on_fake(Checking::kOn));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, budget_of(spec, 80, options), options);
  for (GroupId group = 0; group < 4; ++group) engine->bring_home(group);
  ReadBack read(*engine, model, *stream);
  read.pass();
  EXPECT_TRUE(engine->plan_anew());
  EXPECT_EQ(engine->plan().kept_bytes, 0U);
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

/// Each driver call of a run fails once: an error that is raised, or a result that is right.
TEST_F(EngineKeptFakeCuda, ADriverCallThatFailsIsNeverAWrongResult) {
  const TestModel model = small_bf16_model(8);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = kept_options(Prefetch::kNone);
  for (const char* function : {"cuMemcpyHtoDAsync_v2", "cuStreamWaitEvent", "cuEventRecord",
                               "cuLaunchHostFunc", "cuLaunchKernel", "cuMemAlloc_v2"}) {
    for (int nth = 1; nth <= 14; ++nth) {
      SCOPED_TRACE(std::string(function) + " " + std::to_string(nth));
      fake_.reset();
      const auto device = create_cuda_device(on_fake(Checking::kOff));
      const auto stream = device->create_stream();
      const auto engine = open_engine(*device, spec, budget_of(spec, 85, options), options);
      for (GroupId group = 0; group < 8; ++group) engine->bring_home(group);
      ASSERT_TRUE(engine->plan_anew());
      ASSERT_GT(engine->plan().kept_bytes, 0U);
      ReadBack read(*engine, model, *stream);
      fake_.fail(function, nth, CudaResult::kInvalidHandle);
      for (GroupId step = 0; step < 20; ++step) {
        try {
          if (step == 5) static_cast<void>(engine->give_way(std::uint64_t{500'000}));
          if (step == 12) static_cast<void>(engine->take_back(0));
          static_cast<void>(read.use(step % 8));
        } catch (const Error&) {  // raised to whoever asked for it
        }
      }
      EXPECT_EQ(read.wrong(), 0);
      engine->release_all(*stream);  // where a release failed
      read.pass();
      EXPECT_EQ(read.wrong(), 0) << "afterwards";
    }
  }
}

}  // namespace
}  // namespace tensorstream
