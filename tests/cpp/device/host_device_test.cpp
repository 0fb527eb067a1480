#include "device/host_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "device/gate.h"
#include "platform/mapping.h"
#include "platform/process_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::byte kStale{0xFF};

std::vector<std::byte> bytes_of(const DeviceMemory& memory) {
  return {memory.data(), memory.data() + memory.size_bytes()};
}

void touch(const std::byte* data) {
  static_cast<void>(*static_cast<const volatile std::byte*>(data));
}

/// A device that checks. Its tests are death tests: they run before those that leave threads.
class CheckedDeviceDeathTest : public ::testing::Test {
 protected:
  CheckedDeviceDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  const std::uint64_t page_ = page_size_bytes();
  const std::unique_ptr<Device> device_ =
      create_host_device({.checking = Checking::kOn, .longest_delay_us = 50});
  Stream& caller_ = device_->caller_stream();
};
using CheckedDevice = CheckedDeviceDeathTest;

TEST_F(CheckedDeviceDeathTest, FreshMemoryCannotBeTouchedAndIsStale) {
  const auto memory = device_->allocate(2 * page_ + 10);
  EXPECT_DEATH(touch(memory->data()), "");
  EXPECT_DEATH(memory->data()[2 * page_] = std::byte{1}, "");
  caller_.set_access(memory->data(), memory->size_bytes(), Access::kReadWrite);
  EXPECT_THAT(bytes_of(*memory), Each(kStale));
}

TEST_F(CheckedDeviceDeathTest, AccessTakenAwayIsGone) {
  const auto memory = device_->allocate(3 * page_);
  caller_.set_access(memory->data(), 3 * page_, Access::kReadWrite);
  caller_.set_access(memory->data() + page_, page_, Access::kNone);
  touch(memory->data());
  touch(memory->data() + 2 * page_);
  EXPECT_DEATH(touch(memory->data() + page_), "");
  EXPECT_DEATH(touch(memory->data() + 2 * page_ - 1), "");
}

TEST_F(CheckedDeviceDeathTest, BytesBehindAnAllocationCannotBeTouched) {
  const auto first = device_->allocate(page_);
  const auto second = device_->allocate(page_);
  for (const auto& memory : {first.get(), second.get()}) {
    caller_.set_access(memory->data(), page_, Access::kReadWrite);
  }
  EXPECT_DEATH(touch(first->data() + page_), "");
  EXPECT_DEATH(touch(second->data() + page_), "");
}

TEST_F(CheckedDeviceDeathTest, AccessChangesInTheStreamsOrder) {
  const auto memory = device_->allocate(page_);
  caller_.set_access(memory->data(), page_, Access::kReadWrite);
  const auto stream = device_->create_stream();
  Gate gate(*stream);
  stream->set_access(memory->data(), page_, Access::kNone);
  memory->data()[7] = std::byte{42};
  touch(memory->data() + 7);
  gate.open();
  stream->synchronize();
  EXPECT_DEATH(touch(memory->data() + 7), "");
  caller_.set_access(memory->data(), page_, Access::kReadWrite);
  EXPECT_EQ(memory->data()[7], std::byte{42});
}

TEST_F(CheckedDeviceDeathTest, PoisonOfClosedMemoryLeavesItClosed) {
  const auto memory = device_->allocate(3 * page_);
  caller_.set_access(memory->data(), 3 * page_, Access::kReadWrite);
  std::fill_n(memory->data(), 3 * page_, std::byte{1});
  caller_.set_access(memory->data(), 2 * page_, Access::kNone);
  caller_.poison(memory->data() + 10, 3 * page_ - 20);
  EXPECT_DEATH(touch(memory->data()), "");
  EXPECT_DEATH(touch(memory->data() + 2 * page_ - 1), "");
  EXPECT_EQ(memory->data()[2 * page_], kStale);  // open before, open after

  caller_.set_access(memory->data(), 3 * page_, Access::kReadWrite);
  std::vector<std::byte> expected(3 * page_, kStale);
  std::fill_n(expected.begin(), 10, std::byte{1});
  std::fill_n(expected.end() - 10, 10, std::byte{1});
  EXPECT_EQ(bytes_of(*memory), expected);
}

TEST_F(CheckedDeviceDeathTest, ACopyToClosedMemoryFaults) {
  const auto memory = device_->allocate(page_);
  const std::byte source{1};
  EXPECT_DEATH(
      {
        const auto stream = device_->create_stream();
        stream->copy_to_device(memory->data(), &source, 1);
        stream->synchronize();
      },
      "");
}

TEST_F(CheckedDevice, RangesOutsideAllocationsAreRefused) {
  const auto memory = device_->allocate(page_);
  const auto stream = device_->create_stream();
  std::byte elsewhere{};
  for (Stream* target : {stream.get(), &caller_}) {
    EXPECT_THROW(target->set_access(memory->data(), page_ + 1, Access::kReadWrite), LeaseError);
    EXPECT_THROW(target->set_access(memory->data() + 1, ~0ULL, Access::kReadWrite), LeaseError);
    EXPECT_THROW(target->set_access(memory->data() + 1, page_, Access::kReadWrite), LeaseError);
    EXPECT_THROW(target->set_access(memory->data() - 1, 1, Access::kReadWrite), LeaseError);
    EXPECT_THROW(target->poison(&elsewhere, 1), LeaseError);
    EXPECT_NO_THROW(target->set_access(memory->data() + page_, 0, Access::kNone));
  }
}

