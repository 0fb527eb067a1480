// Weights that are read from files straight to their places on the device, by the fake driver's
// cuFile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "device/gate.h"
#include "engine/on_gpu.h"
#include "engine/packed_reader.h"
#include "io/file_opener.h"
#include "made_bytes/weights.h"
#include "memory/budget.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::uint64_t kGroupBytes = 36 * 4096;
constexpr std::uint64_t kTensorBytes = kGroupBytes - 300;
constexpr std::uint64_t kPieceBytes = 2 * 4096;
constexpr std::uint64_t kRingBytes = 8 * 4096;

class EngineGpudirect : public OnGpu {
 protected:
  /// What opens files for the fixture's device, which outlives it.
  FileOpener opener() const {
    return FileOpener(FileBackend::kGpudirect,
                      std::shared_ptr<Device>(std::shared_ptr<void>(), device_.get()));
  }
  ModelSpec in_one_file(const TestModel& model) {
    path_ = model.write_safetensors(folder_, "model.safetensors");
    return model.in_safetensors(opener().open(path_));
  }
  static EngineOptions with_homes(std::uint64_t homes, Prefetch prefetch = Prefetch::kAdaptive) {
    EngineOptions options = with_prefetch(prefetch);
    options.piece_bytes = kPieceBytes;
    options.ram_budget = Budget::create(kRingBytes + homes * kGroupBytes + 100);
    return options;
  }
  std::unique_ptr<Engine> open(const TestModel& model, const EngineOptions& options,
                               std::uint64_t places = 3) {
    auto engine = open_engine(*device_, in_one_file(model), places * kGroupBytes, options);
    for (const GroupId group : engine->groups_to_bring_home()) engine->bring_home(group);
    static_cast<void>(engine->plan_anew());
    return engine;
  }
  long long reads() const { return fake_.calls("cuFileRead"); }

  const TemporaryFolder folder_;
  std::string path_;
};

TEST_P(EngineGpudirect, WhatIsInFilesIsReadToItsPlaceAndNothingIsCopied) {
  for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kNext, Prefetch::kAhead}) {
    const TestModel model = equal_model(8, kTensorBytes);
    const auto engine = open(model, with_homes(0, prefetch));
    ReadBack read(*engine, model, *stream_);
    const long long copies = fake_.calls("cuMemcpyHtoDAsync_v2");
    const long long before = reads();
    for (int i = 0; i < 4; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
    EXPECT_EQ(fake_.calls("cuMemcpyHtoDAsync_v2"), copies);
    const Statistics statistics = engine->statistics();
    EXPECT_GE(reads() - before, 4);
    EXPECT_GE(statistics.streamed_disk_bytes, 4 * kTensorBytes);
    EXPECT_EQ(statistics.read_ahead_bytes, 0U);
  }
}

