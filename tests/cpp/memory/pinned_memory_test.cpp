#include "memory/pinned_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "base/log.h"
#include "device/gate.h"
#include "made_bytes/weights.h"
#include "memory/device_kinds.h"
#include "memory/fake_device.h"
#include "platform/process_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::uint64_t kPage = page_size_bytes();
constexpr std::uint64_t kLargest = std::numeric_limits<std::uint64_t>::max();

/// Copies all of `source`, no call crossing the end of a piece.
void copy_in_pieces(Stream& stream, std::byte* target, const PinnedMemory& source) {
  for (std::uint64_t offset = 0; offset < source.size_bytes();) {
    const std::uint64_t end = source.piece_end(offset);
    stream.copy_to_device(target + offset, source.data() + offset, end - offset);
    offset = end;
  }
}

using PinnedMemoryOnDevice = OnMemoryDevice;
TS_ON_EACH_MEMORY_DEVICE(PinnedMemoryOnDevice);

TEST_P(PinnedMemoryOnDevice, ContentsArriveFromPiecesOfEverySize) {
  const auto stream = device_->create_stream();
  for (const std::uint64_t size : {1ULL, 511ULL, 4096ULL, 4097ULL, 5ULL * 4096, 1'234'567ULL}) {
    for (const std::uint64_t piece : {kPage, 3 * kPage, 1_GiB}) {
      PinnedMemory memory(*device_, size, "weights", {.piece_bytes = piece});
      ASSERT_EQ(memory.size_bytes(), size);
      EXPECT_EQ(memory.pinned_bytes(), GetParam().pins ? size : 0);
      const auto source = numbered_bytes(size, static_cast<int>(piece / kPage));
      std::ranges::copy(source, memory.bytes().begin());
      const auto target = allocate_open(size);
      copy_in_pieces(*stream, target->data(), memory);
      stream->synchronize();
      EXPECT_TRUE(read(target->data(), size) == source) << size << " in " << piece;
    }
  }
}

