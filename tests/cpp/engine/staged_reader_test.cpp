#include "engine/staged_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "device/host_device.h"
#include "engine/load.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"
#include "io/file_opener.h"
#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kPiece = 4096;

class StagedReads : public ::testing::Test {
 protected:
  std::vector<StagedExtent> extents(
      const std::vector<std::pair<std::uint64_t, std::uint64_t>>& parts,
      const std::shared_ptr<Reader>& reader) {
    std::vector<StagedExtent> made;
    std::byte* target = target_.data();
    for (const auto& [offset, size] : parts) {
      made.push_back({reader, offset, {target, size}});
      target += size;
    }
    return made;
  }
  void add(Load& load, std::uint64_t offset, std::uint64_t size, std::uint64_t target) {
    load.add({reader_, offset, size}, target_.data() + target, 16_MiB);
  }
  bool holds(std::uint64_t target, std::uint64_t offset, std::uint64_t size) const {
    return std::equal(target_.data() + target, target_.data() + target + size,
                      bytes_.data() + offset);
  }
  static std::vector<StagedRead> reads_of(const Load& load) { return load.staged_reads(kPiece); }

  const TemporaryFolder folder_;
  const std::vector<std::byte> bytes_ = patterned_bytes(64 * 4096);
  const std::string path_ = folder_.write("a.bin", bytes_);
  const std::shared_ptr<FaultyReader> reader_ =
      std::make_shared<FaultyReader>(open_file_reader(path_, FileBackend::kPread), Faults{});
  std::vector<std::byte> target_ = std::vector<std::byte>(64 * 4096);
  const std::unique_ptr<Device> device_ = create_host_device({});
  const std::unique_ptr<Stream> stream_ = device_->create_stream();
  StagingRing ring_{*device_, {.piece_bytes = kPiece, .pieces = 4}};
  StagedReader staged_{ring_};
};

TEST_F(StagedReads, WhatLiesWithoutAGapIsOneRead) {
  const auto reads = cut_for_staging(extents({{500, 100}, {100, 400}, {700, 50}}, reader_), kPiece);
  ASSERT_EQ(reads.size(), 2U);
  EXPECT_EQ(reads[0].offset_bytes, 100U);
  EXPECT_EQ(reads[0].size_bytes, 500U);
  ASSERT_EQ(reads[0].parts.size(), 2U);
  EXPECT_EQ(reads[0].parts[0].target.data(), target_.data() + 100);
  EXPECT_EQ(reads[0].parts[1].offset_bytes, 400U);
  EXPECT_EQ(reads[0].parts[1].target.data(), target_.data());
  EXPECT_EQ(reads[1].offset_bytes, 700U);
}

TEST_F(StagedReads, NoReadIsLargerThanAPiece) {
  const auto reads = cut_for_staging(extents({{10, 9000}, {9010, 100}}, reader_), kPiece);
  ASSERT_EQ(reads.size(), 3U);
  std::uint64_t end = 10;
  for (const StagedRead& read : reads) {
    EXPECT_EQ(read.offset_bytes, end);
    EXPECT_LE(read.size_bytes, kPiece);
    end += read.size_bytes;
  }
  EXPECT_EQ(end, 9110U);
  EXPECT_EQ(reads[2].parts.size(), 2U);
}

TEST_F(StagedReads, BytesThatTwoTensorsShareAreReadForBoth) {
  const auto reads = cut_for_staging(extents({{0, 300}, {100, 300}}, reader_), kPiece);
  ASSERT_EQ(reads.size(), 2U);
  EXPECT_EQ(reads[1].offset_bytes, 100U);
  EXPECT_EQ(reads[1].parts[0].target.size(), 300U);
}

TEST_F(StagedReads, FilesComeBeforeRam) {
  const auto bytes = std::make_shared<const Bytes>(100);
  auto made = extents({{0, 100}}, memory_reader("ram", bytes));
  made.push_back({reader_, 0, {target_.data() + 100, 50}});
  const auto reads = cut_for_staging(std::move(made), kPiece);
  ASSERT_EQ(reads.size(), 2U);
  EXPECT_EQ(reads[0].reader, reader_);
}

