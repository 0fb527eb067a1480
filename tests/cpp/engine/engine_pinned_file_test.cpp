// Weights in files in RAM, from which a GPU copies by itself.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <latch>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "engine/on_gpu.h"
#include "io/file_opener.h"
#include "memory/budget.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kGroupBytes = 36 * 4096;
constexpr std::uint64_t kTensorBytes = kGroupBytes - 300;
constexpr std::uint64_t kPieceBytes = 2 * 4096;
constexpr std::uint64_t kRingBytes = 8 * 4096;

class EnginePinnedFile : public OnGpu {
 protected:
  /// What opens files for the fixture's device, which outlives it.
  FileOpener opener(FileBackend backend = FileBackend::kPread) const {
    return FileOpener(backend, std::shared_ptr<Device>(std::shared_ptr<void>(), device_.get()));
  }
  ModelSpec in_one_file(const TestModel& model, FileBackend backend = FileBackend::kPread) {
    path_ = model.write_safetensors(folder_, "model.safetensors");
    return model.in_safetensors(opener(backend).open(path_));
  }
  /// Host memory has room for the staging ring, and for no home.
  static EngineOptions without_homes(Prefetch prefetch = Prefetch::kAdaptive) {
    EngineOptions options = with_prefetch(prefetch);
    options.piece_bytes = kPieceBytes;
    options.ram_budget = Budget::create(kRingBytes + 100);
    return options;
  }
  std::unique_ptr<Engine> open(const TestModel& model, std::uint64_t places = 3,
                               const EngineOptions& options = without_homes()) {
    return open_engine(*device_, in_one_file(model), places * kGroupBytes, options);
  }

  /// As if somebody had written to the file, whom the kernel lets do that after a while.
  void touch_file() const {
    const timespec times[2] = {{0, UTIME_NOW}, {1, 0}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  }

  const TemporaryFolder folder_{"/dev/shm/"};
  std::string path_;
};

TEST_P(EnginePinnedFile, EachLoadIsCopiedFromTheFileAndNothingIsBroughtHome) {
  for (const FileBackend backend : {FileBackend::kPread, FileBackend::kMmap}) {
    for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kNext, Prefetch::kAhead}) {
      const TestModel model = equal_model(8, kTensorBytes);
      EngineOptions options = without_homes(prefetch);
      if (prefetch == Prefetch::kAhead) options.ram_budget = nullptr;
      const auto engine =
          open_engine(*device_, in_one_file(model, backend), 3 * kGroupBytes, options);
      EXPECT_TRUE(engine->groups_to_bring_home().empty());
      EXPECT_EQ(engine->plan().disk_bytes, 0U);
      EXPECT_EQ(engine->plan().home_bytes, 0U);
      ReadBack read(*engine, model, *stream_);
      for (int i = 0; i < 4; ++i) read.pass();
      EXPECT_EQ(read.wrong(), 0);
      const Statistics statistics = engine->statistics();
      EXPECT_GE(statistics.streamed_ram_bytes, 4 * kTensorBytes);
      EXPECT_EQ(statistics.streamed_disk_bytes, 0U);
      EXPECT_EQ(statistics.pinned_bytes, 0U);
    }
  }
}