TEST_F(CheckedDevice, MemoryMayGoWhileItsAccessChangesAreQueued) {
  const auto stream = device_->create_stream();
  std::byte* data = nullptr;
  {
    Gate gate(*stream);
    const auto memory = device_->allocate(4 * page_);
    data = memory->data();
    stream->set_access(data, 4 * page_, Access::kReadWrite);
    stream->poison(data, 4 * page_);
  }
  stream->synchronize();
  EXPECT_THROW(caller_.poison(data, 1), LeaseError);
}

TEST_F(CheckedDevice, StreamsOnTheirOwnPagesDoNotDisturbEachOther) {
  const auto memory = device_->allocate(2 * page_);
  const auto even = device_->create_stream();
  const auto odd = device_->create_stream();
  const std::vector<std::byte> source(page_, std::byte{3});
  for (int round = 0; round < 50; ++round) {
    std::byte* place = memory->data();
    for (Stream* stream : {even.get(), odd.get()}) {
      stream->set_access(place, page_, Access::kReadWrite);
      stream->copy_to_device(place, source.data(), page_);
      stream->set_access(place, page_, Access::kNone);
      stream->poison(place, page_);
      place += page_;
    }
  }
  even->synchronize();
  odd->synchronize();
  caller_.set_access(memory->data(), 2 * page_, Access::kReadWrite);
  EXPECT_THAT(bytes_of(*memory), Each(kStale));
}

TEST_F(CheckedDevice, StreamsAreDelayed) {
  const auto device =
      create_host_device({.checking = Checking::kOn, .seed = 3, .longest_delay_us = 2000});
  const auto stream = device->create_stream();
  const auto start = Clock::now();
  for (int i = 0; i < 40; ++i) stream->run([] {});
  stream->synchronize();
  EXPECT_GT(seconds_since(start), 0.010);  // 40 ms on average
}

/// An access without its event must show: the reader sees stale bytes in some of many tries.
TEST_F(CheckedDevice, AForgottenEventShowsAsStaleBytes) {
  const auto memory = device_->allocate(page_);
  caller_.set_access(memory->data(), page_, Access::kReadWrite);
  const auto writer = device_->create_stream();
  const auto reader = device_->create_stream();
  std::atomic<int> value = 0;
  int stale = 0;  // touched by the reader alone
  for (int round = 1; round <= 40; ++round) {
    writer->run([&value, round] { value = round; });
    reader->run([&, round] { stale += value == round ? 0 : 1; });
  }
  writer->synchronize();
  reader->synchronize();
  EXPECT_GT(stale, 0);
}

TEST(UncheckedDevice, MemoryIsOpenAndPoisonDoesNothing) {
  const auto device = create_host_device();
  const auto memory = device->allocate(10'000);
  std::fill_n(memory->data(), 10'000, std::byte{5});
  Stream& caller = device->caller_stream();
  caller.set_access(memory->data(), 10'000, Access::kNone);
  caller.poison(memory->data(), 10'000);
  EXPECT_THAT(bytes_of(*memory), Each(std::byte{5}));
}

TEST(UncheckedDevice, IsTheHost) {
  const auto device = create_host_device();
  EXPECT_EQ(device->name(), "cpu");
  EXPECT_TRUE(device->host_accessible());
  EXPECT_EQ(device->total_bytes(), usable_ram_bytes());
}

TEST(UncheckedDevice, TheCallersStreamWorksOnTheCallingThreadAtOnce) {
  const auto device = create_host_device();
  Stream& caller = device->caller_stream();
  std::thread::id ran_on;
  caller.run([&] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());

  const auto event = device->create_event();
  caller.record(*event);
  EXPECT_TRUE(event->complete());

  const auto memory = device->allocate(4);
  const auto source = numbered_bytes(4, 1);
  caller.copy_to_device(memory->data(), source.data(), 4);
  EXPECT_EQ(bytes_of(*memory), source);
}

TEST(UncheckedDevice, AStreamsWorkRunsOnAnotherThread) {
  const auto device = create_host_device();
  const auto stream = device->create_stream();
  std::thread::id ran_on;
  stream->run([&] { ran_on = std::this_thread::get_id(); });
  stream->synchronize();
  EXPECT_NE(ran_on, std::this_thread::get_id());
}

class LoggingDevice : public ::testing::Test {
 protected:
  LoggingDevice() {
    set_log_sink([this](LogLevel level, std::string_view text) {
      EXPECT_EQ(level, LogLevel::kError);
      messages_.emplace_back(text);
    });
  }
  ~LoggingDevice() override { set_log_sink({}); }

  std::vector<std::string> messages_;  // read after synchronize
};

TEST_F(LoggingDevice, WorkThatThrowsIsLoggedOnceAndTheStreamGoesOn) {
  const auto device = create_host_device();
  const auto stream = device->create_stream();
  for (Stream* target : {stream.get(), &device->caller_stream()}) {
    messages_.clear();
    bool next = false;
    target->run([] { throw std::runtime_error("disk on fire"); });
    target->run([] { throw 1; });
    target->run([&] { next = true; });
    target->synchronize();
    EXPECT_TRUE(next);
    EXPECT_THAT(messages_, ElementsAre(HasSubstr("disk on fire"), HasSubstr("unknown")));
  }
}

class OtherEvent final : public Event {
 public:
  bool complete() const override { return true; }
  void synchronize() const override {}
};

TEST(UncheckedDevice, AnEventOfAnotherDeviceIsRefused) {
  const auto device = create_host_device();
  const auto stream = device->create_stream();
  OtherEvent event;
  EXPECT_THROW(stream->record(event), ConfigError);
  EXPECT_THROW(stream->wait(event), ConfigError);
}

}  // namespace
}  // namespace tensorstream
