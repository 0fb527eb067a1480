// Who waits for whom: each test holds one side up and sees the other wait.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#include "device/gate.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"
#include "platform/temporary_folder.h"

namespace tensorstream {
namespace {

/// Two groups that share one place, and nothing loaded ahead.
class EngineWait : public ::testing::Test {
 protected:
  std::uint64_t loads() const { return engine_->statistics().loads; }
  std::uint64_t computed() const { return computation_.right() + computation_.wrong(); }

  TestModel model_ = equal_model(2, 20'000);
  const std::unique_ptr<Device> device_ = checking_device();
  const std::unique_ptr<Stream> stream_ = device_->create_stream();
  const std::unique_ptr<Stream> other_ = device_->create_stream();
  const std::unique_ptr<Engine> engine_ =
      open_engine(*device_, model_.in_memory(), smallest_budget_of(model_.in_memory()),
                  with_prefetch(Prefetch::kNone));
  Computation computation_{*engine_, model_};
};

TEST_F(EngineWait, ComputeWaitsForTheCopy) {
  // The copy into the shared place waits for a reader on a stream that is held up.
  ASSERT_TRUE(engine_->acquire(0, *other_));
  Gate gate(*other_);
  engine_->release(0, *other_);
  ASSERT_TRUE(computation_.use(1, *stream_));
  EXPECT_TRUE(stays_false([&] { return computed() > 0; }));
  gate.open();
  stream_->synchronize();
  EXPECT_EQ(computation_.right(), 1U);
}

TEST_F(EngineWait, TheCallerWaitsForTheCopy) {
  ASSERT_TRUE(engine_->acquire(0, *other_));
  Gate gate(*other_);
  engine_->release(0, *other_);
  std::jthread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    gate.open();
  });
  ASSERT_TRUE(computation_.use(1, device_->caller_stream()));
  EXPECT_EQ(computation_.right(), 1U);
}

TEST_F(EngineWait, TheCopyWaitsForTheLastReaderOfItsPlace) {
  ASSERT_TRUE(engine_->acquire(0, *stream_));
  Gate gate(*stream_);
  computation_.compute(0, *stream_);
  engine_->release(0, *stream_);
  ASSERT_TRUE(computation_.use(1, *stream_));
  EXPECT_TRUE(stays_false([&] { return loads() == 2; }));
  gate.open();
  stream_->synchronize();
  EXPECT_EQ(computation_.right(), 2U);
  EXPECT_TRUE(eventually([&] { return loads() == 2; }));
}

TEST_F(EngineWait, AnewCopyOfAGroupWaitsForItsOwnLastReader) {
  ASSERT_TRUE(engine_->acquire(0, *stream_));
  Gate gate(*stream_);
  computation_.compute(0, *stream_);
  engine_->release(0, *stream_);
  const auto bytes = model_.change(0);
  engine_->replace_tensor(0, *bytes, bytes);
  ASSERT_TRUE(computation_.use(0, *stream_));
  EXPECT_TRUE(stays_false([&] { return loads() == 2; }));
  gate.open();
  stream_->synchronize();
  EXPECT_EQ(computation_.right(), 2U);
}

TEST_F(EngineWait, AStreamWaitsForTheUseOnAnother) {
  ASSERT_TRUE(engine_->acquire(0, *other_));
  Gate gate(*other_);
  computation_.compute(0, *other_);
  engine_->release(0, *other_);
  ASSERT_TRUE(computation_.use(0, *stream_));
  EXPECT_TRUE(stays_false([&] { return computed() > 0; }));
  gate.open();
  stream_->synchronize();
  other_->synchronize();
  EXPECT_EQ(computation_.right(), 2U);
  EXPECT_EQ(engine_->statistics().misses, 1U);
}

TEST_F(EngineWait, TheCopyWaitsForAllReadersWhoseLeasesOverlap) {
  const std::unique_ptr<Stream> third = device_->create_stream();
  ASSERT_TRUE(engine_->acquire(0, *other_));
  ASSERT_TRUE(engine_->acquire(0, *stream_));
  Gate gate(*other_);
  computation_.compute(0, *other_);
  engine_->release(0, *other_);
  computation_.compute(0, *stream_);
  engine_->release(0, *stream_);
  ASSERT_TRUE(computation_.use(1, *third));
  EXPECT_TRUE(stays_false([&] { return loads() == 2; }));
  gate.open();
  third->synchronize();
  EXPECT_EQ(computation_.right(), 3U);
}

TEST_F(EngineWait, TheCopyWaitsForAnotherReaderWhereAllIsGivenBack) {
  ASSERT_TRUE(engine_->acquire(0, *other_));
  ASSERT_TRUE(engine_->acquire(0, *stream_));
  Gate gate(*other_);
  computation_.compute(0, *other_);
  engine_->release(0, *other_);
  engine_->release_all(*stream_);
  ASSERT_TRUE(computation_.use(1, *stream_));
  EXPECT_TRUE(stays_false([&] { return loads() == 2; }));
  gate.open();
  stream_->synchronize();
  EXPECT_EQ(computation_.right(), 2U);
}

TEST_F(EngineWait, WhoGivesBackWhatAnotherStreamUsesHoldsNobodyUp) {
  ASSERT_TRUE(engine_->acquire(0, *other_));
  ASSERT_TRUE(engine_->acquire(0, device_->caller_stream()));
  Gate gate(*other_);
  computation_.compute(0, *other_);
  engine_->release(0, *other_);
  std::jthread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(loads(), 1U);  // the engine answers
    gate.open();
  });
  engine_->release(0, device_->caller_stream());
  EXPECT_EQ(computed(), 1U);
}

