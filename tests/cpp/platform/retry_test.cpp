#include "platform/retry.h"

#include <gtest/gtest.h>
#include <sys/types.h>

#include <algorithm>
#include <array>
#include <vector>

namespace tensorstream {
namespace {

/// A source that gives `largest` bytes at a time and is interrupted before every second call.
class HaltingSource {
 public:
  HaltingSource(std::size_t size, std::size_t largest) : left_(size), largest_(largest) {}

  ssize_t read(std::span<std::byte> out) {
    if (++calls_ % 2 == 1) {
      errno = EINTR;
      return -1;
    }
    const std::size_t count = std::min({out.size(), left_, largest_});
    std::fill_n(out.begin(), count, static_cast<std::byte>(calls_));
    left_ -= count;
    return static_cast<ssize_t>(count);
  }

 private:
  std::size_t left_;
  std::size_t largest_;
  int calls_ = 0;
};

TEST(RetryInterrupted, CallsAgainOnInterruptsAlone) {
  int calls = 0;
  EXPECT_EQ(retry_interrupted([&] {
              errno = EINTR;
              return ++calls < 4 ? -1 : 42;
            }),
            42);
  EXPECT_EQ(calls, 4);
  calls = 0;
  EXPECT_EQ(retry_interrupted([&] {
              errno = EIO;
              ++calls;
              return -1;
            }),
            -1);
  EXPECT_EQ(calls, 1);
}

TEST(ReadFully, GoesOnAfterShortAndInterruptedReads) {
  HaltingSource source(10, 4);
  std::vector<std::byte> out(10);
  std::vector<std::uint64_t> offsets;
  const ReadOutcome outcome = read_fully(
      [&](std::uint64_t done, std::span<std::byte> rest) {
        offsets.push_back(done);
        return source.read(rest);
      },
      out);
  EXPECT_EQ(outcome.read_bytes, 10U);
  EXPECT_EQ(outcome.error_number, 0);
  EXPECT_EQ(offsets, (std::vector<std::uint64_t>{0, 0, 4, 4, 8, 8}));
  const std::array<int, 10> expected = {2, 2, 2, 2, 4, 4, 4, 4, 6, 6};
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(int(out[i]), expected[i]) << i;
}

TEST(ReadFully, StopsAtTheEnd) {
  HaltingSource source(7, 4);
  std::vector<std::byte> out(10);
  const auto outcome =
      read_fully([&](std::uint64_t, std::span<std::byte> rest) { return source.read(rest); }, out);
  EXPECT_EQ(outcome.read_bytes, 7U);
  EXPECT_EQ(outcome.error_number, 0);
}

TEST(ReadFully, TellsTheErrorAndHowFarItCame) {
  std::vector<std::byte> out(10);
  const auto outcome = read_fully(
      [&](std::uint64_t done, std::span<std::byte>) -> ssize_t {
        if (done == 0) return 3;
        errno = EIO;
        return -1;
      },
      out);
  EXPECT_EQ(outcome.read_bytes, 3U);
  EXPECT_EQ(outcome.error_number, EIO);
}

TEST(ReadFully, NothingToReadIsNoCall) {
  const auto outcome = read_fully(
      [](std::uint64_t, std::span<std::byte>) -> ssize_t {
        ADD_FAILURE() << "called";
        return 0;
      },
      {});
  EXPECT_EQ(outcome.read_bytes, 0U);
}

TEST(ReadProgress, GoesOnFromTheLastWholeBlock) {
  ReadProgress progress(10'000, 4096);
  EXPECT_TRUE(progress.note(-EINTR));
  EXPECT_EQ(progress.next_bytes(), 0U);
  EXPECT_TRUE(progress.note(5000));
  EXPECT_EQ(progress.next_bytes(), 4096U);
  EXPECT_FALSE(progress.is_whole());
  EXPECT_FALSE(progress.note(8192));  // the block that the last byte is in
  EXPECT_TRUE(progress.is_whole());
}

TEST(ReadProgress, EndsWhereACallBringsNothingNew) {
  ReadProgress progress(10'000, 4096);
  EXPECT_TRUE(progress.note(5000));
  EXPECT_FALSE(progress.note(904));  // the same 5000
  EXPECT_FALSE(progress.is_whole());
  EXPECT_EQ(progress.outcome().read_bytes, 5000U);
  EXPECT_EQ(progress.outcome().error_number, 0);
}

TEST(ReadProgress, ARefusalThatDoesNotEndIsAnError) {
  ReadProgress progress(10, 1);
  int calls = 1;
  while (progress.note(-EAGAIN)) ++calls;
  EXPECT_EQ(progress.outcome().error_number, EAGAIN);
  EXPECT_LE(calls, 1000);
}

TEST(WriteFully, GoesOnAfterShortAndInterruptedWrites) {
  const std::vector<std::byte> bytes(10, std::byte{7});
  std::vector<std::byte> written;
  int calls = 0;
  const auto write_some = [&](std::uint64_t done, std::span<const std::byte> rest) -> ssize_t {
    EXPECT_EQ(done, written.size());
    if (++calls % 2 == 1) {
      errno = EINTR;
      return -1;
    }
    const std::size_t count = std::min<std::size_t>(4, rest.size());
    written.insert(written.end(), rest.begin(), rest.begin() + static_cast<ssize_t>(count));
    return static_cast<ssize_t>(count);
  };
  EXPECT_EQ(write_fully(write_some, bytes), 0);
  EXPECT_EQ(written, bytes);
}

TEST(WriteFully, GivesTheErrorOfTheCall) {
  const std::vector<std::byte> bytes(10);
  const auto full = [](std::uint64_t done, std::span<const std::byte>) -> ssize_t {
    if (done == 0) return 4;
    errno = ENOSPC;
    return -1;
  };
  EXPECT_EQ(write_fully(full, bytes), ENOSPC);
  EXPECT_EQ(
      write_fully([](std::uint64_t, std::span<const std::byte>) { return ssize_t{0}; }, bytes),
      EIO);
}

}  // namespace
}  // namespace tensorstream
