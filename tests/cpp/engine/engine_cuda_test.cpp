// The engine on a GPU, with weights as they are.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "device/gate.h"
#include "engine/on_gpu.h"
#include "io/faulty_reader.h"

namespace tensorstream {
namespace {

class EngineCuda : public OnGpu {
 protected:
  std::unique_ptr<Engine> open(const ModelSpec& spec, std::uint64_t budget_bytes,
                               Prefetch prefetch = Prefetch::kAdaptive) {
    EngineOptions options = with_prefetch(prefetch);
    options.piece_bytes = 3000;
    return open_engine(*device_, spec, budget_bytes, options);
  }
  /// Passes at budgets from the smallest to everything: first from the sources, then from home.
  void sweep(const TestModel& model, const ModelSpec& spec, Prefetch prefetch) {
    for (const std::uint64_t budget : budgets_of(spec, 6)) {
      SCOPED_TRACE("budget " + std::to_string(budget));
      const auto engine = open(spec, budget, prefetch);
      ReadBack read(*engine, model, *stream_);
      for (int i = 0; i < 2; ++i) read.pass();
      EXPECT_EQ(read.wrong(), 0) << "from the sources";
      bring_all_home(*engine);
      for (int i = 0; i < 3; ++i) read.pass();
      EXPECT_EQ(read.wrong(), 0) << "from home";
      EXPECT_LE(engine->statistics().peak_held_bytes, budget);
      EXPECT_EQ(engine->statistics().surprises, 0U);
    }
  }
};

TEST_P(EngineCuda, WeightsInMemory) {
  for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kNext, Prefetch::kAdaptive}) {
    const TestModel model = uneven_model(7, 3);
    sweep(model, model.in_memory(), prefetch);
  }
}

TEST_P(EngineCuda, WeightsInFilesAndPieces) {
  const TemporaryFolder folder;
  TestModel model = uneven_model(6, 4);
  sweep(model, model.in_files(folder), Prefetch::kAdaptive);
  sweep(model, model.in_pieces(folder), Prefetch::kAdaptive);
}

TEST_P(EngineCuda, ItsCallersThreadsDoNotLoad) {
  const TestModel model = equal_model(3, 9000);
  const ModelSpec spec = model.in_memory();
  EXPECT_THROW(open(spec, smallest_budget_of(spec), Prefetch::kReadAhead), ConfigError);
}

TEST_P(EngineCuda, AHomeKeepsNoSource) {
  const TestModel model = equal_model(4, 9000);
  ModelSpec spec = model.in_memory();
  const auto engine = open(spec, smallest_budget_of(spec));
  EXPECT_EQ(engine->statistics().pinned_bytes, 0U);
  std::vector<std::weak_ptr<Reader>> sources(spec.sources.begin(), spec.sources.end());
  spec = {};
  bring_all_home(*engine);
  for (const auto& source : sources) EXPECT_TRUE(eventually([&] { return source.expired(); }));
  EXPECT_GE(engine->statistics().pinned_bytes, 4U * 9000);
  EXPECT_EQ(engine->statistics().source_ram_bytes, 4U * 9000);
}

