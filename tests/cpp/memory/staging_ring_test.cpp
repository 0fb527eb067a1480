#include "memory/staging_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <latch>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "device/gate.h"
#include "made_bytes/weights.h"
#include "memory/device_kinds.h"
#include "memory/fake_device.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

const std::uint64_t kPage = page_size_bytes();
constexpr std::byte kOld{0xA0};
constexpr std::byte kNew{0xB1};

/// Keeps the stream busy for long enough that who does not wait for it is seen.
void hold_up(Stream& stream) {
  stream.run([] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
}

using StagingRingOnDevice = OnMemoryDevice;
TS_ON_EACH_MEMORY_DEVICE(StagingRingOnDevice);

/// Sends `source` through the ring, in parts of random sizes, by `stream`.
void send(StagingRing& ring, Stream& stream, std::byte* target, std::span<const std::byte> source) {
  std::mt19937 random(static_cast<unsigned>(source.size()));
  while (!source.empty()) {
    StagingRing::Piece piece = ring.take();
    std::uniform_int_distribution<std::uint64_t> sizes(1, piece.bytes().size());
    const auto part = source.first(std::min<std::uint64_t>(source.size(), sizes(random)));
    std::ranges::copy(part, piece.bytes().begin());
    piece.copy_to_device(stream, target, piece.bytes().first(part.size()));
    target += part.size();
    source = source.subspan(part.size());
  }
}

TEST_P(StagingRingOnDevice, ManyCopiesThroughFewPiecesArrive) {
  const auto source = numbered_bytes(200 * kPage + 17, 3);
  for (const std::size_t pieces : {1U, 2U, 4U}) {
    const auto target = allocate_open(source.size());
    const auto stream = device_->create_stream();
    StagingRing ring(*device_, {.piece_bytes = 2 * kPage, .pieces = pieces});
    EXPECT_EQ(ring.pieces(), pieces);
    EXPECT_EQ(ring.piece_bytes(), 2 * kPage);
    EXPECT_EQ(ring.is_pinned(), GetParam().pins);
    send(ring, *stream, target->data(), source);
    stream->synchronize();
    EXPECT_TRUE(read(target->data(), source.size()) == source);
  }
}

TEST_P(StagingRingOnDevice, APieceIsNotUsedAgainBeforeItsCopyIsDone) {
  const auto target = allocate_open(2 * kPage);
  const auto stream = device_->create_stream();
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 1});
  hold_up(*stream);
  for (const std::uint64_t i : {0U, 1U}) {
    StagingRing::Piece piece = ring.take();
    std::ranges::fill(piece.bytes(), i == 0 ? kOld : kNew);
    piece.copy_to_device(*stream, target->data() + i * kPage, piece.bytes());
  }
  stream->synchronize();
  EXPECT_THAT(read(target->data(), kPage), Each(kOld));
  EXPECT_THAT(read(target->data() + kPage, kPage), Each(kNew));
}

TEST_P(StagingRingOnDevice, OnePieceMayBeCopiedInPartsToManyPlaces) {
  const auto target = allocate_open(4 * kPage);
  const auto stream = device_->create_stream();
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 2});
  for (std::uint64_t i = 0; i < 4; ++i) {
    StagingRing::Piece piece = ring.take();
    std::ranges::copy(numbered_bytes(kPage, static_cast<int>(i)), piece.bytes().begin());
    const std::uint64_t half = kPage / 2;
    piece.copy_to_device(*stream, target->data() + i * half, piece.bytes().first(half));
    piece.copy_to_device(*stream, target->data() + 2 * kPage + i * half,
                         piece.bytes().subspan(half));
    piece.copy_to_device(*stream, target->data(), piece.bytes().subspan(kPage));
  }
  stream->synchronize();
  for (std::uint64_t i = 0; i < 4; ++i) {
    auto both = read(target->data() + i * kPage / 2, kPage / 2);
    const auto second = read(target->data() + 2 * kPage + i * kPage / 2, kPage / 2);
    both.insert(both.end(), second.begin(), second.end());
    EXPECT_TRUE(both == numbered_bytes(kPage, static_cast<int>(i))) << i;
  }
}

TEST_P(StagingRingOnDevice, APieceThatTwoStreamsCopyWaitsForBoth) {
  const auto target = allocate_open(3 * kPage);
  const auto slow = device_->create_stream();
  const auto fast = device_->create_stream();
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 1});
  hold_up(*slow);
  {
    StagingRing::Piece piece = ring.take();
    std::ranges::fill(piece.bytes(), kOld);
    piece.copy_to_device(*slow, target->data(), piece.bytes());
    piece.copy_to_device(*fast, target->data() + kPage, piece.bytes());
  }
  {
    StagingRing::Piece piece = ring.take();
    std::ranges::fill(piece.bytes(), kNew);
    piece.copy_to_device(*fast, target->data() + 2 * kPage, piece.bytes());
  }
  slow->synchronize();
  fast->synchronize();
  EXPECT_THAT(read(target->data(), 2 * kPage), Each(kOld));
  EXPECT_THAT(read(target->data() + 2 * kPage, kPage), Each(kNew));
}

