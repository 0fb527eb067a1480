#include "engine/source_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/test_model.h"
#include "io/device_reads.h"
#include "io/file_opener.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const Bytes> numbered(std::uint64_t size) {
  auto bytes = std::make_shared<Bytes>(size);
  for (std::size_t i = 0; i < size; ++i) (*bytes)[i] = static_cast<std::byte>(i);
  return bytes;
}

/// A table of one tensor whose extents are in two buffers of 100 bytes.
SourceTable table_of(std::uint64_t size_bytes, std::vector<Extent> extents) {
  std::vector<TensorSpec> tensors = {{"w", Dtype::kU8, size_bytes, std::move(extents)}};
  return {{memory_reader("first", numbered(100)), memory_reader("second", numbered(100))},
          std::move(tensors)};
}

std::vector<int> read(const SourceTable& table, std::uint64_t offset, std::uint64_t size) {
  Bytes out(size);
  table.read(0, offset, out);
  std::vector<int> numbers;
  for (const std::byte byte : out) numbers.push_back(std::to_integer<int>(byte));
  return numbers;
}

TEST(SourceTable, ReadsAcrossExtents) {
  const SourceTable table = table_of(7, {{0, 10, 3}, {1, 97, 0}, {1, 50, 2}, {0, 98, 2}});
  EXPECT_EQ(read(table, 0, 7), (std::vector<int>{10, 11, 12, 50, 51, 98, 99}));
  EXPECT_EQ(read(table, 2, 2), (std::vector<int>{12, 50}));
  EXPECT_EQ(read(table, 3, 4), (std::vector<int>{50, 51, 98, 99}));
  EXPECT_EQ(read(table, 6, 1), (std::vector<int>{99}));
  EXPECT_EQ(read(table, 7, 0), (std::vector<int>{}));
  Bytes two(2);
  EXPECT_THROW(table.read(0, 6, two), ConfigError);
}

TEST(SourceTable, ExtentsThatPassTheirSourceAreRefused) {
  EXPECT_NO_THROW(table_of(100, {{0, 0, 100}}));
  EXPECT_THROW(table_of(101, {{0, 0, 101}}), ConfigError);
  EXPECT_THROW(table_of(1, {{0, 100, 1}}), ConfigError);
  EXPECT_THROW(table_of(1, {{0, ~std::uint64_t{0}, 1}}), ConfigError);
  try {
    table_of(20, {{1, 90, 20}});
    FAIL() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'second'"));
    EXPECT_THAT(error.what(), HasSubstr("'w'"));
  }
}

TEST(SourceTable, ExtentsThatDoNotAddUpToTheirTensorAreRefused) {
  EXPECT_THROW(table_of(10, {{0, 0, 9}}), ConfigError);
  EXPECT_THROW(table_of(10, {{0, 0, 9}, {1, 0, 2}}), ConfigError);
  EXPECT_THROW(table_of(10, {}), ConfigError);
  EXPECT_NO_THROW(table_of(0, {}));
}

TEST(SourceTable, KeepsFilesThatADeviceCopiesFrom) {
  const FakeCuda fake;
  fake.reset();
  const TemporaryFolder folder("/dev/shm/");
  const std::string path = folder.write("w", *numbered(100));
  std::shared_ptr<Reader> reader = FileOpener(FileBackend::kPread, reading_gpu()).open(path);
  ASSERT_NE(reader->pinned_file(), nullptr);
  const std::weak_ptr<Reader> watched = reader;
  {
    SourceTable table({std::exchange(reader, nullptr)}, {{"w", Dtype::kU8, 100, {{0, 0, 100}}}});
    const std::vector<TensorId> tensors = {0};
    EXPECT_TRUE(table.in_pinned_files(tensors));
    table.replace(0, memory_reader("new bytes", numbered(100)));
    EXPECT_FALSE(table.in_pinned_files(tensors));
    EXPECT_FALSE(watched.expired());
  }
  EXPECT_TRUE(watched.expired());
  EXPECT_EQ(fake.get("registrations"), 0);
}

TEST(SourceTable, UnknownSourcesAreRefused) { EXPECT_THROW(table_of(1, {{2, 0, 1}}), ConfigError); }

TEST(SourceTable, HasAnAddressOnlyForOnePieceOfMemory) {
  EXPECT_NE(table_of(5, {{0, 3, 5}}).address(0), nullptr);
  EXPECT_EQ(table_of(5, {{0, 3, 4}, {0, 7, 1}}).address(0), nullptr);
  const TemporaryFolder folder;
  const TestModel model = equal_model(1, 50);
  const ModelSpec spec = model.in_files(folder);
  EXPECT_EQ(SourceTable(spec.sources, spec.tensors).address(0), nullptr);
}

TEST(SourceTable, ReplacedBytesAreReadAndOldExtentsStayReadable) {
  SourceTable table = table_of(5, {{0, 10, 5}});
  const std::vector<BoundExtent> old = table.extents(0);
  table.replace(0, memory_reader("new", std::make_shared<const Bytes>(5, std::byte{7})));
  EXPECT_EQ(read(table, 0, 5), std::vector<int>(5, 7));
  Bytes out(5);
  ASSERT_EQ(old.size(), 1U);
  old[0].reader->read(old[0].offset_bytes, out);
  EXPECT_EQ(out[4], std::byte{14});
  EXPECT_THROW(table.replace(0, memory_reader("short", numbered(4))), ConfigError);
  EXPECT_EQ(read(table, 0, 5), std::vector<int>(5, 7));
}

TEST(SourceTable, AMoveIsGivenUpWhereTheTensorWasWrittenToMeanwhile) {
  const auto old = std::make_shared<const Bytes>(Bytes(100, std::byte{1}));
  const auto written = std::make_shared<const Bytes>(Bytes(100, std::byte{2}));
  SourceTable sources({memory_reader("old", old)}, {{"t", Dtype::kU8, 100, {{0, 0, 100}}}});
  const auto home = memory_reader("home", old);
  std::vector<BoundExtent> from = sources.extents(0);
  EXPECT_TRUE(sources.try_move(0, from, {home, 0, 100}));
  EXPECT_EQ(sources.extents(0)[0].reader, home);
  from = sources.extents(0);
  static_cast<void>(sources.replace(0, memory_reader("written", written)));
  EXPECT_FALSE(sources.try_move(0, from, {home, 0, 100}));
  Bytes now(100);
  sources.read(0, 0, now);
  EXPECT_EQ(now, *written);
}

}  // namespace
}  // namespace tensorstream
