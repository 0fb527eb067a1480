// What every Device, Stream and Event does, for each implementation to run:
// INSTANTIATE_TEST_SUITE_P(Name, DeviceConformance, Values(...)).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/units.h"
#include "device/device.h"
#include "device/gate.h"
#include "device/gpu_required.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// A kind of device under test.
struct DeviceKind {
  std::string name;
  std::function<std::unique_ptr<Device>()> create;
  /// The bytes of device memory that no stream is writing, in host memory.
  std::function<std::vector<std::byte>(Device&, const std::byte*, std::uint64_t)> read;
  /// Why there is no such device here; nothing where there is one.
  std::function<std::optional<std::string>()> absent = [] { return std::nullopt; };
  /// Called when a test's device is gone.
  std::function<void()> after = [] {};
};

inline std::ostream& operator<<(std::ostream& out, const DeviceKind& kind) {
  return out << kind.name;
}

/// Host memory, in pages of its own, that the device reads and writes without staging.
class PinnedBytes {
 public:
  PinnedBytes(Device& device, std::uint64_t size_bytes)
      : pages_(Mapping::anonymous(size_bytes)),
        bytes_(pages_.data(), size_bytes),
        registration_(device.try_register_host(bytes_)) {
    // Copies behind a gate would wait for ever.
    if (registration_ == nullptr) throw std::runtime_error("the device pins no memory");
  }
  PinnedBytes(Device& device, const std::vector<std::byte>& bytes)
      : PinnedBytes(device, bytes.size()) {
    std::ranges::copy(bytes, bytes_.begin());
  }

  std::byte* data() const { return bytes_.data(); }
  std::uint64_t size() const { return bytes_.size(); }
  std::vector<std::byte> bytes() const { return {bytes_.begin(), bytes_.end()}; }

 private:
  Mapping pages_;
  std::span<std::byte> bytes_;
  std::unique_ptr<HostRegistration> registration_;
};

class DeviceConformance : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    const auto absent = GetParam().absent();
    if (absent && gpu_is_required()) FAIL() << *absent;
    if (absent) GTEST_SKIP() << *absent;
    device_ = GetParam().create();
  }
  void TearDown() override {
    device_.reset();
    GetParam().after();
  }

  std::vector<std::byte> read(const std::byte* data, std::uint64_t size_bytes) const {
    return GetParam().read(*device_, data, size_bytes);
  }
  /// Memory that streams may touch.
  std::unique_ptr<DeviceMemory> allocate_open(std::uint64_t size_bytes) const {
    auto memory = device_->allocate(size_bytes);
    device_->caller_stream().set_access(memory->data(), size_bytes, Access::kReadWrite);
    device_->caller_stream().synchronize();
    return memory;
  }

  std::unique_ptr<Device> device_;
};

TEST_P(DeviceConformance, HasANameAndASize) {
  EXPECT_FALSE(device_->name().empty());
  EXPECT_GT(device_->total_bytes(), 1_MiB);
  EXPECT_GT(device_->free_bytes(), 0U);
  EXPECT_LE(device_->free_bytes(), device_->total_bytes());
  EXPECT_GE(device_->numa_node().value_or(0), 0);
}

TEST_P(DeviceConformance, MemoryIsAlignedAndApart) {
  std::vector<std::unique_ptr<DeviceMemory>> all;
  for (const std::uint64_t size : {1ULL, 511ULL, 4096ULL, 4097ULL, 3ULL << 20U}) {
    all.push_back(device_->allocate(size));
    EXPECT_EQ(all.back()->size_bytes(), size);
    EXPECT_EQ(std::bit_cast<std::uint64_t>(all.back()->data()) % kGroupAlignment, 0U);
  }
  std::ranges::sort(all, {}, [](const auto& memory) { return memory->data(); });
  for (std::size_t i = 1; i < all.size(); ++i) {
    EXPECT_LE(all[i - 1]->data() + all[i - 1]->size_bytes(), all[i]->data());
  }
}

TEST_P(DeviceConformance, NoMemoryIsAConfigErrorAndTooMuchABudgetError) {
  EXPECT_THROW(device_->allocate(0), ConfigError);
  EXPECT_THROW(device_->allocate(1ULL << 62U), BudgetError);
  EXPECT_THROW(device_->allocate(~0ULL), BudgetError);
  EXPECT_NE(device_->allocate(1), nullptr);
}