TEST_P(StagingRingOnDevice, BytesComeBackFromTheDevice) {
  const auto source = numbered_bytes(3 * kPage, 9);
  const auto memory = allocate_open(source.size());
  const auto stream = device_->create_stream();
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 2});
  hold_up(*stream);
  send(ring, *stream, memory->data(), source);
  std::vector<std::byte> back;
  for (std::uint64_t offset = 0; offset < source.size();) {
    const std::uint64_t size = std::min<std::uint64_t>(kPage - 100, source.size() - offset);
    StagingRing::Piece piece = ring.take();
    hold_up(*stream);
    const auto bytes = piece.copy_to_host(*stream, memory->data() + offset, size);
    back.insert(back.end(), bytes.begin(), bytes.end());
    offset += size;
  }
  EXPECT_TRUE(back == source);
}

TEST_P(StagingRingOnDevice, ARingThatGoesWaitsForItsCopies) {
  const auto source = numbered_bytes(3 * kPage, 4);
  const auto target = allocate_open(source.size());
  const auto stream = device_->create_stream();
  {
    StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 3});
    hold_up(*stream);
    for (std::uint64_t offset = 0; offset < source.size(); offset += kPage) {
      StagingRing::Piece piece = ring.take();
      std::ranges::copy(std::span(source).subspan(offset, kPage), piece.bytes().begin());
      piece.copy_to_device(*stream, target->data() + offset, piece.bytes());
    }
  }
  stream->synchronize();
  EXPECT_TRUE(read(target->data(), source.size()) == source);
}

TEST_P(StagingRingOnDevice, PiecesThatAreNotUsedComeBack) {
  const auto target = allocate_open(kPage);
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 2});
  for (int i = 0; i < 10; ++i) static_cast<void>(ring.take());
  for (int i = 0; i < 10; ++i) {
    try {
      StagingRing::Piece piece = ring.take();
      std::ranges::fill(piece.bytes(), kOld);
      throw std::runtime_error("a read failed");
    } catch (const std::runtime_error&) {
    }
  }
  StagingRing::Piece piece = ring.take();
  EXPECT_EQ(piece.bytes().size(), kPage);
}

TEST_P(StagingRingOnDevice, OneThreadTakesSeveralPiecesWhereItNeedNotWait) {
  const auto target = allocate_open(kPage);
  const auto stream = device_->create_stream();
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 2});
  auto first = ring.try_take();
  auto second = ring.try_take();
  ASSERT_TRUE(first && second);
  EXPECT_NE(first->bytes().data(), second->bytes().data());
  EXPECT_FALSE(ring.try_take());
  hold_up(*stream);
  first->copy_to_device(*stream, target->data(), first->bytes());
  first.reset();
  if (!GetParam().pins) stream->synchronize();
  const auto at_once = ring.try_take();  // its copy waits for the stream
  EXPECT_EQ(at_once.has_value(), !GetParam().pins);
  EXPECT_THROW(static_cast<void>(ring.take()), LeaseError);
  second.reset();
  stream->synchronize();
  EXPECT_TRUE(ring.try_take());
}

TEST_P(StagingRingOnDevice, ThreadsShareFewPieces) {
  constexpr int kThreads = 4;
  const std::uint64_t size = 40 * kPage;
  const auto target = allocate_open(kThreads * size);
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 2});
  std::vector<std::vector<std::byte>> sources;
  for (int i = 0; i < kThreads; ++i) sources.push_back(numbered_bytes(size, 50 * i));
  std::latch start(kThreads);
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        const auto stream = device_->create_stream();
        start.arrive_and_wait();
        std::byte* const mine = target->data() + i * size;
        send(ring, *stream, mine, sources[i]);
        StagingRing::Piece piece = ring.take();
        const auto last = piece.copy_to_host(*stream, mine + size - kPage, kPage);
        EXPECT_TRUE(same_bytes(last, std::span(sources[i]).last(kPage)));
        piece = StagingRing::Piece(std::move(piece));
      });
    }
  }
  for (std::size_t i = 0; i < kThreads; ++i) {
    EXPECT_TRUE(read(target->data() + i * size, size) == sources[i]) << i;
  }
}

TEST_P(StagingRingOnDevice, WhoWaitsForAPieceGetsTheFirstThatComesBack) {
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 1});
  std::vector<std::byte> seen;
  std::jthread other;
  {
    StagingRing::Piece piece = ring.take();
    piece.bytes()[0] = kNew;
    std::latch about_to_wait(1);
    other = std::jthread([&] {
      about_to_wait.count_down();
      seen.push_back(ring.take().bytes()[0]);
    });
    about_to_wait.wait();
  }
  other.join();
  EXPECT_THAT(seen, Each(kNew));
  EXPECT_EQ(seen.size(), 1U);
}