TEST_P(PinnedMemoryOnDevice, IsZeroedAndBeginsAtAPage) {
  const PinnedMemory memory(*device_, 3 * kPage + 5, "weights");
  EXPECT_EQ(std::bit_cast<std::uint64_t>(memory.data()) % kPage, 0U);
  EXPECT_TRUE(std::ranges::all_of(memory.bytes(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_P(PinnedMemoryOnDevice, LargeMemoryIsPresentAndArrives) {
  const auto before = resident_size();
  ASSERT_TRUE(before);
  const std::uint64_t size = 64_MiB + 12'345;
  PinnedMemory memory(*device_, size, "weights", {.piece_bytes = 24_MiB});
  EXPECT_GE(resident_size()->now_bytes, before->now_bytes + 60_MiB);
  memory.data()[24_MiB - 1] = std::byte{1};
  memory.data()[24_MiB] = std::byte{2};
  memory.data()[size - 1] = std::byte{3};
  const auto target = allocate_open(size);
  const auto stream = device_->create_stream();
  copy_in_pieces(*stream, target->data(), memory);
  stream->synchronize();
  EXPECT_THAT(read(target->data() + 24_MiB - 2, 4),
              ElementsAre(std::byte{0}, std::byte{1}, std::byte{2}, std::byte{0}));
  EXPECT_EQ(read(target->data() + size - 1, 1).front(), std::byte{3});
}

TEST_P(PinnedMemoryOnDevice, ComesBackFromTheDevice) {
  PinnedMemory memory(*device_, 2 * kPage, "weights", {.piece_bytes = kPage});
  const auto source = numbered_bytes(2 * kPage, 5);
  const auto device_memory = allocate_open(2 * kPage);
  const auto stream = device_->create_stream();
  stream->copy_to_device(device_memory->data(), source.data(), source.size());
  for (const std::uint64_t offset : {std::uint64_t{0}, kPage}) {
    stream->copy_to_host(memory.data() + offset, device_memory->data() + offset, kPage);
  }
  stream->synchronize();
  EXPECT_TRUE(same_bytes(memory.bytes(), source));
}

/// A page that a fork makes copy-on-write is written elsewhere from then on, and the device goes on
/// reading the old one.
TEST_P(PinnedMemoryOnDevice, ChildrenGetItWhereTheDeviceIsTheHostAlone) {
  const PinnedMemory memory(*device_, kPage, "weights");
  const pid_t child = ::fork();
  if (child == 0) {
    unsigned char present = 0;
    ::_exit(::mincore(memory.data(), kPage, &present) == 0 ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), device_->host_accessible() ? 1 : 0);
}

TEST_P(PinnedMemoryOnDevice, MovesKeepTheMemoryAndLeaveNothing) {
  PinnedMemory first(*device_, kPage + 1, "weights", {.piece_bytes = kPage});
  std::byte* const data = first.data();
  const std::uint64_t pinned = first.pinned_bytes();
  PinnedMemory second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(second.pinned_bytes(), pinned);
  PinnedMemory third(*device_, 10, "weights");
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.size_bytes(), kPage + 1);
  EXPECT_EQ(third.piece_end(0), GetParam().pins ? kPage : kPage + 1);
  PinnedMemory& self = third;
  third = std::move(self);
  EXPECT_EQ(third.data(), data);
  for (const PinnedMemory* const empty :
       {&first, &second}) {  // NOLINT: what moves leave is defined
    EXPECT_EQ(empty->size_bytes(), 0U);
    EXPECT_EQ(empty->data(), nullptr);
    EXPECT_EQ(empty->pinned_bytes(), 0U);
    EXPECT_FALSE(empty->is_pinned(0, 0));
    EXPECT_EQ(empty->piece_end(0), 0U);
    EXPECT_EQ(empty->device_address(0), nullptr);
  }
}

class PinnedMemoryTest : public ::testing::Test {
 protected:
  PinnedMemoryTest() {
    set_log_sink([this](LogLevel level, std::string_view text) {
      (level == LogLevel::kWarning ? warnings_ : notes_).emplace_back(text);
    });
  }
  ~PinnedMemoryTest() override {
    set_log_sink({});
    EXPECT_EQ(device_.live_registrations(), 0);
  }

  FakeDevice device_;
  const std::shared_ptr<Budget> budget_ = Budget::create(10 * kPage);
  std::vector<std::string> warnings_;
  std::vector<std::string> notes_;
};

TEST_F(PinnedMemoryTest, PiecesAndTheirSeams) {
  const PinnedMemory memory(device_, 5 * kPage + 7, "weights", {.piece_bytes = 2 * kPage});
  EXPECT_EQ(device_.asked().size(), 3U);
  EXPECT_EQ(device_.asked()[2].data(), memory.data() + 4 * kPage);
  EXPECT_EQ(device_.asked()[2].size(), 2 * kPage);
  EXPECT_EQ(memory.pinned_bytes(), 5 * kPage + 7);
  EXPECT_EQ(memory.piece_end(0), 2 * kPage);
  EXPECT_EQ(memory.piece_end(2 * kPage - 1), 2 * kPage);
  EXPECT_EQ(memory.piece_end(2 * kPage), 4 * kPage);
  EXPECT_EQ(memory.piece_end(4 * kPage), 5 * kPage + 7);
  EXPECT_EQ(memory.piece_end(5 * kPage + 7), 5 * kPage + 7);
  EXPECT_TRUE(memory.is_pinned(0, 2 * kPage));
  EXPECT_FALSE(memory.is_pinned(0, 2 * kPage + 1));
  EXPECT_TRUE(memory.is_pinned(2 * kPage - 1, 1));
  EXPECT_FALSE(memory.is_pinned(2 * kPage - 1, 2));
  EXPECT_TRUE(memory.is_pinned(4 * kPage, kPage + 7));
  EXPECT_FALSE(memory.is_pinned(4 * kPage, kPage + 8));
  EXPECT_FALSE(memory.is_pinned(1, kLargest));
  EXPECT_FALSE(memory.is_pinned(kLargest, 1));
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(PinnedMemoryTest, KernelsSeeEachPieceWhereItsRegistrationSays) {
  const PinnedMemory memory(device_, 5 * kPage, "weights", {.piece_bytes = 2 * kPage});
  const auto seen = [&](std::uint64_t offset) {
    return std::bit_cast<std::uint64_t>(memory.device_address(offset)) -
           std::bit_cast<std::uint64_t>(memory.data()) - offset;
  };
  EXPECT_EQ(seen(0), FakeDevice::kSeenAt);
  EXPECT_EQ(seen(2 * kPage - 1), FakeDevice::kSeenAt);
  EXPECT_EQ(seen(2 * kPage), 2 * FakeDevice::kSeenAt);
  EXPECT_EQ(seen(5 * kPage - 1), 3 * FakeDevice::kSeenAt);
  EXPECT_EQ(memory.device_address(5 * kPage), nullptr);
}

TEST_F(PinnedMemoryTest, FromTheFirstPieceThatIsRefusedOnAllIsPageable) {
  for (const int refused : {1, 2, 3}) {
    FakeDevice device;
    device.refused_registration = refused;
    warnings_.clear();
    const PinnedMemory memory(device, 5 * kPage + 7, "weights", {.piece_bytes = 2 * kPage});
    const std::uint64_t pinned = static_cast<std::uint64_t>(refused - 1) * 2 * kPage;
    EXPECT_EQ(device.asked().size(), static_cast<std::size_t>(refused));
    EXPECT_EQ(memory.pinned_bytes(), pinned);
    EXPECT_EQ(memory.piece_end(pinned), 5 * kPage + 7);
    EXPECT_EQ(memory.piece_end(pinned + 1), 5 * kPage + 7);
    EXPECT_FALSE(memory.is_pinned(pinned, 1));
    EXPECT_EQ(memory.device_address(pinned), nullptr);
    if (pinned > 0) {
      EXPECT_EQ(memory.piece_end(pinned - 1), pinned);
      EXPECT_TRUE(memory.is_pinned(pinned - 1, 1));
      EXPECT_FALSE(memory.is_pinned(pinned - 1, 2));
    }
    std::ranges::fill(memory.bytes(), std::byte{1});
    EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr("device fake"), HasSubstr("for weights"),
                                             HasSubstr("of 20.0 KiB"), HasSubstr("slower"))));
  }
}

TEST_F(PinnedMemoryTest, NothingCostsNothing) {
  const PinnedMemory memory(device_, 0, "weights", {.budget = budget_});
  EXPECT_EQ(memory.data(), nullptr);
  EXPECT_EQ(memory.size_bytes(), 0U);
  EXPECT_TRUE(memory.bytes().empty());
  EXPECT_TRUE(device_.asked().empty());
  EXPECT_EQ(budget_->peak_bytes(), 0U);
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(PinnedMemoryTest, ThePagesAreChargedUntilTheyAreGone) {
  {
    PinnedMemory memory(device_, kPage + 1, "weights", {.budget = budget_});
    EXPECT_EQ(budget_->used_bytes(), 2 * kPage);
    memory = PinnedMemory(device_, 8 * kPage, "weights", {.budget = budget_});
    EXPECT_EQ(budget_->used_bytes(), 8 * kPage);
    EXPECT_EQ(budget_->peak_bytes(), 10 * kPage);
    memory = PinnedMemory();
    EXPECT_EQ(budget_->used_bytes(), 0U);
    memory = PinnedMemory(device_, 10 * kPage, "weights", {.budget = budget_});
  }
  EXPECT_EQ(budget_->used_bytes(), 0U);
}

TEST_F(PinnedMemoryTest, ABudgetWithoutRoomIsABudgetErrorAndNothingIsTaken) {
  for (const std::uint64_t size : {10 * kPage + 1, kLargest, kLargest - kPage + 1}) {
    try {
      const PinnedMemory memory(device_, size, "weights", {.budget = budget_});
      FAIL() << size;
    } catch (const BudgetError& error) {
      EXPECT_THAT(error.what(), HasSubstr("weights needs"));
      EXPECT_EQ(error.budget_bytes(), 10 * kPage);
    }
  }
  EXPECT_EQ(budget_->peak_bytes(), 0U);
  EXPECT_TRUE(device_.asked().empty());
}

TEST_F(PinnedMemoryTest, MoreThanTheRamThatIsAvailableIsABudgetErrorBeforeItIsTaken) {
  const auto large = Budget::create(kLargest);
  for (const std::uint64_t size : {usable_ram_bytes() + 1_GiB, std::uint64_t{1} << 62U, kLargest}) {
    try {
      const PinnedMemory memory(device_, size, "weights", {.budget = large});
      FAIL() << size;
    } catch (const BudgetError& error) {
      EXPECT_EQ(error.needed_bytes(), size);
      EXPECT_LT(error.budget_bytes(), size);
      EXPECT_THAT(error.what(), AllOf(HasSubstr("weights needs"), HasSubstr("are available"),
                                      HasSubstr("lower the RAM budget")));
    }
  }
  EXPECT_EQ(large->used_bytes(), 0U);
  EXPECT_TRUE(device_.asked().empty());
}

TEST_F(PinnedMemoryTest, PiecesThatAreNoPagesAreConfigErrors) {
  for (const std::uint64_t piece : {std::uint64_t{0}, std::uint64_t{1}, kPage + 1, kLargest}) {
    EXPECT_THROW(PinnedMemory(device_, kPage, "weights", {.piece_bytes = piece}), ConfigError);
  }
  const PinnedMemory memory(device_, kPage, "weights", {.piece_bytes = ~(kPage - 1)});
  EXPECT_EQ(memory.pinned_bytes(), kPage);
  EXPECT_EQ(memory.piece_end(0), kPage);
}

TEST_F(PinnedMemoryTest, ANodeThatCannotBeHadChangesNothing) {
  for (const int node : {0, 1023, 5000}) {
    device_.node = node;
    const PinnedMemory memory(device_, 2 * kPage, "weights");
    std::ranges::fill(memory.bytes(), std::byte{1});
    EXPECT_EQ(memory.pinned_bytes(), 2 * kPage);
  }
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_F(PinnedMemoryTest, RegistrationsEndBeforeTheMemory) {
  PinnedMemory memory(device_, 4 * kPage, "weights", {.piece_bytes = kPage});
  EXPECT_EQ(device_.live_registrations(), 4);
  memory = PinnedMemory(device_, kPage, "weights");
  EXPECT_EQ(device_.live_registrations(), 1);
}

}  // namespace
}  // namespace tensorstream
