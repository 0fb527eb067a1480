// One behaviour suite over every way in which transfers are made, whole and faulty ones, past the
// page cache and through it.
#include "io/disk_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "io/faulty_transfers.h"
#include "made_bytes/weights.h"
#include "platform/io_ring.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kRequest = 64_KiB;  // so that small files are many transfers

/// A way to make transfers.
struct TransferKind {
  std::string name;
  std::unique_ptr<TransferQueue> (*create)(std::size_t depth) = nullptr;
  DiskFile (*open)(const std::string& path) = nullptr;
  TransferFaults faults;
};

std::ostream& operator<<(std::ostream& out, const TransferKind& kind) { return out << kind.name; }

std::vector<TransferKind> all_kinds() {
  std::vector<TransferKind> kinds;
  for (const bool ring : {true, false}) {
    const auto create = ring ? create_ring_transfers : create_thread_transfers;
    const std::string name = ring ? "Ring" : "Threads";
    kinds.push_back({name + "Direct", create, DiskFile::open_direct, {}});
    kinds.push_back({name + "Buffered", create, DiskFile::open_buffered, {}});
    // Short by what is no block, too.
    const TransferFaults halting{.longest_bytes = 9000, .interrupted_every = 3};
    kinds.push_back({name + "DirectHalting", create, DiskFile::open_direct, halting});
    kinds.push_back({name + "BufferedHalting", create, DiskFile::open_buffered, halting});
    kinds.push_back({name + "DirectRefusing",
                     create,
                     DiskFile::open_direct,
                     {.interrupted_every = 3, .interruption = EAGAIN}});
  }
  return kinds;
}

class DiskQueueTest : public ::testing::TestWithParam<TransferKind> {
 protected:
  void SetUp() override {
    if (GetParam().create != create_ring_transfers) return;
    if (const auto refusal = IoRing::refusal()) GTEST_SKIP() << *refusal;
  }

  std::shared_ptr<DiskQueue> queue_with(TransferFaults faults, std::size_t depth = 4) const {
    faults.longest_bytes = std::min(faults.longest_bytes, GetParam().faults.longest_bytes);
    faults.interrupted_every = GetParam().faults.interrupted_every;
    faults.interruption = GetParam().faults.interruption;
    return DiskQueue::create(
        std::make_unique<FaultyTransfers>(GetParam().create(depth), faults, counts_), kRequest);
  }

  std::shared_ptr<const DiskFile> file_of(std::span<const std::byte> bytes) const {
    return std::make_shared<const DiskFile>(GetParam().open(folder_.write("source.bin", bytes)));
  }

  const TemporaryFolder folder_;
  const std::shared_ptr<TransferCounts> counts_ = std::make_shared<TransferCounts>();
};

INSTANTIATE_TEST_SUITE_P(All, DiskQueueTest, ::testing::ValuesIn(all_kinds()),
                         [](const auto& instance) { return instance.param.name; });

/// Memory whose first byte lies `shift_bytes` behind a multiple of 4096, with bytes around it that
/// nobody is to write to.
class ShiftedMemory {
 public:
  ShiftedMemory(std::uint64_t size_bytes, std::uint64_t shift_bytes)
      : memory_(Mapping::anonymous(size_bytes + shift_bytes + 2 * kMargin)),
        whole_(memory_.data(), memory_.size_bytes()),
        bytes_(whole_.subspan(kMargin + shift_bytes, size_bytes)) {
    std::ranges::fill(whole_, kUntouched);
  }

  std::span<std::byte> bytes() const { return bytes_; }
  bool holds(std::span<const std::byte> expected) const {
    return same_bytes(bytes_, expected) && margins_untouched();
  }
  bool is_untouched() const { return all_untouched(bytes_) && margins_untouched(); }

 private:
  static constexpr std::uint64_t kMargin = 4096;
  static constexpr std::byte kUntouched{0xA5};

  static bool all_untouched(std::span<const std::byte> bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == kUntouched; });
  }
  bool margins_untouched() const {
    const auto before = static_cast<std::size_t>(bytes_.data() - whole_.data());
    return all_untouched(whole_.first(before)) &&
           all_untouched(whole_.subspan(before + bytes_.size()));
  }

  const Mapping memory_;
  const std::span<std::byte> whole_;
  const std::span<std::byte> bytes_;
};