/// Nothing is copied in these, so that any device does.
class StagingRingTest : public ::testing::Test {
 protected:
  const std::unique_ptr<Device> device_ = create_host_device();
};

TEST_F(StagingRingTest, AThreadHoldsOnePieceAtMost) {
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 3});
  {
    StagingRing::Piece piece = ring.take();
    EXPECT_THROW(static_cast<void>(ring.take()), LeaseError);
    const StagingRing::Piece moved = std::move(piece);
    EXPECT_THROW(static_cast<void>(ring.take()), LeaseError);
    std::jthread([&] { static_cast<void>(ring.take()); }).join();
  }
  StagingRing other(*device_, {.piece_bytes = kPage, .pieces = 1});
  StagingRing::Piece piece = ring.take();
  StagingRing::Piece others = other.take();
  piece = std::move(others);
  EXPECT_NO_THROW(static_cast<void>(ring.take()));
  EXPECT_THROW(static_cast<void>(other.take()), LeaseError);
}

TEST_F(StagingRingTest, PiecesAreTakenInTurnAndApart) {
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 3});
  std::vector<std::byte*> taken;
  for (int i = 0; i < 6; ++i) taken.push_back(ring.take().bytes().data());
  EXPECT_EQ(taken[1], taken[0] + kPage);
  EXPECT_EQ(taken[2], taken[1] + kPage);
  EXPECT_TRUE(std::equal(taken.begin(), taken.begin() + 3, taken.begin() + 3));
}

TEST_F(StagingRingTest, ACopyThatIsNotInsideThePieceIsALeaseError) {
  StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 2});
  std::vector<std::byte> target(4 * kPage);
  Stream& stream = device_->caller_stream();
  StagingRing::Piece piece = ring.take();
  const std::span<std::byte> bytes = piece.bytes();
  for (const std::span<const std::byte> part :
       {std::span<const std::byte>(bytes.data(), kPage + 1),
        std::span<const std::byte>(bytes.data() + 1, kPage),
        std::span<const std::byte>(bytes.data() + kPage, 1),
        std::span<const std::byte>(bytes.data() - 1, 1), std::span<const std::byte>(target)}) {
    EXPECT_THROW(piece.copy_to_device(stream, target.data(), part), LeaseError);
  }
  EXPECT_THROW(piece.copy_to_host(stream, target.data(), kPage + 1), LeaseError);
  EXPECT_THROW(piece.copy_to_host(stream, target.data(), ~0ULL), LeaseError);
  EXPECT_TRUE(piece.copy_to_host(stream, target.data(), 0).empty());
  const StagingRing::Piece moved = std::move(piece);
  EXPECT_TRUE(piece.bytes().empty());  // NOLINT: what a move leaves is defined
  EXPECT_THROW(piece.copy_to_device(stream, target.data(), bytes), LeaseError);
  EXPECT_THROW(piece.copy_to_host(stream, target.data(), 0), LeaseError);
}

TEST_F(StagingRingTest, SizesAreWholePagesAndCharged) {
  const auto budget = Budget::create(8 * kPage);
  {
    StagingRing ring(*device_, {.piece_bytes = kPage + 1, .pieces = 3, .budget = budget});
    EXPECT_EQ(ring.piece_bytes(), 2 * kPage);
    EXPECT_EQ(ring.take().bytes().size(), 2 * kPage);
    EXPECT_EQ(budget->used_bytes(), 6 * kPage);
  }
  EXPECT_EQ(budget->used_bytes(), 0U);
  try {
    StagingRing ring(*device_, {.piece_bytes = kPage, .pieces = 9, .budget = budget});
    FAIL();
  } catch (const BudgetError& error) {
    EXPECT_THAT(error.what(), HasSubstr("a staging ring needs"));
  }
  EXPECT_EQ(budget->used_bytes(), 0U);
}

TEST_F(StagingRingTest, SizesThatCannotBeHad) {
  EXPECT_THROW(StagingRing(*device_, {.piece_bytes = 0}), ConfigError);
  EXPECT_THROW(StagingRing(*device_, {.pieces = 0}), ConfigError);
  EXPECT_THROW(StagingRing(*device_, {.piece_bytes = ~0ULL, .pieces = 1}), BudgetError);
  EXPECT_THROW(StagingRing(*device_, {.piece_bytes = 1ULL << 60U, .pieces = 16}), BudgetError);
  EXPECT_THROW(StagingRing(*device_, {.piece_bytes = 1ULL << 60U, .pieces = 4}), BudgetError);
}

}  // namespace
}  // namespace tensorstream
