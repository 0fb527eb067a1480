// Groups that are used where the page cache has them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/units.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "platform/dropped_pages.h"
#include "platform/mapped_bytes.h"
#include "platform/page_cache.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Three groups of one large and one small tensor each, in files whose windows are always used.
class EngineWindow : public ::testing::Test {
 protected:
  EngineWindow() {
    for (int i = 0; i < 3; ++i) model_.add_group({kLarge, kSmall});
    spec_ = model_.in_files(folder_);
    for (TensorId id = 0; id < model_.tensor_count(); ++id) {
      spec_.sources[id] = open_file_reader(path(id), FileBackend::kMmap);
    }
    open();
  }
  void SetUp() override {
    if (may_write_while_leased()) GTEST_SKIP() << "this file system gives no leases";
  }

  void open() {
    engine_ = open_engine(*device_, spec_, smallest_budget_of(spec_),
                          with_prefetch(Prefetch::kReadAhead));
  }
  std::string path(TensorId id) const { return folder_.path("tensor_" + std::to_string(id)); }
  bool may_write(TensorId id) const {
    const int writer = ::open(path(id).c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (writer < 0) return false;
    ::close(writer);
    return true;
  }
  bool may_write_while_leased() {
    if (!engine_->acquire(0, caller_)) return true;
    const bool result = may_write(0);
    engine_->release(0, caller_);
    return result;
  }
  std::uint64_t resident_bytes() const {
    std::uint64_t sum = 0;
    for (TensorId id = 0; id < model_.tensor_count(); ++id) sum += mapped_resident_bytes(path(id));
    return sum;
  }

  /// What is read ahead is mapped for a moment.
  bool has_no_pages() const {
    return eventually([&] { return resident_bytes() == 0; });
  }

  static constexpr std::uint64_t kLarge = 5_MiB + 3;
  static constexpr std::uint64_t kSmall = 9000;
  const TemporaryFolder folder_;
  TestModel model_;
  ModelSpec spec_;
  const std::unique_ptr<Device> device_ = create_host_device();
  Stream& caller_ = device_->caller_stream();
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineWindow, EveryGroupIsRight) {
  Computation computation(*engine_, model_);
  const std::uint64_t before = engine_->statistics().streamed_disk_bytes;
  for (int pass = 0; pass < 3; ++pass) computation.pass(caller_);
  EXPECT_EQ(computation.right(), 18U);
  EXPECT_EQ(computation.wrong(), 0U);
  EXPECT_EQ(engine_->statistics().streamed_disk_bytes - before, 9 * (kLarge + kSmall));
}

TEST_F(EngineWindow, AddressesStay) {
  const std::vector<TensorPlace> before = engine_->places(1);
  Computation computation(*engine_, model_);
  computation.pass(caller_);
  const std::vector<TensorPlace> after = engine_->places(1);
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_EQ(before[i].data, after[i].data);
}

/// They are the page cache's own: what it loses is read past it, to the group's place in the arena.
TEST_F(EngineWindow, GroupsLeaveWindowsThatThePageCacheLoses) {
  for (TensorId id = 0; id < model_.tensor_count(); ++id) {
    spec_.sources[id] = open_file_reader(path(id), FileBackend::kCached);
  }
  open();
  Computation computation(*engine_, model_);
  computation.pass(caller_);
  const std::uint32_t place_number = engine_->place_number(1);
  const std::byte* const address = engine_->places(1)[0].data;
  const TensorId lost = engine_->groups()[1].tensors[0];
  if (!drop_from_page_cache(path(lost))) GTEST_SKIP() << "this file system keeps its pages";
  for (int pass = 0; pass < 3; ++pass) computation.pass(caller_);
  EXPECT_EQ(computation.right(), 24U);
  EXPECT_EQ(computation.wrong(), 0U);
  const File file = File::open_for_reading(path(lost));
  EXPECT_EQ(bytes_in_page_cache(file, 0, file.size_bytes()), 0U);
  // Where there were windows, which is where the page cache had large pages.
  const bool moved = engine_->places(1)[0].data != address;
  EXPECT_EQ(engine_->place_number(1) != place_number, moved);
}

TEST_F(EngineWindow, PagesAreOnlyThereDuringALease) {
  EXPECT_TRUE(has_no_pages());
  ASSERT_TRUE(engine_->acquire(0, caller_));
  EXPECT_GE(resident_bytes(), kLarge);
  EXPECT_LT(resident_bytes(), 2 * kLarge);
  ASSERT_TRUE(engine_->acquire(0, caller_));
  engine_->release(0, caller_);
  EXPECT_GE(resident_bytes(), kLarge);  // a lease is left
  engine_->release(0, caller_);
  EXPECT_TRUE(has_no_pages());
}

TEST_F(EngineWindow, WritersWaitForTheLeaseAlone) {
  EXPECT_TRUE(may_write(0));
  ASSERT_TRUE(engine_->acquire(0, caller_));
  EXPECT_FALSE(may_write(0));
  EXPECT_TRUE(may_write(2));
  engine_->release(0, caller_);
  EXPECT_TRUE(may_write(0));
}

TEST_F(EngineWindow, AnAbandonedForwardLetsPagesGo) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  engine_->release_all(caller_);
  EXPECT_TRUE(has_no_pages());
  EXPECT_TRUE(may_write(0));
}

