// Sources that fail: the acquire that needed the bytes says so, and the engine goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<FaultyReader> faulty(const TestModel& model, TensorId tensor,
                                     const Faults& faults) {
  const auto bytes = model.bytes(tensor);
  return std::make_shared<FaultyReader>(
      create_memory_reader("disk of '" + model.name(tensor) + "'", *bytes, bytes), faults);
}

/// The IoError of an acquire; nothing where it succeeds (the lease is given back then).
std::optional<IoError> error_of(Engine& engine, GroupId group, Stream& stream) {
  try {
    if (engine.acquire(group, stream)) engine.release(group, stream);
    return std::nullopt;
  } catch (const IoError& error) {
    return error;
  }
}

class EngineError : public ::testing::TestWithParam<On> {
 protected:
  const std::unique_ptr<Device> device_ = checking_device();
  const ComputeStream compute_stream_{*device_, GetParam()};
  Stream& stream_ = compute_stream_.get();
};

TEST_P(EngineError, TheAcquireThatNeedsAFailedReadRaisesIt) {
  const TestModel model = equal_model(3, 5000);
  ModelSpec spec = model.in_memory();
  spec.sources[1] = faulty(model, 1, {.failing_read = 3});
  spec.tensors[1].extents = {{1, 0, 100}, {1, 100, 4900}};
  EngineOptions options = with_prefetch(Prefetch::kNone);
  options.piece_bytes = 1000;
  const auto engine = open_engine(*device_, spec, smallest_budget_of(spec), options);
  Computation computation(*engine, model);
  ASSERT_TRUE(computation.use(0, stream_));
  const std::optional<IoError> error = error_of(*engine, 1, stream_);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->path(), "disk of 'block.1.0'");
  EXPECT_EQ(error->offset_bytes(), 1100U);  // pieces begin at 0, 100, 1100
  EXPECT_EQ(error->error_number(), EIO);
  EXPECT_THAT(error->what(), HasSubstr("block.1.0"));
  EXPECT_THROW(engine->release(1, stream_), LeaseError);
  for (int pass = 0; pass < 2; ++pass) computation.pass(stream_);
  stream_.synchronize();
  EXPECT_EQ(computation.right(), 7U);
}

/// Two passes over four groups of three reads each; one read of one of them fails.
class OneFailure {
 public:
  OneFailure(Prefetch prefetch, GroupId broken, int failing_read) {
    for (TensorId id = 0; id < 4; ++id) {
      spec_.sources[id] = faulty(model_, id, {.failing_read = id == broken ? failing_read : 0});
    }
    options_.prefetch = prefetch;
    options_.piece_bytes = 1000;
  }

  /// The groups whose acquire failed.
  std::vector<GroupId> run(Device& device, Stream& stream) {
    const auto engine = open_engine(device, spec_, smallest_budget_of(spec_), options_);
    Computation computation(*engine, model_);
    std::vector<GroupId> raised;
    for (GroupId step = 0; step < 8; ++step) {
      try {
        EXPECT_TRUE(computation.use(step % 4, stream));
      } catch (const IoError&) {
        raised.push_back(step % 4);
      }
    }
    stream.synchronize();
    EXPECT_EQ(computation.wrong(), 0U);
    EXPECT_EQ(computation.right() + raised.size(), 8U);
    return raised;
  }

 private:
  const TestModel model_ = equal_model(4, 2500);
  ModelSpec spec_ = model_.in_memory();
  EngineOptions options_;
};

TEST_P(EngineError, EachReadOfAPassFailsOnceWithoutLoadsAhead) {
  for (GroupId broken = 0; broken < 4; ++broken) {
    for (int failing_read = 1; failing_read <= 3; ++failing_read) {
      for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kReadAhead}) {
        OneFailure failure(prefetch, broken, failing_read);
        EXPECT_EQ(failure.run(*device_, stream_), std::vector<GroupId>{broken}) << failing_read;
      }
    }
  }
}

/// A read ahead that nobody waited for is read again, so that nobody need hear of it.
TEST_P(EngineError, EachReadOfAPassFailsOnceAtMostWithLoadsAhead) {
  for (GroupId broken = 0; broken < 4; ++broken) {
    for (int failing_read = 1; failing_read <= 3; ++failing_read) {
      OneFailure failure(Prefetch::kAhead, broken, failing_read);
      const std::vector<GroupId> raised = failure.run(*device_, stream_);
      EXPECT_TRUE(raised.empty() || raised == std::vector<GroupId>{broken}) << failing_read;
    }
  }
}