TEST_P(EngineCuda, HomesAreChargedToTheRamBudgetAndRefusedWithoutHarm) {
  const TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  EngineOptions options;
  options.piece_bytes = 4096;
  options.ram_budget = Budget::create(8 * 4096 + 3 * 12'288);
  const auto engine = open_engine(*device_, spec, smallest_budget_of(spec), options);
  for (GroupId group = 0; group < 3; ++group) engine->bring_home(group);
  EXPECT_THROW(engine->bring_home(3), BudgetError);
  ReadBack read(*engine, model, *stream_);
  for (int i = 0; i < 3; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineCuda, WholePassesSayWhatTheHostTakes) {
  const TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, smallest_budget_of(spec));
  const double expected = engine->plan().predicted_seconds;
  const auto run_passes = [&](GroupId groups) {
    for (int pass = 0; pass < 3; ++pass) {
      engine->note_pass_begun();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      for (GroupId group = 0; group < groups; ++group) {
        ASSERT_TRUE(engine->acquire(group, *stream_));
        engine->release(group, *stream_);
      }
      engine->note_pass_ended();
    }
  };
  run_passes(3);
  EXPECT_EQ(engine->statistics().host_seconds, 0) << "no pass was a whole one";
  EXPECT_EQ(engine->statistics().predicted_seconds, expected);
  run_passes(4);
  const Statistics measured = engine->statistics();
  const double leases = 4 * Rates().lease_seconds;
  EXPECT_GE(measured.host_seconds, 0.02 - leases);
  const double passes_differ = 1e-9;  // the model's mean of some passes is rounded
  EXPECT_GE(measured.predicted_seconds + passes_differ, measured.host_seconds + leases);
  EXPECT_DOUBLE_EQ(engine->plan().predicted_seconds, measured.predicted_seconds);
  engine->set_budget(2 * smallest_budget_of(spec));
  EXPECT_EQ(engine->statistics().host_seconds, 0) << "other groups are leased";
}

TEST_P(EngineCuda, BeforeThatACallOfTheHostSaysIt) {
  const TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  EngineOptions options;
  options.rates.host_call_seconds = 0.01;
  const auto engine = open_engine(*device_, spec, smallest_budget_of(spec), options);
  const double calls = 2.75 * 4;
  const double before = engine->plan().predicted_seconds;
  EXPECT_GT(before, calls * 0.01);
  EXPECT_DOUBLE_EQ(engine->statistics().predicted_seconds, before);
  for (int pass = 0; pass < 4; ++pass) {
    engine->note_pass_begun();
    for (GroupId group = 0; group < 4; ++group) {
      ASSERT_TRUE(engine->acquire(group, *stream_));
      engine->release(group, *stream_);
    }
    engine->note_pass_ended();
  }
  EXPECT_LT(engine->plan().predicted_seconds, before / 2) << "it was measured";
}

TEST_P(EngineCuda, BytesWrittenByTheHostShow) {
  TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, smallest_budget_of(spec));
  bring_all_home(*engine);
  ReadBack read(*engine, model, *stream_);
  read.pass();
  for (int round = 0; round < 4; ++round) {
    const auto bytes = model.change(1);
    engine->replace_tensor(1, *bytes, bytes);
    EXPECT_EQ(engine->home_address(1), nullptr);
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
    EXPECT_TRUE(engine->tensor_equals(1, *bytes));
  }
}

/// The copy of a group's new bytes waits for the work that writes them to its home.
TEST_P(EngineCuda, BytesWrittenByTheDeviceShow) {
  TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  // A load ahead may read the home while it is written: it is dropped, but it is a race.
  const auto engine = open(spec, 3 * smallest_budget_of(spec), Prefetch::kNone);
  bring_all_home(*engine);
  GroupId group = 0;
  while (engine->plan().groups[group].placement != Placement::kStreamed) ++group;
  ReadBack read(*engine, model, *stream_);
  read.pass();
  for (int round = 0; round < 5; ++round) {
    const auto bytes = model.change(group);
    std::byte* const home = engine->home_address(group);
    ASSERT_NE(home, nullptr);
    const auto device_bytes = device_->allocate(bytes->size());
    const auto late = device_->create_stream();
    late->copy_to_device(device_bytes->data(), bytes->data(), bytes->size());
    late->synchronize();
    Gate gate(*late);
    late->copy_to_host(home, device_bytes->data(), bytes->size());  // as a kernel writes it
    engine->note_write(group, *late);
    {
      const std::jthread opener([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        gate.open();
      });
      ASSERT_TRUE(read.use(group));
    }
    EXPECT_EQ(read.wrong(), 0);
    late->synchronize();
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
  }
}

