// New bytes for a tensor, given at every moment of its group's life.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "engine/held_reader.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

/// Streamed groups of two tensors each; half of the model fits.
class EngineReplace : public ::testing::TestWithParam<On> {
 protected:
  EngineReplace() {
    for (int i = 0; i < 6; ++i) model_.add_group({6000, 300});
  }

  void open(Prefetch prefetch) {
    const ModelSpec spec = model_.in_memory();
    engine_ = open_engine(*device_, spec, 3 * smallest_budget_of(spec), with_prefetch(prefetch));
    computation_ = std::make_unique<Computation>(*engine_, model_);
    while (engine_->plan().groups[group_].placement != Placement::kStreamed) ++group_;
    tensor_ = engine_->groups()[group_].tensors[0];
  }

  /// A write by the user.
  void write(TensorId tensor) {
    const auto bytes = model_.change(tensor);
    engine_->replace_tensor(tensor, *bytes, bytes);
  }

  void expect_right_passes() {
    for (int pass = 0; pass < 2; ++pass) computation_->pass(stream_);
    stream_.synchronize();
    EXPECT_EQ(computation_->wrong(), 0U);
    EXPECT_TRUE(engine_->tensor_equals(tensor_, *model_.bytes(tensor_)));
  }

  void write_at_every_step(Prefetch prefetch) {
    open(prefetch);
    for (std::uint32_t step = 0; step < 120; ++step) {
      for (TensorId id = 0; id < model_.tensor_count(); ++id) {
        const bool streamed = engine_->plan().groups[id / 2].placement == Placement::kStreamed;
        if (streamed && (id * 7 + step) % 5 == 0) write(id);
      }
      ASSERT_TRUE(computation_->use(step % 6, stream_));
    }
    stream_.synchronize();
    EXPECT_EQ(computation_->wrong(), 0U);
  }

  TestModel model_;
  const std::unique_ptr<Device> device_ = checking_device();
  const ComputeStream compute_stream_{*device_, GetParam()};
  Stream& stream_ = compute_stream_.get();
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Computation> computation_;
  GroupId group_ = 0;    // the first streamed one
  TensorId tensor_ = 0;  // its first tensor
};

TEST_P(EngineReplace, BeforeTheFirstLoad) {
  open(Prefetch::kNone);
  write(tensor_);
  expect_right_passes();
}

TEST_P(EngineReplace, WhenLoadedAhead) {
  open(Prefetch::kAhead);
  ASSERT_TRUE(eventually([&] { return engine_->statistics().loads > 0; }));
  write(tensor_);
  expect_right_passes();
}

TEST_P(EngineReplace, AfterItsUse) {
  for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kAhead, Prefetch::kReadAhead}) {
    open(prefetch);
    ASSERT_TRUE(computation_->use(group_, stream_));
    write(tensor_);
    write(tensor_ + 1);
    ASSERT_TRUE(computation_->use(group_, stream_));
    write(tensor_);
    expect_right_passes();
  }
}

TEST_P(EngineReplace, AtEveryStepOfManyPasses) {
  write_at_every_step(Prefetch::kAhead);
  write_at_every_step(Prefetch::kReadAhead);
}

TEST_P(EngineReplace, NotWhileTheGroupIsLeased) {
  open(Prefetch::kNone);
  ASSERT_TRUE(engine_->acquire(group_, stream_));
  ASSERT_TRUE(engine_->acquire(group_, stream_));
  const Bytes bytes(6000);
  EXPECT_THROW(engine_->replace_tensor(tensor_, bytes, nullptr), LeaseError);
  engine_->release(group_, stream_);
  EXPECT_THROW(engine_->replace_tensor(tensor_, bytes, nullptr), LeaseError);
  computation_->compute(group_, stream_);
  engine_->release(group_, stream_);
  expect_right_passes();
  write(tensor_);
  expect_right_passes();
}

TEST_P(EngineReplace, NotWithBytesOfAnotherSize) {
  open(Prefetch::kNone);
  ASSERT_TRUE(computation_->use(group_, stream_));
  for (const std::uint64_t size : {0U, 5999U, 6001U}) {
    const Bytes bytes(size);
    EXPECT_THROW(engine_->replace_tensor(tensor_, bytes, nullptr), ConfigError) << size;
  }
  expect_right_passes();
}

TEST_P(EngineReplace, OldBytesAreLetGo) {
  open(Prefetch::kAhead);
  write(tensor_);
  std::weak_ptr<const Bytes> first = model_.bytes(tensor_);
  expect_right_passes();
  EXPECT_FALSE(first.expired());
  write(tensor_);
  expect_right_passes();
  EXPECT_TRUE(eventually([&] { return first.expired(); }));
}

INSTANTIATE_TEST_SUITE_P(Streams, EngineReplace, ::testing::Values(On::kCaller, On::kQueue),
                         on_name);

