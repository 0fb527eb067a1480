// The reader that takes what the page cache has, and goes past it for the rest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "io/disk_queue.h"
#include "io/faulty_transfers.h"
#include "io/file_opener.h"
#include "io/file_window.h"
#include "io/reader.h"
#include "made_bytes/weights.h"
#include "platform/disk_file.h"
#include "platform/dropped_pages.h"
#include "platform/file_lease.h"
#include "platform/page_cache.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

/// A file of which the page cache has nothing.
class CachedReader : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!drop_from_page_cache(path_)) GTEST_SKIP() << "this file system keeps its pages";
    auto transfers =
        std::make_unique<FaultyTransfers>(create_thread_transfers(2), TransferFaults{}, counts_);
    reader_ =
        create_cached_reader(DiskFile::open_direct(path_), DiskQueue::create(std::move(transfers)));
  }

  std::uint64_t cached() const { return bytes_in_page_cache(file_, 0, kSize); }
  std::vector<std::byte> read(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    std::vector<std::byte> out(size_bytes);
    reader_->read(offset_bytes, out);
    return out;
  }
  std::vector<std::byte> expected(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const auto part = std::span(bytes_).subspan(offset_bytes, size_bytes);
    return {part.begin(), part.end()};
  }

  static constexpr std::uint64_t kSize = 12_MiB;
  const TemporaryFolder folder_;
  const std::vector<std::byte> bytes_ = patterned_bytes(kSize);
  const std::string path_ = folder_.write("a.bin", bytes_);
  const File file_ = File::open_for_reading(path_);
  const std::shared_ptr<TransferCounts> counts_ = std::make_shared<TransferCounts>();
  std::shared_ptr<Reader> reader_;
};

TEST_F(CachedReader, BringsNothingToThePageCache) {
  const std::uint64_t before = cached();  // opening looks at the first block
  EXPECT_EQ(read(1_MiB + 17, 5_MiB), expected(1_MiB + 17, 5_MiB));
  reader_->prefetch(0, kSize);
  EXPECT_EQ(cached(), before);
  EXPECT_GT(counts_->started, 0);
  EXPECT_TRUE(reader_->cached(0, kSize)) << "nobody is to read ahead";
}

TEST_F(CachedReader, TakesWhatThePageCacheHas) {
  read_into_page_cache(file_, 0, 4_MiB);
  EXPECT_EQ(read(1_MiB, 2_MiB), expected(1_MiB, 2_MiB));
  EXPECT_EQ(counts_->started, 0) << "the disk was asked";
  ASSERT_TRUE(drop_from_page_cache(path_));
  EXPECT_EQ(read(1_MiB, 2_MiB), expected(1_MiB, 2_MiB));
  EXPECT_GT(counts_->started, 0);
}

TEST_F(CachedReader, AWindowIsLostWithItsPages) {
  FileLease lease(file_);
  const FileWindow window(reader_, file_, lease, 4_MiB, 4_MiB, FileWindow::Opens::kWhereCached);
  EXPECT_TRUE(window.is_lost());
  EXPECT_EQ(reader_->window(4_MiB, 4_MiB), nullptr);
  EXPECT_EQ(bytes_in_page_cache(file_, 4_MiB, 4_MiB), 0U) << "it was looked at";
  read_into_page_cache(file_, 4_MiB, 4_MiB);
  EXPECT_FALSE(window.is_lost());
  ASSERT_TRUE(drop_from_page_cache(path_));
  EXPECT_TRUE(window.is_lost());
  EXPECT_FALSE(FileWindow(reader_, file_, lease, 4_MiB, 4_MiB).is_lost()) << "used always";
}

TEST_F(CachedReader, RefusesAFileThatIsAnotherByThen) {
  DiskFile other = DiskFile::open_direct(path_);
  std::filesystem::rename(folder_.write("b.bin", bytes_), path_);
  try {
    create_cached_reader(std::move(other), DiskQueue::create(create_thread_transfers(1)));
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("changed while it was opened"));
    EXPECT_EQ(error.path(), path_);
  }
}

}  // namespace
}  // namespace tensorstream