TEST_P(EnginePinnedFile, AnyOrderIsRightWhereverBudgetsAre) {
  const TestModel model = uneven_model(10, 5);
  const ModelSpec spec = in_one_file(model);
  const std::uint64_t least = smallest_budget_of(spec, ComputePlace::kAccelerator);
  const auto engine = open_engine(*device_, spec, 2 * least, without_homes());
  ReadBack read(*engine, model, *stream_);
  std::mt19937_64 random(7);
  for (int use = 0; use < 300; ++use) {
    if (use % 60 == 0) engine->set_budget(least * (1 + random() % 4));
    const auto group = static_cast<GroupId>(random() % model.group_count());
    ASSERT_TRUE(engine->settled(group) || read.use(group));
  }
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EnginePinnedFile, AFileThatIsOpenForWritingIsRead) {
  const TestModel model = equal_model(8, kTensorBytes);
  const auto engine = open(model);
  ReadBack read(*engine, model, *stream_);
  read.pass();
  const int writer = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0) << "nobody waits for whom between loads";
  const std::uint64_t before = engine->statistics().streamed_disk_bytes;
  for (int i = 0; i < 3; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  EXPECT_GE(engine->statistics().streamed_disk_bytes, before + kTensorBytes);
  ::close(writer);
  for (int i = 0; i < 3; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EnginePinnedFile, WhoWantsToWriteIsLetInWhileLoadsGoOn) {
  const TestModel model = equal_model(8, kTensorBytes);
  const auto engine = open(model);
  std::atomic<bool> over = false;
  std::thread writer([&] {
    for (int i = 0; i < 5; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const int descriptor = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);  // waits
      EXPECT_GE(descriptor, 0);
      ::close(descriptor);
    }
    over = true;
  });
  ReadBack read(*engine, model, *stream_);
  const Clock::time_point start = Clock::now();
  while (!over && seconds_since(start) < 40) read.pass();  // less than the kernel's patience
  EXPECT_TRUE(over);
  writer.join();
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EnginePinnedFile, AFileThatChangedIsAnErrorOfTheNextLoad) {
  const TestModel model = equal_model(8, kTensorBytes);
  const auto engine = open(model, 3, without_homes(Prefetch::kNone));
  ReadBack read(*engine, model, *stream_);
  read.pass();
  ASSERT_EQ(::truncate(path_.c_str(), 5000), 0);
  int failed = 0;
  for (GroupId group = 0; group < model.group_count(); ++group) {
    if (engine->settled(group)) continue;
    try {
      static_cast<void>(read.use(group));
    } catch (const IoError& error) {
      EXPECT_THAT(error.what(), HasSubstr(path_));
      ++failed;
    }
  }
  EXPECT_GE(failed, 5);
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EnginePinnedFile, AFileThatChangesDuringACopyIsAnErrorOfThatLoad) {
  const TestModel model = equal_model(8, kTensorBytes);
  const auto engine = open(model, 3, without_homes(Prefetch::kNone));
  GroupId streamed = 0;
  while (engine->settled(streamed)) ++streamed;
  // The end of each copy is a callback, which comes after this one.
  std::latch entered(1);
  std::latch touched(1);
  stream_->run([&] {
    entered.count_down();
    touched.wait();
  });
  entered.wait();
  std::atomic<int> right = 0;
  std::atomic<int> failed = 0;
  std::thread other([&] {
    const auto stream = device_->create_stream();
    for (GroupId group = streamed; group < model.group_count(); ++group) {
      try {
        if (!engine->acquire(group, *stream)) continue;
        ++right;
        engine->release(group, *stream);
      } catch (const IoError&) {
        ++failed;
      }
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // for its copy to begin
  touch_file();
  touched.count_down();
  other.join();
  EXPECT_EQ(right, 0);
  EXPECT_EQ(failed, static_cast<int>(model.group_count() - streamed));
}

TEST_P(EnginePinnedFile, WeightsThatAreReplacedAreNotTheFiles) {
  TestModel model = equal_model(8, kTensorBytes);
  const auto engine = open(model);
  ReadBack read(*engine, model, *stream_);
  for (TensorId tensor = 0; tensor < 6; ++tensor) {
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
    const auto bytes = model.change(tensor);
    engine->replace_tensor(tensor, *bytes, bytes);
  }
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EnginePinnedFile, WeightsThatAreToCrossCodedAreBroughtHome) {
  TestModel model(5);
  for (int group = 0; group < 6; ++group) model.add_typed_group({{Dtype::kBf16, 1'000'000}});
  EngineOptions options;
  options.compression = 3;
  options.piece_bytes = 1_MiB;
  const auto engine = open_engine(*device_, in_one_file(model), 12_MiB, options);
  const std::vector<GroupId> wanted = engine->groups_to_bring_home();
  EXPECT_FALSE(wanted.empty());
  for (const GroupId group : wanted) engine->bring_home(group);
  ReadBack read(*engine, model, *stream_);
  for (int i = 0; i < 3; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  EXPECT_GT(engine->statistics().pinned_bytes, 0U);
}

TS_ON_EACH_GPU(EnginePinnedFile);

}  // namespace
}  // namespace tensorstream
