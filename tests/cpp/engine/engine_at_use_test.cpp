// Groups that their caller loads: on which threads, what is asked of the disk, who waits.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "engine/held_reader.h"
#include "engine/load.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

/// Notes which threads read and what was asked for ahead. Thread-safe.
class NotingReader final : public Reader {
 public:
  explicit NotingReader(std::shared_ptr<Reader> reader) : reader_(std::move(reader)) {}

  const std::string& name() const noexcept override { return reader_->name(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return reader_->size_bytes(); }
  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    {
      const MutexLock lock(mutex_);
      threads_.insert(std::this_thread::get_id());
    }
    reader_->read(offset_bytes, out);
  }
  void prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    const MutexLock lock(mutex_);
    if (offset_bytes == 0 && size_bytes == reader_->size_bytes()) ++asked_;
  }

  std::set<std::thread::id> threads() const {
    const MutexLock lock(mutex_);
    return threads_;
  }
  /// How often the whole source was asked for.
  int asked() const {
    const MutexLock lock(mutex_);
    return asked_;
  }

 private:
  // Constant after construction.
  const std::shared_ptr<Reader> reader_;  // shared with the model that it was taken from

  // Guarded by mutex_.
  mutable Mutex mutex_;
  std::set<std::thread::id> threads_ TS_GUARDED_BY(mutex_);
  mutable int asked_ TS_GUARDED_BY(mutex_) = 0;
};

class EngineAtUse : public ::testing::Test {
 protected:
  EngineAtUse() {
    for (auto& source : spec_.sources) {
      readers_.push_back(std::make_shared<NotingReader>(source));
      source = readers_.back();
    }
  }
  std::unique_ptr<Engine> open(Prefetch prefetch) {
    return open_engine(*device_, spec_, smallest_budget_of(spec_), with_prefetch(prefetch));
  }

  const TestModel model_ = equal_model(5, 9000);
  ModelSpec spec_ = model_.in_memory();
  std::vector<std::shared_ptr<NotingReader>> readers_;
  const std::unique_ptr<Device> device_ = checking_device();
  Stream& caller_ = device_->caller_stream();
};

TEST_F(EngineAtUse, TheCallerReadsAndNobodyElse) {
  const auto engine = open(Prefetch::kReadAhead);
  Computation computation(*engine, model_);
  computation.pass(caller_);
  computation.pass(caller_);
  EXPECT_EQ(computation.right(), 10U);
  const std::set<std::thread::id> caller = {std::this_thread::get_id()};
  for (const auto& reader : readers_) EXPECT_EQ(reader->threads(), caller);
  EXPECT_EQ(engine->statistics().loads, 10U);
  EXPECT_EQ(engine->statistics().misses, 10U);
}

TEST_F(EngineAtUse, OnTheHostThatIsAdaptive) {
  const auto engine = open(Prefetch::kAdaptive);
  ASSERT_TRUE(engine->acquire(0, caller_));
  EXPECT_EQ(readers_[0]->threads(), std::set<std::thread::id>{std::this_thread::get_id()});
  engine->release(0, caller_);
}

TEST_F(EngineAtUse, TheDiskIsAskedForWhatComesNext) {
  const auto engine = open(Prefetch::kReadAhead);
  ASSERT_TRUE(engine->acquire(0, caller_));
  for (const GroupId next : {1U, 2U, 3U, 4U}) EXPECT_EQ(readers_[next]->asked(), 1) << next;
  EXPECT_EQ(readers_[0]->threads().size(), 1U);
  engine->release(0, caller_);
}

TEST_F(EngineAtUse, NothingIsAskedForWithoutPrefetch) {
  const auto engine = open(Prefetch::kNone);
  ASSERT_TRUE(engine->acquire(0, caller_));
  engine->release(0, caller_);
  for (const auto& reader : readers_) EXPECT_EQ(reader->asked(), 0);
}

/// The second caller finds the load under way.
TEST(EngineAtUseThreads, TwoCallersOfOneGroupShareItsLoad) {
  const TestModel model = equal_model(2, 9000);
  ModelSpec spec = model.in_memory();
  const auto held = std::make_shared<HeldReader>(spec.sources[0]);
  spec.sources[0] = held;
  const auto device = checking_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  std::atomic<int> leases = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      if (engine->acquire(0, device->caller_stream())) ++leases;
    });
  }
  held->wait_until_begun();
  EXPECT_TRUE(stays_false([&] { return leases > 0; }));
  held->open();
  threads.clear();
  EXPECT_EQ(leases, 2);
  EXPECT_EQ(engine->statistics().loads, 1U);
  engine->release(0, device->caller_stream());
  engine->release(0, device->caller_stream());
}

/// As the threads of a team do.
TEST(LoadTest, ThreadsShareTheReadsOfALoad) {
  const auto bytes = std::make_shared<const Bytes>(Bytes(100'000, std::byte{7}));
  const auto reader = std::make_shared<HeldReader>(memory_reader("a buffer", bytes));
  Load load(0, Load::Reads::kInPlace);
  Bytes target(bytes->size());
  load.add({reader, 0, bytes->size()}, target.data(), 10);
  ASSERT_TRUE(load.can_fail());
  {
    std::vector<std::jthread> team;
    for (int i = 0; i < 3; ++i) team.emplace_back([&] { load.read(); });
    reader->wait_until_begun();
    reader->open();
  }
  EXPECT_EQ(load.error(), nullptr);
  EXPECT_EQ(target, *bytes);
}

}  // namespace
}  // namespace tensorstream
