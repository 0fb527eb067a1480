// Models whose weights are frames in files: what finds no home crosses the link as it lies on the
// disk, and the device decodes it.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "codec/frame_format.h"
#include "engine/load.h"
#include "engine/on_gpu.h"
#include "engine/packed_model.h"
#include "engine/ring_bytes.h"
#include "platform/dropped_pages.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kStagedBytes = 64_MiB;

class EngineFrames : public OnGpu {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (device_ != nullptr) packed_ = std::make_unique<PackedModel>();
  }
  /// No group has a home where `homes_bytes` is 0.
  static EngineOptions options_for(std::optional<std::uint32_t> compression,
                                   std::uint64_t homes_bytes = 0) {
    EngineOptions options;
    options.compression = compression;
    options.ram_budget = Budget::create(kStagedBytes + homes_bytes);
    return options;
  }
  static TestModel deep_model() {
    TestModel model(12);
    for (int i = 0; i < 8; ++i) model.add_typed_group({{Dtype::kBf16, 1'500'000}});
    return model;
  }
  std::shared_ptr<Reader> reader(FileBackend backend) { return reader(backend, *packed_); }
  std::shared_ptr<Reader> reader(FileBackend backend, const PackedModel& packed) {
    const std::shared_ptr<Device> not_owned(std::shared_ptr<void>(), device_.get());
    return open_packed_reader(packed.path(), FileOpener(backend, not_owned));
  }
  static std::uint64_t ring_bytes(const ModelSpec& spec) {
    return ring_bytes_of(spec, EngineOptions());
  }
  std::unique_ptr<Engine> open(const ModelSpec& spec, const EngineOptions& options) {
    const std::uint64_t groups_bytes = smallest_budget_of(spec, ComputePlace::kAccelerator);
    return open_engine(*device_, spec, groups_bytes + ring_bytes(spec), options);
  }

  std::unique_ptr<PackedModel> packed_;
};

TEST_P(EngineFrames, EveryBitIsThereOfFramesThatTheDeviceDecodes) {
  for (const FileBackend backend :
       {FileBackend::kPread, FileBackend::kDirect, FileBackend::kCached}) {
    if (backend == FileBackend::kDirect) {
      static_cast<void>(drop_from_page_cache(packed_->path()));
    }
    const ModelSpec spec = packed_->spec(reader(backend));
    const auto engine = open(spec, options_for(1));
    ReadBack read(*engine, packed_->model, *stream_);
    for (int i = 0; i < 4; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0);
    const Statistics statistics = engine->statistics();
    EXPECT_EQ(statistics.pinned_bytes, 0U);
    // What the disk gave is less than the weights that came of it.
    EXPECT_GT(statistics.streamed_disk_bytes, 0U);
    EXPECT_LT(statistics.streamed_disk_bytes, statistics.decoded_bytes * 9 / 10);
    const Plan plan = engine->plan();
    EXPECT_LT(plan.disk_bytes, plan.streamed_bytes * 9 / 10);
    EXPECT_EQ(plan.link_bytes, plan.disk_bytes);
  }
}

/// Where nothing is coded there is no ring to decode from: the host decodes.
TEST_P(EngineFrames, EveryBitIsThereOfFramesThatTheHostDecodes) {
  const ModelSpec spec = packed_->spec(reader(FileBackend::kDirect));
  const auto engine = open_engine(
      *device_, spec, smallest_budget_of(spec, ComputePlace::kAccelerator), options_for(0));
  ReadBack read(*engine, packed_->model, *stream_);
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  const Statistics statistics = engine->statistics();
  EXPECT_EQ(statistics.streamed_disk_bytes, statistics.decoded_bytes);
  EXPECT_LT(engine->plan().disk_bytes, engine->plan().link_bytes);
}