TEST_P(EngineGpudirect, HomesAndFilesAreBothRight) {
  for (const std::uint64_t homes : {2U, 5U}) {
    const TestModel model = equal_model(12, kTensorBytes);
    const auto engine = open(model, with_homes(homes));
    EXPECT_EQ(engine->plan().home_bytes, homes * kGroupBytes);
    ReadBack read(*engine, model, *stream_);
    for (int i = 0; i < 5; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
    EXPECT_GT(engine->statistics().streamed_ram_bytes, 0U);
    EXPECT_GT(engine->statistics().streamed_disk_bytes, 0U);
  }
}

TEST_P(EngineGpudirect, AnyOrderIsRightHoweverShortReadsAre) {
  fake_.set("cufile_longest_read", 1234);
  const TestModel model = uneven_model(10, 5);
  const ModelSpec spec = in_one_file(model);
  EngineOptions options = with_homes(0);
  options.ram_budget = Budget::create(kRingBytes + 60'000);
  const auto engine = open_engine(
      *device_, spec, smallest_budget_of(spec, ComputePlace::kAccelerator) * 2, options);
  ReadBack read(*engine, model, *stream_);
  std::mt19937_64 random(7);
  for (int use = 0; use < 200; ++use) {
    const auto group = static_cast<GroupId>(random() % model.group_count());
    ASSERT_TRUE(engine->settled(group) || read.use(group));
    if (use % 50 == 0) read.pass();
  }
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineGpudirect, BudgetsMove) {
  const TestModel model = equal_model(12, kTensorBytes);
  const auto engine = open(model, with_homes(3));
  ReadBack read(*engine, model, *stream_);
  for (const std::uint64_t places : {6U, 2U, 9U, 1U, 12U, 3U}) {
    engine->set_budget(places * kGroupBytes);
    for (int i = 0; i < 2; ++i) {
      for (GroupId group = 0; group < model.group_count(); ++group) {
        ASSERT_TRUE(engine->settled(group) || read.use(group)) << "group " << group;
      }
    }
    EXPECT_EQ(read.wrong(), 0) << places << " places";
  }
}

/// A group of which the user has written one tensor: that is RAM, the other still a file.
TEST_P(EngineGpudirect, WhatOfAGroupIsInRamGoesThroughTheRing) {
  TestModel model;
  for (int group = 0; group < 6; ++group) model.add_group({20'000, 50'000, 4097});
  const auto engine = open(model, with_homes(0), 2);
  ReadBack read(*engine, model, *stream_);
  for (int round = 0; round < 6; ++round) {
    const TensorId tensor = static_cast<TensorId>(3 * round) + 1;
    const auto bytes = model.change(tensor);
    if (engine->settled(static_cast<GroupId>(round))) continue;
    engine->replace_tensor(tensor, *bytes, bytes);
    for (int i = 0; i < 2; ++i) {
      for (GroupId group = 0; group < model.group_count(); ++group) {
        ASSERT_TRUE(engine->settled(group) || read.use(group));
      }
    }
    ASSERT_EQ(read.wrong(), 0) << round;
  }
  EXPECT_GT(engine->statistics().streamed_ram_bytes, 0U);
}

TEST_P(EngineGpudirect, AReadWaitsForTheLastReaderOfItsPlaceAndHoldsNobodyUp) {
  fake_.set("pageable_copies_wait", 0);  // a copy behind the gate is enqueued
  const TestModel model = equal_model(2, kTensorBytes);
  const ModelSpec spec = in_one_file(model);
  const auto engine =
      open_engine(*device_, spec, smallest_budget_of(spec, ComputePlace::kAccelerator),
                  with_homes(0, Prefetch::kNone));
  ReadBack read(*engine, model, *stream_);
  const auto other = device_->create_stream();
  ReadBack read_next(*engine, model, *other);
  for (GroupId round = 0; round < 3; ++round) {
    const GroupId group = round % 2;
    ASSERT_TRUE(engine->acquire(group, *stream_));
    const long long before = reads();
    Gate gate(*stream_);
    ASSERT_TRUE(read.use(group));  // behind the gate
    engine->release(group, *stream_);
    std::jthread next([&] { EXPECT_TRUE(read_next.use(1 - group)); });
    EXPECT_TRUE(stays_false([&] {
      static_cast<void>(engine->statistics());  // would hang if the wait held the lock
      return reads() > before;
    }));
    gate.open();
    next.join();
    EXPECT_GT(reads(), before);
    EXPECT_EQ(read.wrong() + read_next.wrong(), 0);
  }
}

TEST_P(EngineGpudirect, AReadThatFailsIsTheErrorOfTheGroupThatNeedsItAndTheNextForwardIsRight) {
  const TestModel model = equal_model(6, kTensorBytes);
  for (const int failure : {EIO, static_cast<int>(CufileResult::kIoError)}) {
    const auto engine = open(model, with_homes(0, Prefetch::kNone), 1);
    ReadBack read(*engine, model, *stream_);
    read.pass();
    fake_.fail("cuFileRead", 3, failure);
    int errors = 0;
    for (GroupId group = 0; group < model.group_count(); ++group) {
      try {
        ASSERT_TRUE(read.use(group));
      } catch (const IoError& error) {
        EXPECT_EQ(failure, EIO);
        EXPECT_EQ(error.path(), path_);
        ++errors;
      } catch (const CufileError& error) {
        EXPECT_EQ(error.read().result, failure);
        EXPECT_EQ(error.read().path, path_);
        ++errors;
      }
    }
    EXPECT_EQ(errors, 1);
    for (int i = 0; i < 2; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
  }
}

/// Readers may call the device when they go.
TEST_P(EngineGpudirect, AReaderThatIsReplacedUnderALoadDoesNotGoInACallback) {
  stream_.reset();  // of a device that delays by callbacks, which wait for one another here
  device_ = create_cuda_device(on_fake(Checking::kOff));
  stream_ = device_->create_stream();
  TestModel model = equal_model(4, kTensorBytes);
  ModelSpec spec = model.in_files(folder_);
  for (TensorId id = 0; id < 4; ++id) {
    spec.sources[id] = opener().open(folder_.path("tensor_" + std::to_string(id)));
  }
  const auto engine =
      open_engine(*device_, std::move(spec), 2 * kGroupBytes, with_homes(0, Prefetch::kNext));
  ReadBack read(*engine, model, *stream_);
  read.pass();
  read.pass();
  const auto loads = [&] { return engine->statistics().loads; };
  ASSERT_TRUE(
      eventually([&] { return stays_false([&, then = loads()] { return loads() != then; }); }));
  stream_->synchronize();
  const long long before = reads();
  const auto other = device_->create_stream();
  Gate gate(*other);  // callbacks run one after another: none runs now
  fake_.set("pageable_copies_wait", 0);
  const GroupId first = engine->settled(0) ? 1 : 0;
  ASSERT_TRUE(read.use(first));
  ASSERT_TRUE(eventually([&] { return reads() > before; }));
  int replaced = 0;
  for (TensorId id = first + 1; id < 4; ++id) {
    if (engine->settled(id)) continue;
    ++replaced;
    const auto bytes = model.change(id);
    engine->replace_tensor(id, *bytes, bytes);
  }
  gate.open();
  EXPECT_TRUE(eventually([&] { return fake_.get("files") == 4 - replaced; }));
  EXPECT_EQ(fake_.calls("cuFile in a host function"), 0);
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineGpudirect, PackedFilesAreRefusedWithTheReason) {
  const std::string path = folder_.write("packed.safetensors", patterned_bytes(1000));
  try {
    open_packed_reader(path, opener());
    FAIL() << "opens";
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr(path), HasSubstr("is packed"), HasSubstr("backend=\"direct\"")));
  }
}

INSTANTIATE_TEST_SUITE_P(FakeCuda, EngineGpudirect,
                         ::testing::Values(Gpu{"Unchecked", on_fake(Checking::kOff)},
                                           Gpu{"Checked", on_fake(Checking::kOn)}),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace tensorstream
