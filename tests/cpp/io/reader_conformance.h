// What every Reader does, for each implementation to run: INSTANTIATE_TEST_SUITE_P(Name,
// ReaderConformance, Values(...)).
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/units.h"
#include "io/reader.h"
#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// A kind of reader under test.
struct ReaderKind {
  std::string name;
  Tier tier = Tier::kDisk;
  /// A reader of `bytes`; files go into the folder, which outlives the reader.
  std::function<std::unique_ptr<Reader>(const TemporaryFolder&, std::span<const std::byte>)> create;
};

inline std::ostream& operator<<(std::ostream& out, const ReaderKind& kind) {
  return out << kind.name;
}

class ReaderConformance : public ::testing::TestWithParam<ReaderKind> {
 protected:
  std::unique_ptr<Reader> reader_of(std::span<const std::byte> bytes) const {
    return GetParam().create(folder_, bytes);
  }

  const TemporaryFolder folder_;
};

TEST_P(ReaderConformance, SaysWhatItReads) {
  const auto reader = reader_of(patterned_bytes(1234));
  EXPECT_FALSE(reader->name().empty());
  EXPECT_EQ(reader->tier(), GetParam().tier);
  EXPECT_EQ(reader->size_bytes(), 1234U);
}

TEST_P(ReaderConformance, ReadsAnyRangeAndNoByteMore) {
  const auto bytes = patterned_bytes(19_MiB + 123);
  const auto reader = reader_of(bytes);
  const std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges = {{0, bytes.size()},
                                                                       {0, 1},
                                                                       {bytes.size() - 1, 1},
                                                                       {4095, 4098},
                                                                       {1_MiB + 1, 1_MiB},
                                                                       {1, 1_MiB - 1},
                                                                       {3, 9_MiB},
                                                                       {8_MiB - 5, 8_MiB},
                                                                       {bytes.size(), 0},
                                                                       {0, 0},
                                                                       {2_MiB, 16_MiB},
                                                                       {11_MiB + 77, 8_MiB + 46}};
  constexpr std::byte kUntouched{0xA5};
  for (const auto& [offset, size] : ranges) {
    SCOPED_TRACE(std::to_string(size) + " at " + std::to_string(offset));
    std::vector<std::byte> out(size + 2, kUntouched);
    reader->read(offset, std::span(out).subspan(1, size));
    EXPECT_EQ(out.front(), kUntouched);
    EXPECT_EQ(out.back(), kUntouched);
    EXPECT_TRUE(std::equal(out.begin() + 1, out.end() - 1,
                           bytes.begin() + static_cast<std::ptrdiff_t>(offset)));
  }
}

TEST_P(ReaderConformance, ReadsThatAreBegunAreWholeOnceTheyWereWaitedFor) {
  const auto bytes = patterned_bytes(5_MiB + 123);
  const auto reader = reader_of(bytes);
  std::vector<std::byte> out(bytes.size());
  std::vector<PendingRead> reads;
  for (std::size_t done = 0; done < out.size(); done += 700'001) {
    const std::size_t size = std::min<std::size_t>(700'001, out.size() - done);
    reads.push_back(reader->begin_read(done, std::span(out).subspan(done, size)));
  }
  for (PendingRead& read : reads) read.wait();
  EXPECT_EQ(out, bytes);
  EXPECT_THROW(reader->begin_read(bytes.size(), std::span(out).first(1)).wait(), IoError);
}

TEST_P(ReaderConformance, ReadsBehindTheEndAreIoErrors) {
  const auto reader = reader_of(patterned_bytes(3_MiB));
  for (const auto& [offset, size] : std::vector<std::pair<std::uint64_t, std::size_t>>{
           {3_MiB, 1},
           {3_MiB - 10, 11},
           {2_MiB, 1_MiB + 1},
           {0, 3_MiB + 1},
           {3_MiB + 1, 0},
           {std::numeric_limits<std::uint64_t>::max() - 5, 10}}) {
    SCOPED_TRACE(std::to_string(size) + " at " + std::to_string(offset));
    std::vector<std::byte> out(size);
    try {
      reader->read(offset, out);
      ADD_FAILURE() << "no error";
    } catch (const IoError& error) {
      EXPECT_EQ(error.path(), reader->name());
      EXPECT_EQ(error.offset_bytes(), offset);
      EXPECT_THAT(error.what(), ::testing::HasSubstr(reader->name()));
    }
  }
  std::vector<std::byte> out(100);
  EXPECT_NO_THROW(reader->read(3_MiB - 100, out));
}

TEST_P(ReaderConformance, AnEmptySourceHasNoBytes) {
  const auto reader = reader_of({});
  EXPECT_EQ(reader->size_bytes(), 0U);
  EXPECT_NO_THROW(reader->read(0, {}));
  std::byte byte{};
  EXPECT_THROW(reader->read(0, {&byte, 1}), IoError);
}

TEST_P(ReaderConformance, AnAddressIsOfTheBytesThatReadGives) {
  const auto bytes = patterned_bytes(10'000);
  const auto reader = reader_of(bytes);
  const std::byte* const address = reader->address(77);
  EXPECT_EQ(address != nullptr, GetParam().tier == Tier::kRam);
  EXPECT_EQ(reader->address(10'000), nullptr);
  if (address == nullptr) return;
  EXPECT_TRUE(std::equal(bytes.begin() + 77, bytes.end(), address));
}

TEST_P(ReaderConformance, ThreadsMayReadTogether) {
  const auto bytes = patterned_bytes(4_MiB + 5);
  const auto reader = reader_of(bytes);
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) {
      threads.emplace_back([&, seed] {
        std::mt19937_64 random(seed);
        std::uniform_int_distribution<std::size_t> small(0, 5000);
        std::vector<std::byte> out;
        for (int i = 0; i < 100; ++i) {
          out.resize(i % 10 == 0 ? 2_MiB : small(random));
          const std::size_t offset =
              std::uniform_int_distribution<std::size_t>(0, bytes.size() - out.size())(random);
          reader->read(offset, out);
          const auto expected = bytes.begin() + static_cast<std::ptrdiff_t>(offset);
          wrong += std::equal(out.begin(), out.end(), expected) ? 0 : 1;
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace tensorstream
