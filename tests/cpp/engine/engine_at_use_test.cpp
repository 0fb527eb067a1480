// Groups that their caller loads: on which threads, what is asked of the disk, who waits.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "device/gate.h"
#include "engine/held_reader.h"
#include "engine/load.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"
#include "made_bytes/weights.h"
#include "platform/openmp_team.h"

namespace tensorstream {
namespace {

/// Notes which threads read and what was asked for ahead. Thread-safe.
class NotingReader final : public Reader {
 public:
  /// Reads wait until `together` threads have begun one.
  explicit NotingReader(std::shared_ptr<Reader> reader, std::size_t together = 1)
      : reader_(std::move(reader)), together_(together) {}

  const std::string& name() const noexcept override { return reader_->name(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return reader_->size_bytes(); }
  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    {
      MutexLock lock(mutex_);
      threads_.insert(std::this_thread::get_id());
      changed_.notify_all();
      while (threads_.size() < together_) changed_.wait(lock);
    }
    reader_->read(offset_bytes, out);
  }
  bool cached(std::uint64_t /*offset_bytes*/,
              std::uint64_t /*size_bytes*/) const noexcept override {
    const MutexLock lock(mutex_);
    return cached_;
  }
  /// Waits while it is held up.
  void prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    MutexLock lock(mutex_);
    if (offset_bytes == 0) ++asked_;
    prefetched_bytes_ += size_bytes;
    changed_.notify_all();
    while (held_) changed_.wait(lock);
  }

  std::set<std::thread::id> threads() const {
    const MutexLock lock(mutex_);
    return threads_;
  }
  /// How often the source was asked for ahead of a read.
  int asked() const {
    const MutexLock lock(mutex_);
    return asked_;
  }
  std::uint64_t prefetched_bytes() const {
    const MutexLock lock(mutex_);
    return prefetched_bytes_;
  }
  void wait_until_asked() const {
    MutexLock lock(mutex_);
    while (asked_ == 0) changed_.wait(lock);
  }
  void set_cached(bool cached) {
    const MutexLock lock(mutex_);
    cached_ = cached;
  }
  void hold_prefetches(bool held) {
    const MutexLock lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }

 private:
  // Constant after construction.
  const std::shared_ptr<Reader> reader_;  // shared with the model that it was taken from
  const std::size_t together_;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  mutable ConditionVariable changed_;
  std::set<std::thread::id> threads_ TS_GUARDED_BY(mutex_);
  mutable int asked_ TS_GUARDED_BY(mutex_) = 0;
  mutable std::uint64_t prefetched_bytes_ TS_GUARDED_BY(mutex_) = 0;
  bool cached_ TS_GUARDED_BY(mutex_) = false;
  bool held_ TS_GUARDED_BY(mutex_) = false;
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
  for (const GroupId next : {1U, 2U, 3U, 4U}) readers_[next]->wait_until_asked();
  for (const GroupId next : {1U, 2U, 3U, 4U}) EXPECT_EQ(readers_[next]->asked(), 1) << next;
  EXPECT_EQ(readers_[0]->threads().size(), 1U);
  engine->release(0, caller_);
}

TEST_F(EngineAtUse, TheDiskIsNotAskedForWhatIsCached) {
  for (const auto& reader : readers_) reader->set_cached(true);
  readers_[3]->set_cached(false);
  const auto engine = open(Prefetch::kReadAhead);
  ASSERT_TRUE(engine->acquire(0, caller_));
  readers_[3]->wait_until_asked();
  engine->release(0, caller_);
  for (const GroupId other : {0U, 1U, 2U, 4U}) EXPECT_EQ(readers_[other]->asked(), 0) << other;
}

TEST_F(EngineAtUse, AnEngineEndsWhileTheDiskReads) {
  readers_[1]->hold_prefetches(true);
  auto engine = open(Prefetch::kReadAhead);
  ASSERT_TRUE(engine->acquire(0, caller_));
  readers_[1]->wait_until_asked();
  engine->release(0, caller_);
  std::jthread closing([&] { engine.reset(); });
  readers_[1]->hold_prefetches(false);
  closing.join();
  EXPECT_EQ(readers_[0]->threads().size(), 1U);
}

TEST_F(EngineAtUse, TheDiskIsAskedOnceForEachLoad) {
  const auto engine = open(Prefetch::kReadAhead);
  Computation computation(*engine, model_);
  for (int pass = 1; pass <= 3; ++pass) {
    for (GroupId group = 0; group < 5; ++group) {
      ASSERT_TRUE(engine->acquire(group, caller_));
      ASSERT_TRUE(computation.use(group, caller_));
      engine->release(group, caller_);
    }
    for (const auto& reader : readers_) EXPECT_LE(reader->asked(), pass + 1);  // the next one too
  }
}

TEST_F(EngineAtUse, NothingIsAskedForWithoutPrefetch) {
  const auto engine = open(Prefetch::kNone);
  ASSERT_TRUE(engine->acquire(0, caller_));
  engine->release(0, caller_);
  EXPECT_TRUE(stays_false([&] {
    return std::ranges::any_of(readers_, [](const auto& reader) { return reader->asked() > 0; });
  }));
}

/// The caller does not wait for the disk to have read ahead: it reads the group itself, and what is
/// left of the reading ahead is dropped.
TEST(EngineAtUseLarge, NothingMoreIsReadAheadOfAGroupThatIsLoaded) {
  const TestModel model = equal_model(2, 40_MiB);
  ModelSpec spec = model.in_memory();
  const auto reader = std::make_shared<NotingReader>(spec.sources[1]);
  spec.sources[1] = reader;
  const auto device = create_host_device();
  auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  reader->hold_prefetches(true);
  Computation computation(*engine, model);
  ASSERT_TRUE(computation.use(0, device->caller_stream()));
  reader->wait_until_asked();
  ASSERT_TRUE(computation.use(1, device->caller_stream()));
  reader->hold_prefetches(false);
  engine.reset();  // its thread has ended
  EXPECT_LT(reader->prefetched_bytes(), 40_MiB);
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

/// A copy from RAM cannot fail, but it is the first caller that makes it and records its event.
TEST(EngineAtUseThreads, TheSecondCallerWaitsForACopyThatTheFirstHasNotMade) {
  const TestModel model = equal_model(2, 9000);
  const ModelSpec spec = model.in_memory();
  const auto device = checking_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  const auto other = device->create_stream();
  ASSERT_TRUE(engine->acquire(0, *other));
  Gate gate(*other);
  engine->release(0, *other);  // the copy of group 1 waits for it
  std::atomic<int> leases = 0;
  std::atomic<int> right = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      if (!engine->acquire(1, device->caller_stream())) return;
      ++leases;
      const TensorPlace place = engine->places(1)[0];
      if (std::memcmp(place.data, model.bytes(1)->data(), place.size_bytes) == 0) ++right;
    });
  }
  EXPECT_TRUE(stays_false([&] { return leases > 0; }));
  gate.open();
  threads.clear();
  EXPECT_EQ(leases, 2);
  EXPECT_EQ(right, 2);
  engine->release(1, device->caller_stream());
  engine->release(1, device->caller_stream());
}