TEST_F(StagedReads, WhatWasReadAheadIsNotReadAgain) {
  Load load(0, Load::Reads::kStaged);
  add(load, 1000, 3 * 4096, 0);
  const auto reads = reads_of(load);
  ASSERT_EQ(reads.size(), 3U);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(staged_.read_ahead(reads));
  EXPECT_FALSE(staged_.read_ahead(reads));
  EXPECT_EQ(reader_->reads(), 3);
  staged_.send(load, *stream_, {});
  stream_->synchronize();
  EXPECT_EQ(reader_->reads(), 3);
  EXPECT_TRUE(holds(0, 1000, 3 * 4096));
  EXPECT_EQ(staged_.ahead_bytes(), 3U * 4096);
}

TEST_F(StagedReads, NoMoreIsReadAheadThanTheRingHolds) {
  Load load(0, Load::Reads::kStaged);
  add(load, 0, 9 * 4096, 0);
  const auto reads = reads_of(load);
  int begun = 0;
  while (staged_.read_ahead(reads)) ++begun;
  EXPECT_EQ(begun, 4);
  staged_.send(load, *stream_, {});
  stream_->synchronize();
  EXPECT_TRUE(holds(0, 0, 9 * 4096));
}

TEST_F(StagedReads, WhileALoadIsSentTheNextIsReadAhead) {
  Load first(0, Load::Reads::kStaged);
  Load second(1, Load::Reads::kStaged);
  add(first, 0, 2 * 4096, 0);
  add(second, 8 * 4096, 2 * 4096, 2 * 4096);
  staged_.send(first, *stream_, reads_of(second));
  stream_->synchronize();
  EXPECT_GE(reader_->reads(), 3);
  staged_.send(second, *stream_, {});
  stream_->synchronize();
  EXPECT_EQ(reader_->reads(), 4);
  EXPECT_GE(staged_.ahead_bytes(), 4096U);
  EXPECT_TRUE(holds(0, 0, 2 * 4096) && holds(2 * 4096, 8 * 4096, 2 * 4096));
}

/// Its bytes are others, of the same size.
TEST_F(StagedReads, WhatWasReadAheadForAnotherLoadIsNotUsed) {
  Load expected(0, Load::Reads::kStaged);
  Load comes(1, Load::Reads::kStaged);
  add(expected, 0, 3 * 4096, 0);
  add(comes, 20 * 4096, 3 * 4096, 0);
  const auto reads = reads_of(expected);
  while (staged_.read_ahead(reads)) {
  }
  staged_.send(comes, *stream_, {});
  stream_->synchronize();
  EXPECT_EQ(comes.error(), nullptr);
  EXPECT_TRUE(holds(0, 20 * 4096, 3 * 4096));
  EXPECT_EQ(staged_.ahead_bytes(), 0U);
}

TEST_F(StagedReads, AFailureAheadIsLeftToTheLoadThatNeedsIt) {
  const auto faulty = std::make_shared<FaultyReader>(open_file_reader(path_, FileBackend::kPread),
                                                     Faults{.ends_at_bytes = 10 * 4096});
  Load first(0, Load::Reads::kStaged);
  Load second(1, Load::Reads::kStaged);
  first.add({faulty, 0, 4096}, target_.data(), 16_MiB);
  second.add({faulty, 12 * 4096, 4096}, target_.data() + 4096, 16_MiB);
  EXPECT_FALSE(staged_.read_ahead(reads_of(second)));
  staged_.send(first, *stream_, reads_of(second));
  EXPECT_EQ(first.error(), nullptr);
  staged_.send(second, *stream_, {});
  ASSERT_NE(second.error(), nullptr);
  EXPECT_THROW(std::rethrow_exception(second.error()), IoError);
  Load again(2, Load::Reads::kStaged);
  again.add({faulty, 0, 8 * 4096}, target_.data(), 16_MiB);
  staged_.send(again, *stream_, {});
  stream_->synchronize();
  EXPECT_EQ(again.error(), nullptr);
  EXPECT_TRUE(holds(0, 0, 8 * 4096));
}

}  // namespace
}  // namespace tensorstream
