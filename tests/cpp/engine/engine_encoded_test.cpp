// Weights at home as frames: whatever is read or loaded of them has every bit, and waits as it has
// to.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "codec/frame_format.h"
#include "device/gate.h"
#include "engine/batch_choice.h"
#include "engine/compression_choice.h"
#include "engine/frame_batches.h"
#include "engine/on_gpu.h"
#include "engine/ring_bytes.h"
#include "io/faulty_reader.h"
#include "made_bytes/weights.h"
#include "memory/pinned_memory.h"

namespace tensorstream {
namespace {

std::uint64_t smallest_of(const ModelSpec& spec) {
  return smallest_budget_of(spec, ComputePlace::kAccelerator);
}
std::uint64_t all_of(const ModelSpec& spec) {
  return everything_of(spec, ComputePlace::kAccelerator);
}

/// Groups of all types that are coded and some that are not, in frames of all lengths.
TestModel mixed_model() {
  TestModel model(3);
  model.add_typed_group({{Dtype::kBf16, 1'200'000}, {Dtype::kF32, 300}, {Dtype::kBf16, 70'001}});
  model.add_typed_group({{Dtype::kF16, 90'000}, {Dtype::kI8, 333}, {Dtype::kF16, 5001}});
  model.add_typed_group({{Dtype::kU8, 0}, {Dtype::kF8E4M3, 600'001}, {Dtype::kF8E5M2, 77'777}});
  model.add_typed_group({{Dtype::kF32, 650'003}, {Dtype::kF32, 1}, {Dtype::kBool, 17}});
  model.add_typed_group({{Dtype::kI8, 50'000}});
  model.add_typed_group({{Dtype::kBf16, 40'000}, {Dtype::kI64, 9}, {Dtype::kBf16, 1025}});
  return model;
}

/// Equal groups of bf16 weights in `frames` frames each.
TestModel equal_bf16_model(std::size_t groups, std::uint64_t frames) {
  TestModel model(5);
  for (std::size_t i = 0; i < groups; ++i) {
    model.add_typed_group({{Dtype::kBf16, frames * kFrameBytes / 2 - 100}});
  }
  return model;
}

/// As small as it gets: a batch is one frame.
EngineOptions encoded_options(std::uint32_t level = 1, Prefetch prefetch = Prefetch::kAdaptive) {
  EngineOptions options = with_prefetch(prefetch);
  options.compression = level;
  options.piece_bytes = std::uint64_t{1} << 20U;
  return options;
}

class EngineEncoded : public OnGpu {
 protected:
  /// `budget_bytes` is for groups; the ring's bytes come on top.
  std::unique_ptr<Engine> open(const ModelSpec& spec, std::uint64_t budget_bytes,
                               const EngineOptions& options = encoded_options()) {
    return open_engine(*device_, spec, budget_bytes + ring_bytes_of(spec, options), options);
  }
  std::unique_ptr<Engine> open_at_home(const ModelSpec& spec, std::uint64_t budget_bytes,
                                       const EngineOptions& options = encoded_options()) {
    auto engine = open(spec, budget_bytes, options);
    bring_all_home(*engine);
    return engine;
  }
  void sweep(const TestModel& model, const ModelSpec& spec, const EngineOptions& options) {
    const std::uint64_t ring = ring_bytes_of(spec, options);
    for (const std::uint64_t budget : budgets_of(spec, 4, ComputePlace::kAccelerator)) {
      SCOPED_TRACE("budget " + std::to_string(budget));
      const auto engine = open(spec, budget, options);
      ReadBack read(*engine, model, *stream_);
      read.pass();
      EXPECT_EQ(read.wrong(), 0) << "from the sources";
      bring_all_home(*engine);
      for (int i = 0; i < 3; ++i) read.pass();
      EXPECT_EQ(read.wrong(), 0) << "from home";
      EXPECT_LE(engine->statistics().peak_held_bytes, budget + ring);
      EXPECT_EQ(engine->statistics().surprises, 0U);
    }
  }
};

TEST_P(EngineEncoded, EveryBitIsThereHoweverItIsLoaded) {
  const TestModel model = mixed_model();
  for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kNext, Prefetch::kAdaptive}) {
    sweep(model, model.in_memory(), encoded_options(1, prefetch));
  }
}

TEST_P(EngineEncoded, EveryBitIsThereAtEachLevelAndFromFiles) {
  const TemporaryFolder folder;
  TestModel model = mixed_model();
  EngineOptions options = encoded_options(4);
  options.piece_bytes = 5U << 20U;  // a batch holds two frames, and all small tensors
  sweep(model, model.in_files(folder), options);
  options.compression = 7;
  sweep(model, model.in_pieces(folder), options);
}

/// Such a group's frames take half as much again as usual: more than the slots that it was cut for.
TEST_P(EngineEncoded, WhatDoesNotGetShorterIsMoreBatches) {
  TestModel model;
  for (int i = 0; i < 3; ++i) model.add_random_group(Dtype::kBf16, 5 * kFrameBytes - 7000);
  EngineOptions options = encoded_options();
  options.piece_bytes = 8U << 20U;
  const ModelSpec spec = model.in_memory();
  ASSERT_EQ(batch_size(spec.groups[0], spec.tensors, batch_limit(options.piece_bytes)).count, 1U);
  ASSERT_LT(largest_batch_bytes(spec.groups, spec.tensors, batch_limit(options.piece_bytes)),
            model.size_bytes(0));
  sweep(model, spec, options);
}

TEST_P(EngineEncoded, HoldsTwoThirdsInHostMemoryAndMovesAsMuch) {
  const TestModel model = equal_bf16_model(3, 2);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_at_home(spec, smallest_of(spec));
  const std::uint64_t weights = 3 * model.size_bytes(0);
  const Statistics home = engine->statistics();
  EXPECT_LT(static_cast<double>(home.pinned_bytes), 0.7 * static_cast<double>(weights));
  EXPECT_EQ(home.compression.level, 1U);
  EXPECT_EQ(home.compression.coded_bytes, home.pinned_bytes);
  EXPECT_EQ(home.compression.decoded_bytes, weights);
  EXPECT_LT(home.compression.ratio(), 0.7);
  ReadBack read(*engine, model, *stream_);
  read.pass();  // what was loaded ahead before it came home is not coded
  const Statistics before = engine->statistics();
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  const Statistics after = engine->statistics();
  const std::uint64_t decoded = after.decoded_bytes - before.decoded_bytes;
  EXPECT_GT(decoded, weights);
  EXPECT_LT(static_cast<double>(after.streamed_bytes - before.streamed_bytes),
            0.7 * static_cast<double>(decoded));
  EXPECT_EQ(engine->plan().link_bytes, home.pinned_bytes);
}

TEST_P(EngineEncoded, TensorsAreReadWhereTheyAre) {
  const TestModel model = mixed_model();
  const ModelSpec spec = model.in_memory();
  const auto engine = open_at_home(spec, smallest_of(spec));
  for (TensorId tensor = 0; tensor < model.tensor_count(); ++tensor) {
    SCOPED_TRACE(model.name(tensor));
    Bytes bytes(model.bytes(tensor)->size());
    engine->read_tensor(tensor, bytes);
    EXPECT_EQ(bytes, *model.bytes(tensor));
    EXPECT_TRUE(engine->tensor_equals(tensor, bytes));
    if (bytes.empty()) continue;
    bytes.back() ^= std::byte{1};
    EXPECT_FALSE(engine->tensor_equals(tensor, bytes));
  }
  EXPECT_EQ(engine->home_address(0), nullptr);
}

TEST_P(EngineEncoded, RowsAreReadAcrossChunksAndFrames) {
  TestModel model(9);
  const std::uint64_t row_bytes = 3000;
  model.add_typed_group({{Dtype::kBf16, 1500 * 1000}});
  model.add_typed_group({{Dtype::kBf16, 1500 * 100}}, Residency::kByRows);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_at_home(spec, smallest_of(spec));
  const std::vector<std::int64_t> rows = {0, 999, 5, 698, 699, 700, 5};
  Bytes out(rows.size() * row_bytes);
  engine->read_rows(0, rows, row_bytes, out);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto truth = model.bytes(0)->begin() + rows[i] * static_cast<std::int64_t>(row_bytes);
    EXPECT_TRUE(std::equal(truth, truth + static_cast<std::int64_t>(row_bytes),
                           out.begin() + static_cast<std::int64_t>(i * row_bytes)))
        << "row " << rows[i];
  }
  EXPECT_NE(engine->home_address(1), nullptr) << "a table of rows is read in place by kernels";
}

TEST_P(EngineEncoded, WhatIsWrittenIsLoadedBesideTheFramesOfTheOthers) {
  TestModel model = mixed_model();
  const ModelSpec spec = model.in_memory();
  EngineOptions options = encoded_options();
  options.piece_bytes = 8U << 20U;
  const auto engine = open_at_home(spec, smallest_of(spec), options);
  ReadBack read(*engine, model, *stream_);
  read.pass();
  // The one in the middle of its group, the first, and at last all of them.
  for (const TensorId tensor : {1U, 0U, 4U, 3U, 5U, 15U, 13U, 14U}) {
    const auto bytes = model.change(tensor);
    engine->replace_tensor(tensor, *bytes, bytes);
    read.pass();
    EXPECT_EQ(read.wrong(), 0) << model.name(tensor);
    EXPECT_TRUE(engine->tensor_equals(tensor, *bytes));
  }
}

TEST_P(EngineEncoded, BudgetsMoveAndResidentsGiveWay) {
  const TestModel model = mixed_model();
  const ModelSpec spec = model.in_memory();
  EngineOptions options = encoded_options();
  options.residents = ResidentUse::kLeased;
  const std::uint64_t ring = ring_bytes_of(spec, options);
  const auto engine = open_at_home(spec, all_of(spec), options);
  ReadBack read(*engine, model, *stream_);
  const auto pass = [&](const char* when) {
    for (int i = 0; i < 2; ++i) read.pass();
    EXPECT_EQ(read.wrong(), 0) << when;
  };
  pass("everything fits");
  EXPECT_GT(engine->give_way(1), 0U);
  pass("one gave way");
  static_cast<void>(engine->give_way(all_of(spec)));
  pass("all gave way");
  EXPECT_GT(engine->take_back(0), 0U);
  pass("they came back");
  for (const std::uint64_t budget : budgets_of(spec, 4, ComputePlace::kAccelerator)) {
    engine->set_budget(budget + ring);
    bring_all_home(*engine);
    pass("another budget");
    EXPECT_LE(engine->statistics().held_bytes, budget + ring);
  }
  EXPECT_THROW(engine->set_budget(smallest_of(spec) + ring - 1), BudgetError);
  pass("a budget that is too small");
}

TEST_P(EngineEncoded, TheSmallestBudgetHasTheRing) {
  const TestModel model = mixed_model();
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = encoded_options();
  const std::uint64_t smallest = smallest_of(spec) + ring_bytes_of(spec, options);
  try {
    open_engine(*device_, spec, smallest - 1, options);
    ADD_FAILURE() << "one byte less than the smallest";
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), smallest);
    EXPECT_NE(std::string(error.what()).find("the ring"), std::string::npos);
  }
  const auto engine = open_engine(*device_, spec, smallest, options);
  EXPECT_LE(engine->statistics().held_bytes, smallest);
}

TEST_P(EngineEncoded, ASourceThatFailsLeavesTheSources) {
  const TestModel model = equal_bf16_model(2, 3);
  ModelSpec spec = model.in_memory();
  for (TensorId tensor = 0; tensor < 2; ++tensor) {
    spec.sources[tensor] = std::make_shared<FaultyReader>(
        create_memory_reader("a disk", *model.bytes(tensor), model.bytes(tensor)),
        Faults{.failing_read = 2});
  }
  const auto engine = open(spec, smallest_of(spec), encoded_options(1, Prefetch::kNone));
  EXPECT_THROW(engine->bring_home(0), IoError);
  EXPECT_THROW(engine->bring_home(1), IoError);
  EXPECT_EQ(engine->statistics().pinned_bytes, 0U);
  bring_all_home(*engine);
  ReadBack read(*engine, model, *stream_);
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineEncoded, HomesAreChargedByWhatTheyTake) {
  const TestModel model = equal_bf16_model(3, 2);
  const ModelSpec spec = model.in_memory();
  EngineOptions options = encoded_options();
  // Two homes of 0.67 of 4 MiB, a ring for staging of 4 MiB, and memory for two threads to encode
  // in.
  options.ram_budget = Budget::create(std::uint64_t{27} << 19U);
  const auto engine = open(spec, smallest_of(spec), options);
  engine->bring_home(0);
  engine->bring_home(1);
  EXPECT_THROW(engine->bring_home(2), BudgetError);
  EXPECT_LT(options.ram_budget->used_bytes(), std::uint64_t{10} << 20U)
      << "what failed and what was only for encoding is given back";
  ReadBack read(*engine, model, *stream_);
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

/// The frames of a batch lie in a slot until they are decoded, and what decodes them waits for the
/// reader of their place: more batches than slots, with the reader held up.
TEST_P(EngineEncoded, SlotsAreUsedAgainOnceTheyAreDecoded) {
  const TestModel model = equal_bf16_model(2, 6);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_at_home(spec, smallest_of(spec), encoded_options(1, Prefetch::kNone));
  ReadBack read(*engine, model, *stream_);
  read.pass();
  Gate gate(*stream_);
  const std::jthread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    gate.open();
  });
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineEncoded, TheDecodingWaitsForTheReaderOfItsPlace) {
  const TestModel model = equal_bf16_model(2, 1);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_at_home(spec, smallest_of(spec), encoded_options(1, Prefetch::kNone));
  ReadBack read(*engine, model, *stream_);
  const auto other = device_->create_stream();
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(engine->acquire(0, *other));
    Gate gate(*other);
    const PinnedMemory late(*device_, model.bytes(0)->size(), "a late reader");
    other->copy_to_host(late.data(), engine->places(0)[0].data, late.size_bytes());
    engine->release(0, *other);
    {
      const std::jthread opener([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        gate.open();
      });
      ASSERT_TRUE(read.use(1));
    }
    EXPECT_EQ(read.wrong(), 0);
    other->synchronize();
    EXPECT_TRUE(same_bytes(late.bytes(), *model.bytes(0)));
  }
}

/// A load that nobody used, on the one stream, and the next into the same place, on the other.
TEST_P(EngineEncoded, LoadsIntoOnePlaceTakeTurns) {
  TestModel model = equal_bf16_model(2, 1);
  for (int round = 0; round < 10; ++round) {
    const ModelSpec spec = model.in_memory();
    const auto engine = open_at_home(spec, smallest_of(spec), encoded_options(1, Prefetch::kNext));
    ReadBack read(*engine, model, *stream_);
    read.pass();
    ASSERT_TRUE(engine->acquire(0, *stream_));
    Gate gate(*stream_);
    engine->release(0, *stream_);  // its place is taken by a load ahead, which waits
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const auto bytes = model.change(1);
    engine->replace_tensor(1, *bytes, bytes);
    const std::jthread opener([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(4));
      gate.open();
    });
    ASSERT_TRUE(read.use(1));
    EXPECT_EQ(read.wrong(), 0);
  }
}

TEST_P(EngineEncoded, TheEngineChoosesWhatPays) {
  const TestModel model = equal_bf16_model(12, 1);
  const ModelSpec spec = model.in_memory();
  EngineOptions options = encoded_options();
  options.compression.reset();
  const auto chosen = [&](std::uint64_t budget_bytes) {
    const auto engine = open(spec, budget_bytes, options);
    bring_all_home(*engine);
    ReadBack read(*engine, model, *stream_);
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
    return engine->statistics().compression;
  };
  options.rates.link_bytes_per_second = 1e8;
  const CompressionStatistics coded = chosen(smallest_of(spec));
  EXPECT_EQ(coded.level, kDefaultCompressionLevel) << coded.reason;
  EXPECT_LT(coded.ratio(), 0.7);
  EXPECT_NE(coded.reason.find("predicted"), std::string::npos);
  const CompressionStatistics whole = chosen(all_of(spec));
  EXPECT_EQ(whole.level, 0U);
  EXPECT_EQ(whole.reason, "nothing is streamed");
  options.rates.link_bytes_per_second = 1e12;  // so fast that decoding would be most of a load
  const CompressionStatistics fast = chosen(smallest_of(spec));
  EXPECT_EQ(fast.level, 0U) << fast.reason;
  EXPECT_EQ(fast.ratio(), 1);
  options.rates.link_bytes_per_second = 1e8;
  const auto tight = open_engine(*device_, spec, smallest_of(spec), options);
  EXPECT_EQ(tight->statistics().compression.level, 0U);
  EXPECT_NE(tight->statistics().compression.reason.find("ring"), std::string::npos);
}

TEST_P(EngineEncoded, WhatIsNoFloatStaysAsItIs) {
  const TestModel model = equal_model(3, 9000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open_at_home(spec, smallest_of(spec));
  const CompressionStatistics none = engine->statistics().compression;
  EXPECT_EQ(none.level, 0U);
  EXPECT_EQ(none.reason, "no weights are of a type that is coded");
  EXPECT_NE(engine->home_address(0), nullptr);
}

TS_ON_EACH_GPU(EngineEncoded);

TEST(EngineEncodedOnHost, ALevelHasNoUse) {
  const TestModel model = equal_model(2, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = checking_device();
  EngineOptions options = with_prefetch(Prefetch::kAhead);
  options.compression = 4;
  EXPECT_THROW(open_engine(*device, spec, smallest_of(spec), options), ConfigError);
  options.compression = 10;
  EXPECT_THROW(open_engine(*device, spec, smallest_of(spec), options), ConfigError);
  options.compression.reset();
  const auto engine = open_engine(*device, spec, smallest_of(spec), options);
  EXPECT_EQ(engine->statistics().compression.level, 0U);
  EXPECT_EQ(engine->statistics().compression.reason, "weights are used where they are");
}

/// What only the fake driver can be told to do.
class EngineEncodedFakeCuda : public ::testing::Test {
 protected:
  EngineEncodedFakeCuda() { fake_.reset(); }
  ~EngineEncodedFakeCuda() override {
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
  }
  const FakeCuda fake_;
};

/// Copies that come late show what does not wait for them.
TEST_F(EngineEncodedFakeCuda, TheDecodingWaitsForItsCopy) {
  TestModel model(5);
  for (int i = 0; i < 3; ++i) model.add_typed_group({{Dtype::kBf16, 40'000}});
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = encoded_options(1, Prefetch::kNone);  // at once, not ahead
  const auto device = create_cuda_device(on_fake(Checking::kOn, 3000));
  const auto stream = device->create_stream();
  const auto engine =
      open_engine(*device, spec, smallest_of(spec) + ring_bytes_of(spec, options), options);
  for (GroupId group = 0; group < 3; ++group) engine->bring_home(group);
  ReadBack read(*engine, model, *stream);
  for (int i = 0; i < 30; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

/// What crosses the link does not wait for the reader of the place.
TEST_F(EngineEncodedFakeCuda, FramesCrossTheLinkWhileTheirPlaceIsRead) {
  const TestModel model = equal_bf16_model(2, 2);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = encoded_options(1, Prefetch::kNone);
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine =
      open_engine(*device, spec, smallest_of(spec) + ring_bytes_of(spec, options), options);
  for (GroupId group = 0; group < 2; ++group) engine->bring_home(group);
  ReadBack read(*engine, model, *stream);
  ASSERT_TRUE(engine->acquire(0, *stream));
  ASSERT_TRUE(eventually([&] { return engine->statistics().loads == 1; }));
  Gate gate(*stream);
  engine->release(0, *stream);
  const long long copies = fake_.calls("cuMemcpyHtoDAsync_v2");
  ASSERT_TRUE(engine->acquire(1, *stream));
  engine->release(1, *stream);
  EXPECT_EQ(fake_.calls("cuMemcpyHtoDAsync_v2"), copies + 2);
  EXPECT_EQ(engine->statistics().loads, 1U) << "the place is still read";
  gate.open();
  EXPECT_TRUE(eventually([&] { return engine->statistics().loads == 2; }));
}

TEST_F(EngineEncodedFakeCuda, WhereNothingIsPinnedTheHostDecodes) {
  fake_.set("most_registered_bytes", 1);
  const TestModel model = equal_bf16_model(3, 2);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = encoded_options();
  const auto device = create_cuda_device(on_fake(Checking::kOn));
  const auto stream = device->create_stream();
  const auto engine =
      open_engine(*device, spec, smallest_of(spec) + ring_bytes_of(spec, options), options);
  for (GroupId group = 0; group < 3; ++group) engine->bring_home(group);
  EXPECT_EQ(engine->statistics().pinned_bytes, 0U);
  ReadBack read(*engine, model, *stream);
  for (int i = 0; i < 2; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

/// Each driver call of a run fails once: an error that is raised, or a result that is right.
TEST_F(EngineEncodedFakeCuda, ADriverCallThatFailsIsNeverAWrongResult) {
  const TestModel model = equal_bf16_model(3, 1);
  const ModelSpec spec = model.in_memory();
  const EngineOptions options = encoded_options(1, Prefetch::kNone);
  for (const char* function :
       {"cuMemcpyHtoDAsync_v2", "cuStreamWaitEvent", "cuEventRecord", "cuLaunchHostFunc"}) {
    for (int nth = 1; nth <= 14; ++nth) {
      SCOPED_TRACE(std::string(function) + " " + std::to_string(nth));
      fake_.reset();
      const auto device = create_cuda_device(on_fake(Checking::kOff));
      const auto stream = device->create_stream();
      const auto engine =
          open_engine(*device, spec, smallest_of(spec) + ring_bytes_of(spec, options), options);
      for (GroupId group = 0; group < 3; ++group) engine->bring_home(group);
      ReadBack read(*engine, model, *stream);
      fake_.fail(function, nth, CudaResult::kInvalidHandle);
      for (GroupId group = 0; group < 6; ++group) {
        try {
          static_cast<void>(read.use(group % 3));
        } catch (const CudaError&) {  // raised to whoever asked for it
        }
      }
      EXPECT_EQ(read.wrong(), 0);
    }
  }
}

}  // namespace
}  // namespace tensorstream
