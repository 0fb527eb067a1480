// Residents that may give way, used on the device's default stream: the driver is told of their use
// only where somebody waits for it.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <list>
#include <memory>
#include <thread>
#include <utility>

#include "base/units.h"
#include "device/gate.h"
#include "engine/on_gpu.h"
#include "made_bytes/weights.h"
#include "memory/pinned_memory.h"

namespace tensorstream {
namespace {

/// Reads places of a leased group into pinned memory: the caller is not held up by what the stream
/// waits for.
class LateRead {
 public:
  LateRead(Device& device, const TestModel& model) : device_(device), model_(model) {}

  bool use(Engine& engine, GroupId group, Stream& stream) {
    if (!engine.acquire(group, stream)) return false;
    for (const TensorPlace& place : engine.places(group)) {
      Read& read = read_.emplace_back(
          Read{model_.bytes(place.tensor), {device_, place.size_bytes, "a late reader"}});
      EXPECT_EQ(read.bytes.pinned_bytes(), place.size_bytes);
      stream.copy_to_host(read.bytes.data(), place.data, place.size_bytes);
    }
    engine.release(group, stream);
    return true;
  }
  void pass(Engine& engine, Stream& stream) {
    for (GroupId group = 0; group < model_.group_count(); ++group) {
      ASSERT_TRUE(use(engine, group, stream)) << "group " << group;
    }
  }
  /// How many tensors were wrong, once the stream is done.
  int wrong(Stream& stream) {
    stream.synchronize();
    return static_cast<int>(std::ranges::count_if(
        read_, [](const Read& read) { return !same_bytes(read.bytes.bytes(), *read.truth); }));
  }

 private:
  struct Read {
    std::shared_ptr<const Bytes> truth;
    PinnedMemory bytes;
  };
  Device& device_;
  const TestModel& model_;
  std::list<Read> read_;
};

class EngineDefaultStream : public OnGpu {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped()) return;
    default_stream_ = &device_->stream_of(0);
  }
  /// All of the model in memory of its own, with `room_bytes` beside it, and read once on the
  /// default stream.
  std::unique_ptr<Engine> open_resident(const TestModel& model, std::uint64_t room_bytes = 0) {
    const ModelSpec spec = model.in_memory();
    EngineOptions options = with_prefetch(Prefetch::kAdaptive);
    options.residents = ResidentUse::kLeased;
    auto engine = open_engine(*device_, spec, everything_of(spec) + room_bytes, options);
    bring_all_home(*engine);
    expect_right(*engine, model);
    return engine;
  }
  void expect_right(Engine& engine, const TestModel& model) {
    ReadBack read(engine, model, *default_stream_);
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
  }
  /// `work` ends once all that was enqueued to read the weights is done, which reads them right.
  template <typename Work>
  void expect_after_reads(Engine& engine, const TestModel& model, const Work& work) {
    LateRead read(*device_, model);
    Gate gate(*default_stream_);
    read.pass(engine, *default_stream_);
    std::atomic<bool> ended = false;
    std::jthread other([&] {
      work();
      ended = true;
    });
    EXPECT_TRUE(stays_false([&] { return ended.load(); }));
    gate.open();
    other.join();
    EXPECT_EQ(read.wrong(*default_stream_), 0);
  }

  Stream* default_stream_ = nullptr;  // the device's
};

TEST_P(EngineDefaultStream, AResidentGoesWhenItsWorkIsDone) {
  const TestModel model = equal_model(4, 9000);
  const auto engine = open_resident(model);
  expect_after_reads(*engine, model, [&] { EXPECT_GT(engine->give_way(1_GiB), 0U); });
  expect_right(*engine, model);
}

/// Of those whose use nobody has recorded, too.
TEST_P(EngineDefaultStream, TheFurthestNextUseGoesFirst) {
  const TestModel model = equal_model(6, 9000);
  const auto engine = open_resident(model, 4 * smallest_budget_of(model.in_memory()));  // an arena
  static_cast<void>(engine->take_back(1_GiB));  // which records all uses
  ReadBack read(*engine, model, *default_stream_);
  for (GroupId group = 0; group < 3; ++group) ASSERT_TRUE(read.use(group));
  const std::uint32_t number = engine->place_number(2);
  EXPECT_GT(engine->give_way(1), 0U);
  EXPECT_NE(engine->place_number(2), number);
  EXPECT_EQ(read.wrong(), 0);
  expect_right(*engine, model);
}

TEST_P(EngineDefaultStream, AnotherBudgetWaitsForItsWork) {
  const TestModel model = equal_model(4, 9000);
  const auto engine = open_resident(model);
  const std::uint64_t smallest = smallest_budget_of(model.in_memory());
  expect_after_reads(*engine, model, [&] { engine->set_budget(smallest); });
  expect_right(*engine, model);
}

TEST_P(EngineDefaultStream, AnotherStreamsUseComesAfterIt) {
  const TestModel model = equal_model(4, 9000);
  const auto engine = open_resident(model);
  const auto done = device_->create_event();
  LateRead first(*device_, model);
  Gate gate(*default_stream_);
  ASSERT_TRUE(first.use(*engine, 2, *default_stream_));
  ASSERT_TRUE(engine->acquire(2, *stream_));
  stream_->record(*done);
  engine->release(2, *stream_);
  EXPECT_TRUE(stays_false([&] { return done->complete(); }));
  gate.open();
  done->synchronize();
  EXPECT_EQ(first.wrong(*default_stream_), 0);
}

TEST_P(EngineDefaultStream, NewBytesComeAfterIt) {
  TestModel model = equal_model(4, 9000);
  const auto engine = open_resident(model);
  LateRead before(*device_, model);
  LateRead after(*device_, model);
  Gate gate(*default_stream_);
  ASSERT_TRUE(before.use(*engine, 1, *default_stream_));
  const auto bytes = model.change(1);
  engine->replace_tensor(1, *bytes, bytes);
  std::jthread reader([&] { EXPECT_TRUE(after.use(*engine, 1, *stream_)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  gate.open();
  reader.join();
  EXPECT_EQ(before.wrong(*default_stream_), 0) << "what was read before";
  EXPECT_EQ(after.wrong(*stream_), 0);
}

TEST_P(EngineDefaultStream, TheEngineEndsAfterIt) {
  const TestModel model = equal_model(4, 9000);
  auto engine = open_resident(model);
  expect_after_reads(*engine, model, [&] { engine.reset(); });
}

TS_ON_EACH_GPU(EngineDefaultStream);

TEST(EngineDefaultStreamFake, AUseIsNoCallOfTheDriver) {
  const FakeCuda fake;
  fake.reset();
  const TestModel model = equal_model(6, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  EngineOptions options;
  options.residents = ResidentUse::kLeased;
  const auto engine = open_engine(*device, spec, everything_of(spec), options);
  const auto recorded_by_a_pass = [&](Stream& stream) {
    const long long before = fake.calls("cuEventRecord");
    for (GroupId group = 0; group < 6; ++group) {
      EXPECT_TRUE(engine->acquire(group, stream));
      engine->release(group, stream);
    }
    return fake.calls("cuEventRecord") - before;
  };
  const auto stream = device->create_stream();
  static_cast<void>(recorded_by_a_pass(*stream));
  ASSERT_TRUE(eventually([&] { return engine->statistics().loads == 6; }));
  EXPECT_EQ(recorded_by_a_pass(*stream), 6) << "of a stream that may be gone later";
  EXPECT_EQ(recorded_by_a_pass(device->stream_of(0)), 0);
}

}  // namespace
}  // namespace tensorstream