TEST(EngineReplaceUnderWay, ALoadUnderWayDoesNotBringOldBytes) {
  TestModel model = equal_model(2, 5000);
  ModelSpec spec = model.in_memory();
  const auto held = std::make_shared<HeldReader>(spec.sources[0]);
  spec.sources[0] = held;
  const auto device = checking_device();
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  held->wait_until_begun();  // group 0 is loaded ahead
  const auto bytes = model.change(0);
  engine->replace_tensor(0, *bytes, bytes);
  held->open();
  ASSERT_TRUE(eventually([&] { return engine->statistics().loads >= 1; }));
  Computation computation(*engine, model);
  for (int pass = 0; pass < 2; ++pass) computation.pass(device->caller_stream());
  EXPECT_EQ(computation.right(), 4U);
}

TEST(EngineReplaceUnderWay, ALeaseWaitsForTheLoadOfTheNewBytes) {
  TestModel model = equal_model(2, 5000);
  ModelSpec spec = model.in_memory();
  const auto first = std::make_shared<HeldReader>(spec.sources[0]);
  spec.sources[0] = first;
  const auto device = checking_device();
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  first->wait_until_begun();
  const auto bytes = model.change(0);
  engine->replace_tensor(0, *bytes, bytes);
  Computation computation(*engine, model);
  ASSERT_TRUE(computation.use(0, *stream));  // its load follows the one that is held up
  EXPECT_TRUE(stays_false([&] { return computation.right() + computation.wrong() > 0; }));
  first->open();
  stream->synchronize();
  EXPECT_EQ(computation.right(), 1U);
}

TEST(EngineReplaceUnderWay, OldBytesLiveUntilTheirLoadIsOver) {
  TestModel model;
  model.add_group({5000, 5000});
  model.add_group({5000, 5000});
  ModelSpec spec = model.in_memory();
  const auto held = std::make_shared<HeldReader>(spec.sources[0]);
  spec.sources[0] = held;
  auto old = std::make_shared<const Bytes>(5000);
  const std::weak_ptr<const Bytes> watched = old;
  spec.sources[1] = memory_reader("old bytes", old);
  const auto device = checking_device();
  const auto engine = open_engine(*device, std::move(spec), smallest_budget_of(model.in_memory()));
  held->wait_until_begun();  // the copy of `old` is queued behind it
  engine->replace_tensor(1, *model.bytes(1), model.bytes(1));
  old.reset();
  EXPECT_FALSE(watched.expired());
  held->open();
  EXPECT_TRUE(eventually([&] { return watched.expired(); }));
}

TEST(EngineReplacePlacements, NotAResidentTensor) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(2, 5000);
  const auto device = checking_device();
  for (const ModelSpec& spec : {model.in_memory(), model.in_files(folder)}) {
    const auto engine = open_engine(*device, spec, everything_of(spec));
    const Bytes bytes(5000);
    EXPECT_THROW(engine->replace_tensor(0, bytes, nullptr), ConfigError);
    EXPECT_TRUE(engine->tensor_equals(0, *model.bytes(0)));
    Computation computation(*engine, model);
    computation.pass(device->caller_stream());
    EXPECT_EQ(computation.right(), 2U);
  }
}

TEST(EngineReplacePlacements, ATensorReadOnDemand) {
  TestModel model;
  model.add_group({640}, Residency::kByRows);
  const auto device = checking_device();
  const auto engine = open_engine(*device, model.in_memory(), 0);
  const auto bytes = model.change(0);
  engine->replace_tensor(0, *bytes, bytes);
  Bytes row(64);
  engine->read_rows(0, std::vector<std::int64_t>{9}, 64, row);
  EXPECT_EQ(row, Bytes(bytes->end() - 64, bytes->end()));
}

TEST(EngineReplacePlacements, ATensorOfNoGroup) {
  TestModel model = equal_model(2, 500);
  ModelSpec spec = model.in_memory();
  spec.groups.pop_back();
  const auto device = checking_device();
  const auto engine = open_engine(*device, spec, 4096);
  const auto bytes = model.change(1);
  engine->replace_tensor(1, *bytes, bytes);
  EXPECT_TRUE(engine->tensor_equals(1, *bytes));
}

TEST(EngineReplacePlacements, MakesTheTensorOneThatRamOwns) {
  const TemporaryFolder folder;
  TestModel model = equal_model(3, 5000);
  const auto device = checking_device();
  const ModelSpec spec = model.in_files(folder);
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  EXPECT_EQ(engine->statistics().source_ram_bytes, 0U);
  const auto bytes = model.change(1);
  engine->replace_tensor(1, *bytes, bytes);
  EXPECT_EQ(engine->statistics().source_ram_bytes, 5000U);
}

}  // namespace
}  // namespace tensorstream