TEST_P(EngineError, ALoadAheadThatFailsIsNotRaisedElsewhere) {
  const TestModel model = equal_model(6, 5000);
  ModelSpec spec = model.in_memory();
  const std::uint64_t budget = 3 * smallest_budget_of(spec);
  GroupId first = 0;
  {
    const auto engine = open_engine(*device_, spec, budget);
    while (engine->plan().groups[first].placement != Placement::kStreamed) ++first;
  }
  const auto broken = faulty(model, first, {.failing_read = 1});
  spec.sources[first] = broken;
  const auto engine = open_engine(*device_, spec, budget);
  ASSERT_TRUE(eventually([&] { return engine->statistics().loads >= 1; }));
  ASSERT_EQ(broken->reads(), 1);
  Computation computation(*engine, model);
  for (GroupId group = first + 1; group < 6; ++group) {
    ASSERT_NO_THROW(ASSERT_TRUE(computation.use(group, stream_)));
  }
  ASSERT_NO_THROW(computation.pass(stream_));  // the broken group is loaded again
  stream_.synchronize();
  EXPECT_EQ(computation.right(), 6U + 5U - first);
  EXPECT_EQ(computation.wrong(), 0U);
}

TEST_P(EngineError, AReadThatAlwaysFailsIsRaisedEachTime) {
  const TestModel model = equal_model(3, 5000);
  ModelSpec spec = model.in_memory();
  spec.sources[1] = faulty(model, 1, {.ends_at_bytes = 2000});
  const auto engine = open_engine(*device_, spec, smallest_budget_of(spec));
  Computation computation(*engine, model);
  for (int pass = 0; pass < 3; ++pass) {
    ASSERT_TRUE(computation.use(0, stream_));
    const std::optional<IoError> error = error_of(*engine, 1, stream_);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->offset_bytes(), 2000U);
    ASSERT_TRUE(computation.use(2, stream_));
  }
  Bytes out(5000);
  EXPECT_THROW(engine->read_tensor(1, out), IoError);
  EXPECT_THROW(static_cast<void>(engine->tensor_equals(1, out)), IoError);
  engine->replace_tensor(1, *model.bytes(1), model.bytes(1));
  computation.pass(stream_);
  stream_.synchronize();
  EXPECT_EQ(computation.right(), 9U);
}

TEST_P(EngineError, AFailedLoadHoldsNoPlace) {
  const TestModel model = equal_model(2, 5000);
  ModelSpec spec = model.in_memory();
  spec.sources[0] = faulty(model, 0, {.failing_read = 1});
  const auto engine =
      open_engine(*device_, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
  EXPECT_TRUE(error_of(*engine, 0, stream_));
  Computation computation(*engine, model);
  EXPECT_TRUE(computation.use(1, stream_));
  EXPECT_TRUE(computation.use(0, stream_));
  stream_.synchronize();
  EXPECT_EQ(computation.right(), 2U);
}

TEST_P(EngineError, SlowReadersAreSlowAndRight) {
  const TestModel model = equal_model(5, 3000);
  ModelSpec spec = model.in_memory();
  for (TensorId id = 0; id < 5; ++id) {
    spec.sources[id] = faulty(model, id, {.delay = std::chrono::milliseconds(2)});
  }
  for (const std::uint64_t budget : budgets_of(spec, 3)) {
    const auto engine = open_engine(*device_, spec, budget);
    Computation computation(*engine, model);
    for (int pass = 0; pass < 3; ++pass) computation.pass(stream_);
    stream_.synchronize();
    EXPECT_EQ(computation.right(), 15U);
  }
}

INSTANTIATE_TEST_SUITE_P(Streams, EngineError, ::testing::Values(On::kCaller, On::kQueue), on_name);

TEST(EngineOpenError, AResidentGroupThatCannotBeReadIsRaised) {
  const TestModel model = equal_model(2, 5000);
  ModelSpec spec = model.in_memory();
  spec.sources[1] = faulty(model, 1, {.failing_read = 1});
  const auto device = checking_device();
  const auto budget = Budget::create(everything_of(spec));
  EXPECT_THROW(Engine(*device, budget, spec, EngineOptions{}), IoError);
  EXPECT_EQ(budget->used_bytes(), 0U);
  const Engine engine(*device, budget, spec, EngineOptions{});
}

TEST(EngineOpenError, GroupsThatNameWrongTensorsAreRefused) {
  const TestModel model = equal_model(2, 500);
  const auto device = checking_device();
  ModelSpec unknown = model.in_memory();
  unknown.groups[1].tensors = {2};
  EXPECT_THROW(open_engine(*device, unknown, 1_MiB), ConfigError);
  ModelSpec twice = model.in_memory();
  twice.groups[1].tensors = {1, 0};
  EXPECT_THROW(open_engine(*device, twice, 1_MiB), ConfigError);
}

TEST(EngineOpenError, PiecesWithoutBytesAreRefused) {
  const TestModel model = equal_model(2, 500);
  const auto device = checking_device();
  EngineOptions options;
  options.piece_bytes = 0;
  EXPECT_THROW(open_engine(*device, model.in_memory(), 4096, options), ConfigError);
}

}  // namespace
}  // namespace tensorstream