/// One thread of the host decodes less than a disk has.
TEST_P(EngineFrames, AreDecodedByTheDeviceWhereNobodySaysOtherwise) {
  const EngineOptions options = options_for(std::nullopt);
  const PackedModel packed(deep_model());
  const ModelSpec spec = packed.spec(reader(FileBackend::kDirect, packed));
  const auto engine = open(spec, options);
  EXPECT_EQ(engine->statistics().compression.level, 1U) << engine->statistics().compression.reason;
  ReadBack read(*engine, packed.model, *stream_);
  for (int i = 0; i < 3; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  EXPECT_LT(engine->statistics().streamed_disk_bytes, engine->statistics().decoded_bytes);
}

TEST_P(EngineFrames, SomeAtHomeAndSomeFromTheDisk) {
  const PackedModel packed(deep_model());
  const ModelSpec spec = packed.spec(reader(FileBackend::kDirect, packed));
  const auto engine = open(spec, options_for(1, 9_MiB));
  for (const GroupId group : engine->groups_to_bring_home()) engine->bring_home(group);
  static_cast<void>(engine->plan_anew());
  const Plan plan = engine->plan();
  EXPECT_GT(plan.home_bytes, 0U);
  EXPECT_GT(plan.disk_bytes, 0U);
  ReadBack read(*engine, packed.model, *stream_);
  for (int i = 0; i < 4; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineFrames, DamageIsTheErrorOfTheGroupThatNeedsIt) {
  packed_->damage(3);
  const ModelSpec spec = packed_->spec(reader(FileBackend::kDirect));
  const auto engine = open(spec, options_for(1));
  ReadBack read(*engine, packed_->model, *stream_);
  for (int pass = 0; pass < 3; ++pass) {
    EXPECT_TRUE(read.use(0));
    EXPECT_THROW(read.use(1), FormatError);
    for (const GroupId group : {2U, 3U}) EXPECT_TRUE(read.use(group));
  }
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineFrames, AFileThatIsWrittenToIsAnError) {
  for (const FileBackend backend : {FileBackend::kDirect, FileBackend::kCached}) {
    const PackedModel packed(deep_model());
    const ModelSpec spec = packed.spec(reader(backend, packed));
    const auto engine = open(spec, options_for(1));
    ReadBack read(*engine, packed.model, *stream_);
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
    std::filesystem::last_write_time(
        packed.path(), std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
    EXPECT_THROW(
        {
          for (int pass = 0; pass < 2; ++pass) read.pass();
        },
        IoError);
  }
}

TEST_P(EngineFrames, WeightsThatWereWrittenToAreWhatIsUsed) {
  const ModelSpec spec = packed_->spec(reader(FileBackend::kDirect));
  const auto engine = open(spec, options_for(1));
  ReadBack read(*engine, packed_->model, *stream_);
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
  const auto written =
      std::make_shared<Bytes>(packed_->model.bytes(0)->size(), static_cast<std::byte>(0x5A));
  engine->replace_tensor(0, *written, written);
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 2);  // of the model's own bytes, once a pass
  stream_->synchronize();
  ASSERT_TRUE(engine->acquire(0, *stream_));
  Bytes now(written->size());
  stream_->copy_to_host(now.data(), engine->places(0)[0].data, now.size());
  stream_->synchronize();
  engine->release(0, *stream_);
  EXPECT_EQ(now, *written);
}

TS_ON_EACH_GPU(EngineFrames);

/// Says how much it was asked for; its frames are as small as they get.
class SmallFrames final : public Reader {
 public:
  const std::string& name() const noexcept override { return name_; }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return 10_GiB; }
  void read(std::uint64_t /*offset_bytes*/, std::span<std::byte> /*out*/) override {}
  std::optional<FrameSpan> frames_at(std::uint64_t offset_bytes, std::uint64_t decoded_bytes,
                                     std::uint64_t /*most_stored_bytes*/) const override {
    const std::uint64_t stored_bytes = 64 * (decoded_bytes / kFrameBytes);
    return FrameSpan{offset_bytes, decoded_bytes, stored_bytes, 0, stored_bytes};
  }

 private:
  const std::string name_ = "small frames";
};

TEST(LoadOfFrames, HasNoMoreFramesInARead) {
  Load load(0, Load::Reads::kStaged, 8_MiB);
  auto* const unread = reinterpret_cast<std::byte*>(1_GiB);
  load.add({std::make_shared<SmallFrames>(), 0, 1_GiB}, unread, 16_MiB);
  const std::vector<StagedRead> reads = load.staged_reads(8_MiB);
  ASSERT_EQ(reads.size(), 2U);
  EXPECT_EQ(reads[0].size_bytes, kMostStagedFrames * kFrameBytes);
  EXPECT_EQ(load.disk_bytes(), 64 * (1_GiB / kFrameBytes));
  EXPECT_EQ(load.decoded_bytes(), 1_GiB);
}

}  // namespace
}  // namespace tensorstream
