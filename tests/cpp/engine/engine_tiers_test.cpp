// Three tiers: groups on the device, at home in host memory, and in files.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "engine/on_gpu.h"
#include "io/faulty_reader.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kGroupBytes = 36 * 4096;
constexpr std::uint64_t kPieceBytes = 2 * 4096;
constexpr std::uint64_t kRingBytes = 8 * 4096;

class EngineTiers : public OnGpu {
 protected:
  static EngineOptions with_homes(std::uint64_t homes) {
    EngineOptions options;
    options.piece_bytes = kPieceBytes;
    options.ram_budget = Budget::create(kRingBytes + homes * kGroupBytes + 100);
    return options;
  }
  ModelSpec in_one_file(const TestModel& model, FileBackend backend) {
    path_ = model.write_safetensors(folder_, "model.safetensors");
    return model.in_safetensors(open_file_reader(path_, backend));
  }
  std::unique_ptr<Engine> open(const ModelSpec& spec, const EngineOptions& options,
                               std::uint64_t places = 3) {
    return open_engine(*device_, spec, places * kGroupBytes, options);
  }
  static void bring_home(Engine& engine) {
    for (const GroupId group : engine.groups_to_bring_home()) engine.bring_home(group);
    static_cast<void>(engine.plan_anew());
  }
  static std::vector<GroupId> from_disk(const Engine& engine) {
    std::vector<GroupId> found;
    const Plan plan = engine.plan();
    for (GroupId group = 0; group < plan.groups.size(); ++group) {
      if (plan.groups[group].from_disk) found.push_back(group);
    }
    return found;
  }

  const TemporaryFolder folder_;
  std::string path_;
};