TEST_P(EngineCuda, TensorsAreReadWhereverTheyAre) {
  const TestModel model = equal_model(5, 9000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, budgets_of(spec, 4)[2]);
  for (int home = 0; home < 2; ++home) {
    for (TensorId tensor = 0; tensor < 5; ++tensor) {
      Bytes bytes(9000);
      engine->read_tensor(tensor, bytes);
      EXPECT_EQ(bytes, *model.bytes(tensor));
      EXPECT_TRUE(engine->tensor_equals(tensor, bytes));
      bytes[8999] ^= std::byte{1};
      EXPECT_FALSE(engine->tensor_equals(tensor, bytes));
    }
    bring_all_home(*engine);
  }
}

TEST_P(EngineCuda, AReadThatFailsIsRaisedWhereItIsNeededAndTheEngineGoesOn) {
  const TestModel model = equal_model(4, 9000);
  for (GroupId broken = 0; broken < 4; ++broken) {
    ModelSpec spec = model.in_memory();
    spec.sources[broken] = std::make_shared<FaultyReader>(
        create_memory_reader("a disk", *model.bytes(broken), model.bytes(broken)),
        Faults{.failing_read = 2});
    const auto engine = open(spec, smallest_budget_of(spec), Prefetch::kNone);
    ReadBack read(*engine, model, *stream_);
    for (GroupId group = 0; group < 4; ++group) {
      if (group == broken) {
        EXPECT_THROW(read.use(group), IoError);
      } else {
        EXPECT_TRUE(read.use(group));
      }
    }
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
  }
}