/// The bytes are read to the same place then.
TEST_F(EngineWindow, AFileThatIsOpenForWritingIsCopied) {
  const int writer = ::open(path(0).c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  const std::byte* const data = engine_->places(0)[0].data;
  Computation computation(*engine_, model_);
  ASSERT_TRUE(engine_->acquire(0, caller_));
  EXPECT_EQ(engine_->places(0)[0].data, data);
  computation.compute(0, caller_);
  EXPECT_EQ(mapped_resident_bytes(path(0)), 0U);
  engine_->release(0, caller_);
  ::close(writer);
  computation.pass(caller_);
  EXPECT_EQ(computation.right(), 8U);
  ASSERT_TRUE(engine_->acquire(0, caller_));
  EXPECT_GE(mapped_resident_bytes(path(0)), kLarge);  // shown again
  engine_->release(0, caller_);
}

TEST_F(EngineWindow, AReplacedTensorIsUsedAndItsFileIsNot) {
  const auto bytes = model_.change(0);
  engine_->replace_tensor(0, *bytes, bytes);
  std::filesystem::resize_file(path(0), 0);  // as a save over the checkpoint does
  Computation computation(*engine_, model_);
  computation.pass(caller_);
  computation.pass(caller_);
  EXPECT_EQ(computation.right(), 12U);
}

/// It has a place in the arena from then on, where a copy costs no new pages.
TEST_F(EngineWindow, AReplacedTensorHasNoWindow) {
  const std::vector<TensorPlace> before = engine_->places(0);
  const std::uint32_t place_number = engine_->place_number(0);
  const auto bytes = model_.change(0);
  engine_->replace_tensor(0, *bytes, bytes);
  EXPECT_NE(engine_->place_number(0), place_number);
  EXPECT_NE(engine_->places(0)[0].data, before[0].data);
  EXPECT_EQ(engine_->places(0)[1].data, before[1].data);
}

TEST_F(EngineWindow, AWriteThroughAViewThatWasKeptDoesNotShow) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  std::byte* const kept = engine_->places(0)[0].data;
  engine_->release(0, caller_);
  std::memset(kept, 0xEE, kLarge);
  Computation computation(*engine_, model_);
  computation.pass(caller_);
  EXPECT_EQ(computation.right(), 6U);
}

TEST_F(EngineWindow, WhatAForwardWroteToThePagesGoesWithThem) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  std::memset(engine_->places(0)[0].data, 0xEE, kLarge);
  engine_->release(0, caller_);
  Computation computation(*engine_, model_);
  computation.pass(caller_);
  EXPECT_EQ(computation.right(), 6U);
}

TEST_F(EngineWindow, AChangedFileIsAnIoErrorAndTheRestGoesOn) {
  std::filesystem::resize_file(path(2), 1_MiB);
  Computation computation(*engine_, model_);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THROW(static_cast<void>(engine_->acquire(1, caller_)), IoError);
    EXPECT_TRUE(computation.use(0, caller_));
    EXPECT_TRUE(computation.use(2, caller_));
  }
  EXPECT_EQ(computation.right(), 8U);
  EXPECT_TRUE(has_no_pages());
}

/// The first tensor's window is open by the time that the second cannot be read.
TEST_F(EngineWindow, ALoadThatFailsLeavesNothingOpen) {
  std::filesystem::resize_file(path(1), 10);
  EXPECT_THROW(static_cast<void>(engine_->acquire(0, caller_)), IoError);
  EXPECT_TRUE(has_no_pages());
  EXPECT_TRUE(may_write(0));
}

TEST_F(EngineWindow, AFileThatChangedDuringALeaseIsAnIoError) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  const timespec times[2] = {{.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 1}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path(0).c_str(), times, 0), 0);
  EXPECT_THROW(engine_->release(0, caller_), IoError);
  EXPECT_TRUE(has_no_pages());
  EXPECT_THROW(engine_->release(0, caller_), LeaseError);  // it was given back
}