TEST_P(EngineTiers, WhatFindsNoHomeIsReadFromFilesAndSpreadThroughThePass) {
  for (const FileBackend backend : {FileBackend::kPread, FileBackend::kDirect}) {
    const TestModel model = equal_model(14, kGroupBytes - 300);
    const EngineOptions options = with_homes(6);
    const auto engine = open(in_one_file(model, backend), options);
    const Plan planned = engine->plan();
    EXPECT_EQ(planned.home_bytes, 6 * kGroupBytes);
    EXPECT_EQ(planned.disk_bytes, planned.streamed_bytes - planned.home_bytes);
    bring_home(*engine);
    EXPECT_TRUE(engine->groups_to_bring_home().empty());
    EXPECT_EQ(engine->plan().disk_bytes, planned.disk_bytes);
    const std::vector<GroupId> disk = from_disk(*engine);
    const std::size_t streamed = planned.streamed_bytes / kGroupBytes;
    ASSERT_EQ(disk.size(), streamed - 6);
    for (std::size_t i = 2; i < disk.size(); ++i) EXPECT_GT(disk[i], disk[i - 2] + 2);

    ReadBack read(*engine, model, *stream_);
    read.pass();
    stream_->synchronize();
    const std::uint64_t before = engine->statistics().streamed_disk_bytes;
    for (int i = 0; i < 4; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
    const Statistics after = engine->statistics();
    // The last pass may have begun to load for the next.
    const std::uint64_t passes = 4 * disk.size() * (kGroupBytes - 300);
    EXPECT_GE(after.streamed_disk_bytes - before, passes - 4 * kGroupBytes);
    EXPECT_LE(after.streamed_disk_bytes - before, passes + 4 * kGroupBytes);
    EXPECT_GT(after.read_ahead_bytes, 0U);  // how much is a matter of time
    EXPECT_LE(after.read_ahead_bytes, after.streamed_disk_bytes);
  }
}

TEST_P(EngineTiers, TheRamBudgetIsACeilingOverHomesAndStaging) {
  for (const std::uint64_t homes : {0U, 1U, 5U, 9U, 20U}) {
    const TestModel model = equal_model(12, kGroupBytes - 300);
    const EngineOptions options = with_homes(homes);
    const auto engine = open(in_one_file(model, FileBackend::kDirect), options);
    bring_home(*engine);
    ReadBack read(*engine, model, *stream_);
    for (int i = 0; i < 3; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
    const Statistics statistics = engine->statistics();
    EXPECT_EQ(statistics.ram_budget_bytes, options.ram_budget->limit_bytes());
    EXPECT_EQ(statistics.staging_bytes, kRingBytes);
    EXPECT_EQ(statistics.ram_held_bytes, statistics.pinned_bytes + statistics.staging_bytes);
    EXPECT_LE(statistics.peak_ram_held_bytes, statistics.ram_budget_bytes);
    EXPECT_EQ(statistics.pinned_bytes, engine->plan().home_bytes);
    EXPECT_EQ(engine->plan().home_bytes / kGroupBytes,
              std::min(homes, engine->plan().streamed_bytes / kGroupBytes));
  }
}

TEST_P(EngineTiers, BudgetsMoveAndHomesStay) {
  const TestModel model = equal_model(12, kGroupBytes - 300);
  const EngineOptions options = with_homes(4);
  const auto engine = open(in_one_file(model, FileBackend::kDirect), options);
  bring_home(*engine);
  ReadBack read(*engine, model, *stream_);
  for (const std::uint64_t places : {6U, 2U, 9U, 1U, 12U, 3U}) {
    engine->set_budget(places * kGroupBytes);
    bring_home(*engine);
    for (int i = 0; i < 2; ++i) {
      for (GroupId group = 0; group < model.group_count(); ++group) {
        ASSERT_TRUE(engine->settled(group) || read.use(group)) << "group " << group;
      }
    }
    EXPECT_EQ(read.wrong(), 0);
    EXPECT_LE(engine->statistics().peak_ram_held_bytes, options.ram_budget->limit_bytes());
    EXPECT_EQ(engine->statistics().pinned_bytes, 4 * kGroupBytes);
  }
}

TEST_P(EngineTiers, BytesThatAreReplacedAfterTheyWereReadAheadAreNotUsed) {
  TestModel model = equal_model(8, kGroupBytes - 300);
  const auto engine = open(in_one_file(model, FileBackend::kDirect), with_homes(0));
  ReadBack read(*engine, model, *stream_);
  for (int round = 0; round < 20; ++round) {
    read.pass();
    const TensorId tensor = static_cast<TensorId>(3 * round) % 8;
    if (engine->settled(tensor)) continue;
    const auto bytes = model.change(tensor);
    engine->replace_tensor(tensor, *bytes, bytes);
    read.pass();
    ASSERT_EQ(read.wrong(), 0) << round;
  }
}

TEST_P(EngineTiers, AnyOrderIsRight) {
  const TestModel model = uneven_model(10, 5);
  const ModelSpec spec = in_one_file(model, FileBackend::kDirect);
  EngineOptions options;
  options.piece_bytes = kPieceBytes;
  options.ram_budget = Budget::create(kRingBytes + 60'000);
  const auto engine = open_engine(
      *device_, spec, smallest_budget_of(spec, ComputePlace::kAccelerator) * 2, options);
  bring_home(*engine);
  ReadBack read(*engine, model, *stream_);
  std::mt19937_64 random(7);
  for (int use = 0; use < 300; ++use) {
    const auto group = static_cast<GroupId>(random() % model.group_count());
    ASSERT_TRUE(engine->settled(group) || read.use(group));
    if (use % 50 == 0) read.pass();
  }
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineTiers, AReadThatFailsIsTheErrorOfTheGroupThatNeedsItAndTheNextForwardIsRight) {
  const TestModel model = equal_model(8, kGroupBytes - 300);
  path_ = model.write_safetensors(folder_, "model.safetensors");
  // Behind those that bring residents to the device: a page is a read.
  constexpr int kReads = kGroupBytes / 4096;
  int raised = 0;
  for (const int failing : {3, 4, 15, kReads, kReads + 1, 3 * kReads + 20, 8 * kReads + 7}) {
    const auto reader = std::make_shared<FaultyReader>(
        open_file_reader(path_, FileBackend::kPread), Faults{.failing_read = 2 * kReads + failing});
    const auto engine = open(model.in_safetensors(reader), with_homes(0));
    ReadBack read(*engine, model, *stream_);
    int errors = 0;
    for (int use = 0; use < 24; ++use) {
      const auto group = static_cast<GroupId>(use % 8);
      if (engine->settled(group)) continue;
      try {
        ASSERT_TRUE(read.use(group));
      } catch (const IoError& error) {
        EXPECT_EQ(error.path(), path_);
        ++errors;
        ASSERT_TRUE(read.use(group));
      }
    }
    EXPECT_EQ(read.wrong(), 0) << failing;
    // A load ahead that failed is tried again when somebody waits for it.
    EXPECT_LE(errors, 1) << failing;
    EXPECT_GT(reader->reads(), 2 * kReads + failing);
    raised += errors;
  }
  EXPECT_GT(raised, 0);
}

TEST_P(EngineTiers, AFileThatWasCutIsAnErrorAndNoWrongBytes) {
  for (const FileBackend backend : {FileBackend::kPread, FileBackend::kDirect}) {
    const TestModel model = equal_model(8, kGroupBytes - 300);
    const auto engine = open(in_one_file(model, backend), with_homes(2));
    bring_home(*engine);
    ReadBack read(*engine, model, *stream_);
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
    std::filesystem::resize_file(path_, kGroupBytes);
    int errors = 0;
    for (int use = 0; use < 16; ++use) {
      const auto group = static_cast<GroupId>(use % 8);
      if (engine->settled(group)) continue;
      try {
        ASSERT_TRUE(read.use(group));
      } catch (const IoError& error) {
        EXPECT_EQ(error.path(), path_);
        ++errors;
      }
    }
    EXPECT_GE(errors, 4);
    EXPECT_EQ(read.wrong(), 0);
  }
}

TEST_P(EngineTiers, ASlowDiskIsSlowAndRight) {
  const TestModel model = equal_model(6, kGroupBytes - 300);
  path_ = model.write_safetensors(folder_, "model.safetensors");
  const auto reader =
      std::make_shared<FaultyReader>(open_file_reader(path_, FileBackend::kPread),
                                     Faults{.delay = std::chrono::microseconds(500)});
  const auto engine = open(model.in_safetensors(reader), with_homes(1));
  bring_home(*engine);
  ReadBack read(*engine, model, *stream_);
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  EXPECT_GT(engine->statistics().stalled_seconds, 0.005);
}

TEST_P(EngineTiers, ThatGoesWhileItReadsAheadLeavesNothingUnderWay) {
  const TestModel model = equal_model(8, kGroupBytes - 300);
  for (int round = 0; round < 10; ++round) {
    const auto engine = open(in_one_file(model, FileBackend::kDirect), with_homes(1));
    ReadBack read(*engine, model, *stream_);
    for (GroupId group = 0; group < static_cast<GroupId>(round % 8); ++group) {
      ASSERT_TRUE(engine->settled(group) || read.use(group));
    }
    EXPECT_EQ(read.wrong(), 0);
  }
}

TS_ON_EACH_GPU(EngineTiers);

}  // namespace
}  // namespace tensorstream