TEST_P(EngineCuda, ABringingHomeThatFailsLeavesTheSources) {
  const TestModel model = equal_model(3, 9000);
  ModelSpec spec = model.in_memory();
  spec.sources[1] = std::make_shared<FaultyReader>(
      create_memory_reader("a disk", *model.bytes(1), model.bytes(1)), Faults{.failing_read = 1});
  const auto engine = open(spec, smallest_budget_of(spec), Prefetch::kNone);
  EXPECT_THROW(engine->bring_home(1), IoError);
  ReadBack read(*engine, model, *stream_);
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
  engine->bring_home(1);
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_P(EngineCuda, StreamsTakeTurns) {
  const TestModel model = equal_model(5, 9000);
  const ModelSpec spec = model.in_memory();
  const auto engine = open(spec, 2 * smallest_budget_of(spec));
  bring_all_home(*engine);
  const auto other = device_->create_stream();
  ReadBack first(*engine, model, *stream_);
  ReadBack second(*engine, model, *other);
  for (int round = 0; round < 40; ++round) {
    ASSERT_TRUE((round % 3 == 0 ? first : second).use(static_cast<GroupId>(round % 5)));
  }
  EXPECT_EQ(first.wrong() + second.wrong(), 0);
}

TS_ON_EACH_GPU(EngineCuda);

/// What only the fake driver can be told to do.
class EngineFakeCuda : public ::testing::Test {
 protected:
  EngineFakeCuda() { fake_.reset(); }
  ~EngineFakeCuda() override {
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
  }
  const FakeCuda fake_;
};

TEST_F(EngineFakeCuda, WhereNothingIsPinnedWeightsAreStaged) {
  fake_.set("most_registered_bytes", 1);
  const TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = create_cuda_device(on_fake(Checking::kOn));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec), {});
  for (GroupId group = 0; group < 4; ++group) engine->bring_home(group);
  EXPECT_EQ(engine->statistics().pinned_bytes, 0U);
  EXPECT_EQ(engine->home_address(0), nullptr);
  ReadBack read(*engine, model, *stream);
  for (int i = 0; i < 3; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

/// In the order in which they are made.
struct AtHome {
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Engine> engine;
};

/// An engine of the fewest bytes, all of whose groups are at home.
AtHome open_at_home(const TestModel& model) {
  const ModelSpec spec = model.in_memory();
  AtHome made;
  made.device = create_cuda_device(on_fake(Checking::kOff));
  made.stream = made.device->create_stream();
  made.engine =
      open_engine(*made.device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
  for (GroupId group = 0; group < model.group_count(); ++group) made.engine->bring_home(group);
  return made;
}

TEST_F(EngineFakeCuda, AStreamThatIsCapturedTakesNoLease) {
  const TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  const auto settled = open_engine(*device, spec, everything_of(spec));
  ReadBack read(*engine, model, *stream);
  read.pass();
  for (const int capturing : {1, 2}) {
    fake_.set("capturing", capturing);
    for (GroupId group = 0; group < 4; ++group) {
      EXPECT_THROW(static_cast<void>(engine->acquire(group, *stream)), UnsupportedError);
      EXPECT_THROW(static_cast<void>(settled->acquire(group, *stream)), UnsupportedError);
    }
  }
  fake_.set("capturing", 0);
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

/// A graph would keep the end of its use, and nothing could wait for it.
TEST_F(EngineFakeCuda, ALeaseStaysWhileItsStreamIsCaptured) {
  const TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  for (const std::uint64_t budget : {smallest_budget_of(spec), everything_of(spec)}) {
    const auto engine = open_engine(*device, spec, budget);
    ASSERT_TRUE(engine->acquire(0, *stream));
    const long long records = fake_.calls("cuEventRecord");
    fake_.set("capturing", 1);
    EXPECT_THROW(engine->release(0, *stream), UnsupportedError);
    engine->release_all(*stream);
    fake_.set("capturing", 0);
    EXPECT_EQ(fake_.calls("cuEventRecord"), records);
    engine->release(0, *stream);
    ReadBack read(*engine, model, *stream);
    read.pass();
    EXPECT_EQ(read.wrong(), 0);
  }
}

/// Another model's, which torch captures so that calls that wait are forbidden to all threads.
TEST_F(EngineFakeCuda, OpensStreamsAndEndsBesideTheCaptureOfAnotherStream) {
  fake_.set("captured_globally", 1);
  const TestModel model = equal_model(4, 9000);
  const auto [device, stream, engine] = open_at_home(model);
  ReadBack read(*engine, model, *stream);
  for (int i = 0; i < 3; ++i) read.pass();
  EXPECT_EQ(read.wrong(), 0);
  engine->set_budget(everything_of(model.in_memory()));
  read.pass();
  EXPECT_EQ(read.wrong(), 0);
}

TEST_F(EngineFakeCuda, EndsWhereTheDriverRefusesToWait) {
  const TestModel model = equal_model(4, 9000);
  for (const char* call : {"cuStreamSynchronize", "cuEventSynchronize"}) {
    auto [device, stream, engine] = open_at_home(model);
    ReadBack read(*engine, model, *stream);
    read.pass();
    stream->synchronize();
    fake_.fail(call, 1, CudaResult::kStreamCaptureUnsupported);
    engine.reset();
  }
}

/// However far the caller runs ahead of the GPU: a full queue blocks whoever enqueues.
TEST_F(EngineFakeCuda, TheDriverHoldsFewLoadsAtOnce) {
  const TestModel model = equal_model(8, 9000);
  const auto [device, stream, engine] = open_at_home(model);
  ASSERT_TRUE(engine->acquire(0, *stream));
  ASSERT_TRUE(eventually([&] { return engine->statistics().loads == 1; }));
  Gate gate(*stream);
  engine->release(0, *stream);
  const long long copies = fake_.calls("cuMemcpyHtoDAsync_v2");
  std::jthread caller([&] {
    for (GroupId group = 1; group < 8; ++group) {
      EXPECT_TRUE(engine->acquire(group, *stream));
      engine->release(group, *stream);
    }
  });
  EXPECT_TRUE(eventually([&] { return fake_.calls("cuMemcpyHtoDAsync_v2") == copies + 2; }));
  EXPECT_TRUE(stays_false([&] { return fake_.calls("cuMemcpyHtoDAsync_v2") > copies + 2; }));
  gate.open();
  caller.join();
  EXPECT_TRUE(eventually([&] { return engine->statistics().loads == 8; }));
}

/// The driver may hold up the loader, with its lock, until a callback has run.
TEST_F(EngineFakeCuda, CallbacksNeedNoLockThatIsHeldInTheDriver) {
  const TestModel model = equal_model(6, 9000);
  const auto [device, stream, engine] = open_at_home(model);
  fake_.set("pageable_copies_wait", 0);
  ReadBack read(*engine, model, *stream);
  ASSERT_TRUE(read.use(0));
  const long long done = 1;  // that load's callback
  ASSERT_TRUE(eventually([&] { return fake_.calls("host functions") == done; }));
  Gate gate(*stream);
  ASSERT_TRUE(read.use(1));  // behind the gate, and its load's callback too
  fake_.set("hold_calls", 1);
  std::jthread caller([&] { EXPECT_TRUE(read.use(2)); });
  EXPECT_TRUE(eventually([&] { return fake_.get("held_calls") > 0; }));
  gate.open();
  EXPECT_TRUE(eventually([&] { return fake_.calls("host functions") == done + 2; }));
  fake_.set("hold_calls", 0);
  caller.join();
  EXPECT_EQ(read.wrong(), 0);
}

/// Its callbacks may never run then, and nobody may wait for them for ever.
TEST_F(EngineFakeCuda, ALostContextIsAnErrorAndNoHang) {
  const TestModel model = equal_model(6, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = create_cuda_device(on_fake(Checking::kOff));
  const auto stream = device->create_stream();
  {
    const auto engine =
        open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
    for (GroupId group = 0; group < 6; ++group) engine->bring_home(group);
    ASSERT_TRUE(engine->acquire(0, *stream));
    // The driver runs one host function at a time: behind the gate this load would never end.
    ASSERT_TRUE(eventually([&] { return engine->statistics().loads == 1; }));
    Gate gate(*stream);
    engine->release(0, *stream);
    ASSERT_TRUE(engine->acquire(1, *stream));  // its copy waits for the gate, and the next ones too
    engine->release(1, *stream);
    ASSERT_TRUE(engine->acquire(2, *stream));
    engine->release(2, *stream);
    fake_.set("lost", static_cast<int>(CudaResult::kIllegalAddress));
    EXPECT_THROW(static_cast<void>(engine->acquire(3, *stream)), CudaError);
    fake_.set("lost", 0);
  }
}

/// Each driver call of a run fails once: an error that is raised, or a result that is right.
TEST_F(EngineFakeCuda, ADriverCallThatFailsIsNeverAWrongResult) {
  const TestModel model = equal_model(4, 9000);
  const ModelSpec spec = model.in_memory();
  for (const char* function :
       {"cuMemcpyHtoDAsync_v2", "cuStreamWaitEvent", "cuEventRecord", "cuLaunchHostFunc"}) {
    for (int nth = 1; nth <= 24; ++nth) {
      SCOPED_TRACE(std::string(function) + " " + std::to_string(nth));
      fake_.reset();
      const auto device = create_cuda_device(on_fake(Checking::kOff));
      const auto stream = device->create_stream();
      const auto engine =
          open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kNone));
      for (GroupId group = 0; group < 4; ++group) engine->bring_home(group);
      ReadBack read(*engine, model, *stream);
      fake_.fail(function, nth, CudaResult::kInvalidHandle);
      for (GroupId group = 0; group < 8; ++group) {
        try {
          static_cast<void>(read.use(group % 4));
        } catch (const CudaError&) {  // raised to whoever asked for it
        }
      }
      EXPECT_EQ(read.wrong(), 0);
    }
  }
}

}  // namespace
}  // namespace tensorstream