/// Work of another stream still reads the pages when the lease ends.
TEST_F(EngineWindow, PagesStayUntilTheWorkOfAStreamIsDone) {
  const auto stream = device_->create_stream();
  Computation computation(*engine_, model_);
  ASSERT_TRUE(engine_->acquire(0, *stream));
  std::uint64_t seen = 0;
  stream->run([&] {
    ::usleep(50'000);
    seen = mapped_resident_bytes(path(0));
  });
  engine_->release(0, *stream);
  stream->synchronize();
  EXPECT_GE(seen, kLarge);
  EXPECT_TRUE(has_no_pages());
}

TEST(EngineWindowAlignment, TensorsThatLieOtherwiseInTheModelAreCopied) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(2, 5_MiB);
  ModelSpec spec = model.in_files(folder);
  for (TensorId id = 0; id < 2; ++id) {
    spec.sources[id] =
        open_file_reader(folder.path("tensor_" + std::to_string(id)), FileBackend::kMmap);
    spec.tensors[id].line_offset_bytes = 8;
  }
  const auto device = create_host_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(engine->places(0)[0].data) % kCacheLineBytes, 8U);
  Computation computation(*engine, model);
  computation.pass(device->caller_stream());
  EXPECT_EQ(computation.right(), 2U);
}

/// A model of five groups in files, of which the first has to be copied.
ModelSpec first_copied(const TestModel& model, const TemporaryFolder& folder) {
  ModelSpec spec = model.in_files(folder);
  for (TensorId id = 1; id < 5; ++id) {
    spec.sources[id] =
        open_file_reader(folder.path("tensor_" + std::to_string(id)), FileBackend::kMmap);
  }
  spec.tensors[0].line_offset_bytes = 8;
  return spec;
}

/// The arena's pages of the one are gone before the windows of the other open.
TEST(EngineWindowBudget, CopiedGroupsAndWindowsTakeNoMoreThanTheArenaTogether) {
  constexpr std::uint64_t kSize = 64_MiB;
  const TemporaryFolder folder;
  const TestModel model = equal_model(5, kSize);
  const ModelSpec spec = first_copied(model, folder);
  const auto device = create_host_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  Stream& caller = device->caller_stream();
  ASSERT_TRUE(engine->acquire(0, caller));
  const std::byte* const arena = engine->places(0)[0].data;
  EXPECT_GE(resident_bytes_around(arena), kSize);
  engine->release(0, caller);
  for (const GroupId group : {1U, 2U, 3U}) {
    ASSERT_TRUE(engine->acquire(group, caller));
    const std::uint64_t mapped =
        mapped_resident_bytes(folder.path("tensor_" + std::to_string(group)));
    EXPECT_LE(resident_bytes_around(arena) + mapped, kSize + 8_MiB);
    engine->release(group, caller);
  }
  Computation computation(*engine, model);
  for (int pass = 0; pass < 2; ++pass) computation.pass(caller);
  EXPECT_EQ(computation.right(), 10U);
}

/// Its place is given back behind the work that still reads it.
TEST(EngineWindowBudget, ACopiedGroupIsRightWhileTheNextOneComes) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(5, 5_MiB);
  const ModelSpec spec = first_copied(model, folder);
  const auto device = create_host_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  const auto stream = device->create_stream();
  Computation computation(*engine, model);
  ASSERT_TRUE(engine->acquire(0, *stream));
  stream->run([] { ::usleep(50'000); });
  computation.compute(0, *stream);
  engine->release(0, *stream);
  ASSERT_TRUE(computation.use(1, device->caller_stream()));
  stream->synchronize();
  EXPECT_EQ(computation.right(), 2U);
}

TEST(EngineWindowBudget, ThereAreNoneWhereTheyAreTheLesserPart) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(4, 5_MiB);
  ModelSpec spec = model.in_files(folder);
  for (const TensorId id : {0U, 1U}) {
    spec.sources[id] =
        open_file_reader(folder.path("tensor_" + std::to_string(id)), FileBackend::kMmap);
  }
  for (const TensorId id : {2U, 3U}) spec.tensors[id].line_offset_bytes = 8;
  const auto device = create_host_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  EXPECT_EQ(engine->places(0)[0].data, engine->places(1)[0].data);  // in the arena
  Computation computation(*engine, model);
  computation.pass(device->caller_stream());
  EXPECT_EQ(computation.right(), 4U);
}

/// Whether the page cache makes windows quick or not.
TEST(EngineWindowAuto, EveryGroupIsRight) {
  const TemporaryFolder folder;
  const TestModel model = equal_model(3, 9_MiB + 1);
  const ModelSpec spec = model.in_files(folder);
  const auto device = create_host_device();
  const auto engine =
      open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(Prefetch::kReadAhead));
  Computation computation(*engine, model);
  for (int pass = 0; pass < 2; ++pass) computation.pass(device->caller_stream());
  EXPECT_EQ(computation.right(), 6U);
}

}  // namespace
}  // namespace tensorstream