TEST_P(DiskQueueTest, ReadsAnyRangeToAnyAddressAndNoByteMore) {
  const auto bytes = patterned_bytes(1_MiB + 777);
  const auto file = file_of(bytes);
  const auto queue = queue_with({});
  for (const std::uint64_t offset : {0U, 1U, 8U, 511U, 512U, 4095U, 4096U, 65'536U, 700'000U}) {
    for (const std::uint64_t size :
         {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{100}, std::uint64_t{4096}, 64_KiB,
          300_KiB + 5, bytes.size() - offset}) {
      if (size > bytes.size() - offset) continue;
      for (const std::uint64_t shift : {std::uint64_t{0}, std::uint64_t{64}, offset % 4096}) {
        SCOPED_TRACE(std::to_string(size) + " at " + std::to_string(offset) + " to " +
                     std::to_string(shift));
        const ShiftedMemory out(size, shift);
        queue->begin(file, offset, out.bytes()).wait();
        ASSERT_TRUE(out.holds(std::span(bytes).subspan(offset, size)));
      }
    }
  }
}

TEST_P(DiskQueueTest, ReadsTinyFiles) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{511}, std::size_t{4097}}) {
    const auto bytes = patterned_bytes(size);
    const ShiftedMemory out(size, 8);
    queue_with({})->begin(file_of(bytes), 0, out.bytes()).wait();
    EXPECT_TRUE(out.holds(bytes));
  }
  queue_with({})->begin(file_of({}), 0, {}).wait();
}

TEST_P(DiskQueueTest, ManyReadsAreUnderWayAtOnceInAnyOrderOfWaiting) {
  const auto bytes = patterned_bytes(2_MiB);
  const auto file = file_of(bytes);
  const auto queue = queue_with({.delay = std::chrono::microseconds(20)});
  std::mt19937_64 random(1);
  struct Part {
    std::uint64_t offset;
    std::vector<std::byte> out;
    PendingRead read;
  };
  std::vector<Part> parts(3000);
  for (Part& part : parts) {
    part.out.resize(std::uniform_int_distribution<std::size_t>(0, 600)(random));
    part.offset =
        std::uniform_int_distribution<std::size_t>(0, bytes.size() - part.out.size())(random);
    part.read = queue->begin(file, part.offset, part.out);
  }
  EXPECT_GT(counts_->most_under_way, 1);
  EXPECT_LE(counts_->most_under_way, 4);
  std::ranges::shuffle(parts, random);
  for (Part& part : parts) {
    part.read.wait();
    part.read.wait();  // again is at once
    ASSERT_TRUE(same_bytes(part.out, std::span(bytes).subspan(part.offset, part.out.size())));
  }
}