TEST_P(DeviceConformance, ACopyIsThereAfterSynchronize) {
  const auto source = numbered_bytes(100'000, 1);
  const auto memory = allocate_open(source.size());
  const auto stream = device_->create_stream();
  stream->copy_to_device(memory->data(), source.data(), source.size());
  stream->copy_to_device(memory->data(), source.data(), 0);
  stream->synchronize();
  EXPECT_EQ(read(memory->data(), source.size()), source);
}

TEST_P(DeviceConformance, TheLaterOfTwoCopiesWins) {
  const auto first = numbered_bytes(50'000, 1);
  const auto second = numbered_bytes(20'000, 2);
  const auto memory = allocate_open(first.size());
  const auto stream = device_->create_stream();
  stream->copy_to_device(memory->data(), first.data(), first.size());
  stream->copy_to_device(memory->data() + 100, second.data(), second.size());
  stream->synchronize();
  auto expected = first;
  std::ranges::copy(second, expected.begin() + 100);
  EXPECT_EQ(read(memory->data(), first.size()), expected);
}

TEST_P(DeviceConformance, AStreamKeepsItsOrder) {
  const auto stream = device_->create_stream();
  std::vector<int> seen;  // touched by the stream alone until synchronize
  std::vector<int> expected;
  for (int i = 0; i < 100; ++i) {
    stream->run([&seen, i] { seen.push_back(i); });
    expected.push_back(i);
  }
  stream->synchronize();
  EXPECT_EQ(seen, expected);
}

TEST_P(DeviceConformance, EnqueuingDoesNotWait) {
  const auto stream = device_->create_stream();
  std::atomic<bool> done = false;
  Gate gate(*stream);
  stream->run([&] { done = true; });
  EXPECT_FALSE(done);
  gate.open();
  stream->synchronize();
  EXPECT_TRUE(done);
}

TEST_P(DeviceConformance, AnEventNeverRecordedIsComplete) {
  const auto event = device_->create_event();
  EXPECT_TRUE(event->complete());
  event->synchronize();
  const auto stream = device_->create_stream();
  stream->wait(*event);
  device_->caller_stream().wait(*event);
  stream->synchronize();
}

TEST_P(DeviceConformance, AnEventCompletesAfterTheWorkBeforeItsRecord) {
  const auto event = device_->create_event();
  const auto stream = device_->create_stream();
  bool done = false;
  Gate gate(*stream);
  stream->run([&] { done = true; });
  stream->record(*event);
  Gate behind(*stream);
  EXPECT_FALSE(event->complete());
  gate.open();
  event->synchronize();  // not held up by what was enqueued after the record
  EXPECT_TRUE(event->complete());
  EXPECT_TRUE(done);
}

TEST_P(DeviceConformance, AnEventRecordedAgainIsIncompleteAgain) {
  const auto event = device_->create_event();
  const auto stream = device_->create_stream();
  stream->record(*event);
  event->synchronize();
  Gate gate(*stream);
  stream->record(*event);
  EXPECT_FALSE(event->complete());
  gate.open();
  event->synchronize();
  EXPECT_TRUE(event->complete());
}

// By copies, not by callbacks, which a device may run one after another.
TEST_P(DeviceConformance, StreamsAreIndependentWithoutEvents) {
  const PinnedBytes source(*device_, numbered_bytes(4000, 3));
  const PinnedBytes target(*device_, source.size());
  const auto memory = allocate_open(source.size());
  const auto held = device_->create_stream();
  const auto free = device_->create_stream();
  free->copy_to_device(memory->data(), source.data(), source.size());
  free->synchronize();
  const Gate gate(*held);
  free->copy_to_host(target.data(), memory->data(), target.size());
  free->synchronize();
  EXPECT_EQ(target.bytes(), source.bytes());
}

TEST_P(DeviceConformance, AWaitOrdersTwoStreams) {
  const auto producer = device_->create_stream();
  const auto consumer = device_->create_stream();
  const auto produced = device_->create_event();
  const auto consumed = device_->create_event();
  constexpr int kRounds = 50;
  int value = 0;  // unguarded: the events alone order its uses, which a thread sanitizer checks
  std::vector<int> seen;
  for (int round = 1; round <= kRounds; ++round) {
    producer->wait(*consumed);
    producer->run([&value, round] { value = round; });
    producer->record(*produced);
    consumer->wait(*produced);
    consumer->run([&value, &seen] { seen.push_back(value); });
    consumer->record(*consumed);
  }
  consumer->synchronize();
  ASSERT_EQ(seen.size(), std::size_t{kRounds});
  for (int round = 1; round <= kRounds; ++round) {
    EXPECT_EQ(seen[static_cast<std::size_t>(round - 1)], round);
  }
}

// The waiter copies and calls nothing back, which a device might hold up behind the second gate.
TEST_P(DeviceConformance, AWaitTakesTheLastRecordBeforeIt) {
  const PinnedBytes source(*device_, numbered_bytes(5000, 4));
  const PinnedBytes target(*device_, source.size());
  const auto memory = allocate_open(source.size());
  const auto recorder = device_->create_stream();
  const auto waiter = device_->create_stream();
  const auto event = device_->create_event();
  Gate gate_of_first(*recorder);
  recorder->copy_to_device(memory->data(), source.data(), source.size());
  recorder->record(*event);
  waiter->wait(*event);
  waiter->copy_to_host(target.data(), memory->data(), target.size());
  const Gate gate_of_second(*recorder);
  recorder->record(*event);  // after the wait: not waited for
  gate_of_first.open();
  waiter->synchronize();
  EXPECT_EQ(target.bytes(), source.bytes());
  EXPECT_FALSE(event->complete());
}

TEST_P(DeviceConformance, AWaitSeesARecordMadeAgainBeforeIt) {
  const auto recorder = device_->create_stream();
  const auto waiter = device_->create_stream();
  const auto event = device_->create_event();
  recorder->record(*event);
  event->synchronize();
  bool second = false;
  bool seen = false;
  Gate gate(*recorder);
  recorder->run([&] { second = true; });
  recorder->record(*event);
  waiter->wait(*event);
  waiter->run([&] { seen = second; });
  gate.open();
  waiter->synchronize();
  EXPECT_TRUE(seen);
}

TEST_P(DeviceConformance, AStreamMayWaitForItself) {
  const auto stream = device_->create_stream();
  const auto event = device_->create_event();
  stream->record(*event);
  stream->wait(*event);
  stream->synchronize();
  EXPECT_TRUE(event->complete());
}

TEST_P(DeviceConformance, AnEventMayGoWhileWorkRefersToIt) {
  const auto recorder = device_->create_stream();
  const auto waiter = device_->create_stream();
  bool produced = false;
  bool seen = false;
  Gate gate(*recorder);
  {
    const auto event = device_->create_event();
    recorder->run([&] { produced = true; });
    recorder->record(*event);
    waiter->wait(*event);
    waiter->run([&] { seen = produced; });
  }
  gate.open();
  waiter->synchronize();
  EXPECT_TRUE(seen);
}

TEST_P(DeviceConformance, AStreamThatGoesFinishesItsWork) {
  const auto event = device_->create_event();
  const auto other = device_->create_stream();
  int done = 0;
  {
    const auto stream = device_->create_stream();
    for (int i = 0; i < 20; ++i) {
      stream->run([&] {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        ++done;
      });
    }
    stream->record(*event);
    other->wait(*event);
  }
  EXPECT_EQ(done, 20);
  EXPECT_TRUE(event->complete());
  other->synchronize();
}

TEST_P(DeviceConformance, TheCallersStreamIsOrderedByEventsToo) {
  Stream& caller = device_->caller_stream();
  const auto stream = device_->create_stream();
  const auto loaded = device_->create_event();
  const auto used = device_->create_event();
  const auto source = numbered_bytes(30'000, 5);
  const auto memory = allocate_open(source.size());
  bool copied = false;
  bool seen = false;
  stream->copy_to_device(memory->data(), source.data(), source.size());
  stream->run([&] { copied = true; });
  stream->record(*loaded);
  caller.wait(*loaded);
  caller.run([&] { seen = copied; });
  caller.record(*used);
  stream->wait(*used);
  stream->synchronize();
  EXPECT_TRUE(seen);
  EXPECT_TRUE(used->complete());
  EXPECT_EQ(read(memory->data(), source.size()), source);
}

TEST_P(DeviceConformance, ThreadsMayShareAStream) {
  constexpr int kThreads = 4;
  constexpr int kEach = 50;
  const auto stream = device_->create_stream();
  const auto event = device_->create_event();
  std::vector<std::vector<int>> seen(kThreads);  // touched by the stream alone
  {
    std::vector<std::jthread> threads;
    for (std::size_t thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        for (int i = 0; i < kEach; ++i) {
          stream->run([&mine = seen[thread], i] { mine.push_back(i); });
          stream->record(*event);
          stream->wait(*event);
        }
      });
    }
  }
  stream->synchronize();
  EXPECT_TRUE(event->complete());
  for (const auto& mine : seen) {
    ASSERT_EQ(mine.size(), std::size_t{kEach});
    EXPECT_TRUE(std::ranges::is_sorted(mine));
  }
}

TEST_P(DeviceConformance, AccessAndPoisonKeepTheOrderOfCopies) {
  const auto source = numbered_bytes(3 * kGroupAlignment, 9);
  const auto memory = device_->allocate(source.size());
  const auto stream = device_->create_stream();
  for (int round = 0; round < 5; ++round) {
    stream->set_access(memory->data(), source.size(), Access::kReadWrite);
    stream->copy_to_device(memory->data(), source.data(), source.size());
    stream->set_access(memory->data(), source.size(), Access::kNone);
    stream->poison(memory->data(), source.size());
  }
  stream->set_access(memory->data(), source.size(), Access::kReadWrite);
  stream->copy_to_device(memory->data(), source.data(), source.size());
  stream->synchronize();
  EXPECT_EQ(read(memory->data(), source.size()), source);
}

TEST_P(DeviceConformance, ACopyComesBackToTheHost) {
  const auto first = numbered_bytes(70'000, 6);
  const auto second = numbered_bytes(70'000, 7);
  const auto memory = allocate_open(first.size());
  const auto stream = device_->create_stream();
  std::vector<std::byte> before(first.size());
  std::vector<std::byte> after(first.size());
  stream->copy_to_device(memory->data(), first.data(), first.size());
  stream->copy_to_host(before.data(), memory->data(), before.size());
  stream->copy_to_device(memory->data(), second.data(), second.size());
  stream->copy_to_host(after.data(), memory->data(), after.size());
  stream->copy_to_host(after.data(), memory->data(), 0);
  stream->synchronize();
  EXPECT_EQ(before, first);
  EXPECT_EQ(after, second);
}

TEST_P(DeviceConformance, EventsOrderCopiesOfTwoStreams) {
  constexpr std::size_t kRounds = 20;
  constexpr std::size_t kSize = 20'000;
  const auto memory = allocate_open(kSize);
  const auto writer = device_->create_stream();
  const auto reader = device_->create_stream();
  const auto written = device_->create_event();
  const auto consumed = device_->create_event();
  std::vector<std::vector<std::byte>> sources;
  std::vector<std::vector<std::byte>> targets(kRounds, std::vector<std::byte>(kSize));
  for (std::size_t i = 0; i < kRounds; ++i) {
    sources.push_back(numbered_bytes(kSize, static_cast<int>(i)));
  }
  for (std::size_t i = 0; i < kRounds; ++i) {
    writer->wait(*consumed);
    writer->copy_to_device(memory->data(), sources[i].data(), kSize);
    writer->record(*written);
    reader->wait(*written);
    reader->copy_to_host(targets[i].data(), memory->data(), kSize);
    reader->record(*consumed);
  }
  reader->synchronize();
  EXPECT_EQ(targets, sources);
}

TEST_P(DeviceConformance, StreamsOfTheCallerAreToldApartByAddress) {
  EXPECT_EQ(&device_->stream_of(0), &device_->caller_stream());
  EXPECT_EQ(&device_->stream_of(1), &device_->caller_stream());
  EXPECT_EQ(&device_->stream_of(2), &device_->stream_of(2));
  const auto stream = device_->create_stream();
  EXPECT_NE(&device_->stream_of(2), stream.get());
}

TEST_P(DeviceConformance, AStreamOfTheCallerIsOrderedByEvents) {
  Stream& caller = device_->stream_of(2);
  const auto loaded = device_->create_event();
  const auto stream = device_->create_stream();
  bool done = false;
  bool seen = false;
  stream->run([&] { done = true; });
  stream->record(*loaded);
  caller.wait(*loaded);
  caller.run([&] { seen = done; });
  caller.synchronize();
  EXPECT_TRUE(seen);
}

TEST_P(DeviceConformance, CopiesOfRegisteredMemoryDoNotWait) {
  const PinnedBytes source(*device_, numbered_bytes(100'000, 8));
  const PinnedBytes target(*device_, source.size());
  const auto memory = allocate_open(source.size());
  const auto stream = device_->create_stream();
  const auto copied = device_->create_event();
  Gate gate(*stream);
  stream->copy_to_device(memory->data(), source.data(), source.size());
  stream->copy_to_host(target.data(), memory->data(), target.size());
  stream->record(*copied);
  EXPECT_FALSE(copied->complete());
  gate.open();
  copied->synchronize();
  EXPECT_EQ(target.bytes(), source.bytes());
}

TEST_P(DeviceConformance, MemoryMayBeRegisteredAgainWhenItsRegistrationIsGone) {
  std::vector<std::byte> bytes(50'000);
  for (int round = 0; round < 2; ++round) {
    const auto registration = device_->try_register_host(bytes);
    ASSERT_NE(registration, nullptr);
    EXPECT_NE(registration->device_address(), nullptr);
  }
  EXPECT_THROW(device_->try_register_host({}), ConfigError);
}

}  // namespace tensorstream