/// As the threads of a team do.
TEST(LoadTest, ThreadsShareTheReadsOfALoad) {
  const auto bytes = std::make_shared<const Bytes>(patterned_bytes(9_MiB + 5));
  const auto reader = std::make_shared<NotingReader>(memory_reader("a buffer", bytes), 3);
  Load load(0, Load::Reads::kInPlace);
  Bytes target(bytes->size());
  load.add({reader, 0, bytes->size()}, target.data(), 16_MiB);
  ASSERT_TRUE(load.can_fail() && load.is_large());
  {
    std::vector<std::jthread> team;
    for (int i = 0; i < 3; ++i) team.emplace_back([&] { load.read(); });
  }
  EXPECT_EQ(load.error(), nullptr);
  EXPECT_EQ(target, *bytes);
}

/// Groups large enough for several threads, on the OpenMP team of this program. Not for the thread
/// sanitizer, which does not see how an OpenMP runtime orders its threads.
class EngineAtUseTeam : public ::testing::Test {
 protected:
  EngineAtUseTeam() { omp_set_num_threads(kTeam); }

  static constexpr int kTeam = 3;
  const TestModel model_ = equal_model(2, 9_MiB + 77);
  ModelSpec spec_ = model_.in_memory();
  const std::unique_ptr<Device> device_ = create_host_device();
};

TEST_F(EngineAtUseTeam, EveryThreadOfTheTeamReads) {
  std::vector<std::shared_ptr<NotingReader>> readers;
  for (auto& source : spec_.sources) {
    readers.push_back(std::make_shared<NotingReader>(source, kTeam));
    source = readers.back();
  }
  const auto engine =
      open_engine(*device_, spec_, smallest_budget_of(spec_), with_prefetch(Prefetch::kReadAhead));
  Computation computation(*engine, model_);
  computation.pass(device_->caller_stream());
  EXPECT_EQ(computation.right(), 2U);
  for (const auto& reader : readers) EXPECT_EQ(reader->threads().size(), std::size_t{kTeam});
}

TEST_F(EngineAtUseTeam, AReadThatFailsInTheTeamIsRaisedOnce) {
  for (int failing_read = 1; failing_read <= 5; ++failing_read) {
    const auto bytes = model_.bytes(0);
    spec_.sources[0] = std::make_shared<FaultyReader>(create_memory_reader("a disk", *bytes, bytes),
                                                      Faults{.failing_read = failing_read});
    const auto engine = open_engine(*device_, spec_, smallest_budget_of(spec_),
                                    with_prefetch(Prefetch::kReadAhead));
    Computation computation(*engine, model_);
    EXPECT_THROW(static_cast<void>(computation.use(0, device_->caller_stream())), IoError);
    computation.pass(device_->caller_stream());
    EXPECT_EQ(computation.right(), 2U);
  }
}

}  // namespace
}  // namespace tensorstream