TEST_P(DiskQueueTest, ThreadsMayReadTogether) {
  const auto bytes = patterned_bytes(3_MiB + 11);
  const auto file = file_of(bytes);
  const auto queue = queue_with({});
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) {
      threads.emplace_back([&, seed] {
        std::mt19937_64 random(seed);
        for (int i = 0; i < 30; ++i) {
          std::vector<std::byte> out(
              std::uniform_int_distribution<std::size_t>(0, 400'000)(random));
          const std::size_t offset =
              std::uniform_int_distribution<std::size_t>(0, bytes.size() - out.size())(random);
          queue->begin(file, offset, out).wait();
          wrong += same_bytes(out, std::span(bytes).subspan(offset, out.size())) ? 0 : 1;
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_P(DiskQueueTest, ABadPlaceIsAnIoErrorWithFileOffsetAndLengthAndTheOthersAreRead) {
  const auto bytes = patterned_bytes(1_MiB);
  const auto file = file_of(bytes);
  const std::uint64_t bad = 500'000;
  const auto queue = queue_with({.bad_byte = bad});
  for (const std::uint64_t shift : {0U, 8U}) {
    const ShiftedMemory out(bytes.size(), shift);
    PendingRead failing = queue->begin(file, 0, out.bytes());
    const ShiftedMemory after(100'000, shift);
    PendingRead whole = queue->begin(file, 800'000, after.bytes());
    try {
      failing.wait();
      ADD_FAILURE() << "no error";
    } catch (const IoError& error) {
      EXPECT_EQ(error.error_number(), EIO);
      EXPECT_EQ(error.path(), file->file().path());
      EXPECT_LE(error.offset_bytes(), bad);
      EXPECT_GT(error.offset_bytes() + kRequest, bad);
      EXPECT_THAT(error.what(), HasSubstr("read of 64.0 KiB at offset"));
      EXPECT_THAT(error.what(), HasSubstr("source.bin' failed: Input/output error"));
    }
    whole.wait();
    EXPECT_TRUE(after.holds(std::span(bytes).subspan(800'000, 100'000)));
  }
}

TEST_P(DiskQueueTest, NothingMoreIsStartedOfAReadThatFailed) {
  const auto file = file_of(patterned_bytes(4_MiB));
  const auto queue = queue_with({.bad_byte = 100, .delay = std::chrono::microseconds(500)}, 2);
  std::vector<std::byte> out(4_MiB);
  EXPECT_THROW(queue->begin(file, 0, out).wait(), IoError);
  EXPECT_LT(counts_->started, 40);  // of 64, and more where they come short
}

TEST_P(DiskQueueTest, ASlowDiskIsSlowAndRight) {
  const auto bytes = patterned_bytes(300_KiB);
  const auto file = file_of(bytes);
  std::promise<void> begun;
  const auto queue = queue_with(
      {.delay = std::chrono::milliseconds(3), .told_after = begun.get_future().share()}, 1);
  const ShiftedMemory out(bytes.size(), 8);
  const auto start = Clock::now();
  PendingRead read = queue->begin(file, 0, out.bytes());  // would wait for ever for the disk
  begun.set_value();
  read.wait();
  EXPECT_GE(seconds_since(start), 0.012);
  EXPECT_TRUE(out.holds(bytes));
}

TEST_P(DiskQueueTest, BytesBehindTheEndAreAnIoErrorAtOnce) {
  const auto file = file_of(patterned_bytes(10'000));
  const auto queue = queue_with({});
  std::vector<std::byte> out(100);
  EXPECT_THROW(queue->begin(file, 9'901, out), IoError);
  EXPECT_THROW(queue->begin(file, ~std::uint64_t{0} - 50, out), IoError);
  EXPECT_EQ(counts_->started, 0);
}

TEST_P(DiskQueueTest, ATruncatedFileIsAnIoError) {
  for (const std::uint64_t left : {std::uint64_t{0}, std::uint64_t{5000}, 512_KiB, 512_KiB + 100}) {
    SCOPED_TRACE(left);
    const auto file = file_of(patterned_bytes(1_MiB));
    std::filesystem::resize_file(file->file().path(), left);
    const auto queue = queue_with({});
    const ShiftedMemory out(1_MiB, 8);
    EXPECT_THROW(queue->begin(file, 0, out.bytes()).wait(), IoError);
    // Where bytes are left they may be others.
    EXPECT_THROW(queue->begin(file, 0, out.bytes().first(100)).wait(), IoError);
    EXPECT_THROW(queue->begin(file, 1_MiB - 1, out.bytes().first(1)).wait(), IoError);
  }
}

TEST_P(DiskQueueTest, AFileTruncatedUnderAReadIsAnIoErrorAndNoSignal) {
  for (int round = 0; round < 10; ++round) {
    const auto file = file_of(patterned_bytes(2_MiB));
    const auto queue = queue_with({.delay = std::chrono::microseconds(100)});
    std::vector<std::byte> out(2_MiB);
    PendingRead read = queue->begin(file, 0, out);
    std::this_thread::sleep_for(std::chrono::microseconds(200 * round));
    std::filesystem::resize_file(file->file().path(), 100'000);
    EXPECT_THROW(read.wait(), IoError);
  }
}

TEST_P(DiskQueueTest, AFileWrittenUnderAReadIsAnIoError) {
  const auto bytes = patterned_bytes(1_MiB);
  const auto file = file_of(bytes);
  const auto queue = queue_with({.delay = std::chrono::milliseconds(1)});
  std::vector<std::byte> out(bytes.size());
  PendingRead read = queue->begin(file, 0, out);
  // Time of its own, whatever the resolution of the file system's clock is.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  {
    std::fstream written(file->file().path(), std::ios::in | std::ios::out | std::ios::binary);
    written.put('x');
  }
  try {
    read.wait();
    ADD_FAILURE() << "no error";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("changed since it was opened"));
  }
}

TEST_P(DiskQueueTest, AFileThatIsReplacedOrDeletedIsReadOnAsItWas) {
  const auto bytes = patterned_bytes(1_MiB);
  const auto file = file_of(bytes);
  const auto queue = queue_with({});
  const std::string other = folder_.write("other.bin", std::vector<std::byte>(1_MiB));
  std::filesystem::rename(other, file->file().path());
  std::vector<std::byte> out(bytes.size());
  queue->begin(file, 0, out).wait();
  EXPECT_EQ(out, bytes);
  std::filesystem::remove(file->file().path());
  std::ranges::fill(out, std::byte{});
  queue->begin(file, 0, out).wait();
  EXPECT_EQ(out, bytes);
}

TEST_P(DiskQueueTest, AReadThatIsGivenUpEndsSoonAndLeavesItsTargetAlone) {
  const auto file = file_of(patterned_bytes(8_MiB));
  const auto queue = queue_with({.delay = std::chrono::milliseconds(2)});
  const ShiftedMemory out(8_MiB, 8);
  {
    const PendingRead read = queue->begin(file, 3, out.bytes().first(8_MiB - 3));
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  EXPECT_EQ(counts_->under_way, 0);
  EXPECT_LT(counts_->started, 100);  // of 128, and more where they come short
  std::ranges::fill(out.bytes(), std::byte{0xA5});
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(out.is_untouched());
}

TEST_P(DiskQueueTest, OtherReadsGoOnWhereOneIsGivenUp) {
  const auto bytes = patterned_bytes(1_MiB);
  const auto file = file_of(bytes);
  const auto queue = queue_with({.delay = std::chrono::microseconds(100)});
  std::vector<std::byte> given_up(bytes.size());
  std::vector<std::byte> out(bytes.size());
  PendingRead first = queue->begin(file, 0, given_up);
  PendingRead second = queue->begin(file, 0, out);
  first = PendingRead();
  second.wait();
  EXPECT_EQ(out, bytes);
}

TEST_P(DiskQueueTest, AReadKeepsItsQueueAndFile) {
  const auto bytes = patterned_bytes(1_MiB);
  std::vector<std::byte> out(bytes.size());
  PendingRead read = queue_with({})->begin(file_of(bytes), 0, out);
  read.wait();
  EXPECT_EQ(out, bytes);
}

/// The descriptors of this process's rings.
std::vector<int> ring_descriptors() {
  std::vector<int> result;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    if (!gone && target.find("io_uring") != std::string::npos) {
      result.push_back(std::stoi(entry.path().filename().string()));
    }
  }
  return result;
}

/// As a daemon does with all descriptors that it did not open.
TEST(DiskQueue, ARingThatSomebodyClosedFailsReadsAndEnds) {
  if (const auto refusal = IoRing::refusal()) GTEST_SKIP() << *refusal;
  const TemporaryFolder folder;
  const auto file = std::make_shared<const DiskFile>(
      DiskFile::open_buffered(folder.write("source.bin", patterned_bytes(1_MiB))));
  const std::vector<int> others = ring_descriptors();
  auto queue = DiskQueue::create(create_ring_transfers(4), kRequest);
  std::vector<std::byte> out(1_MiB);
  queue->begin(file, 0, out).wait();
  for (const int descriptor : ring_descriptors()) {
    if (std::ranges::find(others, descriptor) == others.end()) ::close(descriptor);
  }
  PendingRead read = queue->begin(file, 0, out);
  EXPECT_THROW(read.wait(), IoError);
  read = PendingRead();
  queue.reset();
}

TEST(DiskQueue, WhatCannotBeHadIsAConfigError) {
  EXPECT_THROW(DiskQueue::create(create_thread_transfers(2), 0), ConfigError);
  EXPECT_THROW(DiskQueue::create(create_thread_transfers(2), 1000), ConfigError);
  EXPECT_THROW(DiskQueue::create(create_thread_transfers(2), 2_GiB), ConfigError);
  EXPECT_THROW(DiskQueue::create(create_thread_transfers(0)), ConfigError);
  EXPECT_THROW(DiskQueue::create(create_thread_transfers(DiskQueue::kMostDepth + 1)), ConfigError);
}

}  // namespace
}  // namespace tensorstream