TEST_F(EngineWait, StreamsThatTakeTurnsComputeRightly) {
  for (int round = 0; round < 60; ++round) {
    Stream& stream = round % 3 == 0   ? *stream_
                     : round % 3 == 1 ? *other_
                                      : device_->caller_stream();
    ASSERT_TRUE(computation_.use(static_cast<GroupId>(round / 2 % 2), stream));
  }
  stream_->synchronize();
  other_->synchronize();
  EXPECT_EQ(computation_.right(), 60U);
}

TEST_F(EngineWait, AcquiringDoesNotWaitForACopyThatCannotFail) {
  ASSERT_TRUE(engine_->acquire(0, *stream_));
  Gate gate(*stream_);
  engine_->release(0, *stream_);
  ASSERT_TRUE(engine_->acquire(1, *stream_));  // would hang if it waited for the copy
  engine_->release(1, *stream_);
  EXPECT_LE(loads(), 1U);
}

TEST(EngineWaitForReads, AcquiringWaitsForAReadThatCanFail) {
  const TestModel model = equal_model(2, 9000);
  ModelSpec spec = model.in_memory();
  const Faults slow{.delay = std::chrono::milliseconds(20)};
  const auto bytes = model.bytes(0);
  spec.sources[0] =
      std::make_shared<FaultyReader>(create_memory_reader("a slow disk", *bytes, bytes), slow);
  const auto device = checking_device();
  const auto stream = device->create_stream();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
  Computation computation(*engine, model);
  ASSERT_TRUE(engine->acquire(0, *stream));
  EXPECT_EQ(engine->statistics().loads, 1U);
  computation.compute(0, *stream);
  engine->release(0, *stream);
  stream->synchronize();
  EXPECT_EQ(computation.right(), 1U);
  EXPECT_GE(engine->statistics().stalled_seconds, 0.020);
  EXPECT_GE(engine->statistics().load_seconds, 0.020);
}

TEST(EngineWaitForLeases, NothingIsLoadedOverALease) {
  const TestModel model = equal_model(2, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = checking_device();
  Stream& caller = device->caller_stream();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNext));
  Computation computation(*engine, model);
  for (GroupId group = 0; group < 2; ++group) {
    ASSERT_TRUE(eventually([&] { return engine->statistics().loads == group + 1; }));
    ASSERT_TRUE(engine->acquire(group, caller));
    EXPECT_TRUE(stays_false([&] { return engine->statistics().loads > group + 1; }));
    computation.compute(group, caller);
    engine->release(group, caller);
  }
  EXPECT_EQ(computation.right(), 2U);
}

/// The device does not check here: a checking one keeps memory whose rights still change.
class EngineDestructionAfterUse : public ::testing::Test {
 protected:
  /// Uses group 0 on `stream`, once what the stream is given to do before is done.
  void use_late(Stream& stream) {
    ASSERT_TRUE(engine_->acquire(0, stream));
    stream.run([] { std::this_thread::sleep_for(std::chrono::milliseconds(30)); });
    computation_->compute(0, stream);
    engine_->release(0, stream);
  }
  void open(std::uint64_t budget_bytes) {
    engine_ = open_engine(*device_, model_.in_files(folder_), budget_bytes,
                          with_prefetch(Prefetch::kNone));
    computation_ = std::make_unique<Computation>(*engine_, model_);
  }

  TestModel model_ = equal_model(3, 300'000);
  const TemporaryFolder folder_;
  const std::unique_ptr<Device> device_ = create_host_device();
  const std::unique_ptr<Stream> stream_ = device_->create_stream();
  const std::unique_ptr<Stream> other_ = device_->create_stream();
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Computation> computation_;
};

TEST_F(EngineDestructionAfterUse, WaitsForWorkThatUsesReleasedPlaces) {
  open(smallest_budget_of(model_.in_memory()));
  use_late(*stream_);
  engine_.reset();
  EXPECT_EQ(computation_->right(), 1U);
}

TEST_F(EngineDestructionAfterUse, WaitsForEveryStreamThatUsesAResident) {
  open(1 << 24);
  ASSERT_TRUE(engine_->settled(0));
  use_late(*stream_);
  ASSERT_TRUE(computation_->use(0, *other_));
  engine_.reset();
  EXPECT_EQ(computation_->right(), 2U);
}

}  // namespace
}  // namespace tensorstream
