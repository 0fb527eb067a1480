#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "io/file_opener.h"
#include "io/reader.h"
#include "made_bytes/weights.h"
#include "platform/mapped_bytes.h"
#include "platform/mapping.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

class FileReader : public ::testing::TestWithParam<FileBackend> {
 protected:
  const TemporaryFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Backends, FileReader,
                         ::testing::Values(FileBackend::kMmap, FileBackend::kPread,
                                           FileBackend::kDirect, FileBackend::kCached),
                         [](const auto& instance) {
                           switch (instance.param) {
                             case FileBackend::kMmap:
                               return "Mmap";
                             case FileBackend::kPread:
                               return "Pread";
                             case FileBackend::kDirect:
                               return "Direct";
                             default:
                               return "Cached";
                           }
                         });

TEST_P(FileReader, WhatIsNoFileIsAnIoError) {
  try {
    open_file_reader(folder_.path("absent"), GetParam());
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), ENOENT);
  }
  EXPECT_THROW(open_file_reader(folder_.path(""), GetParam()), IoError);
}

TEST_P(FileReader, ATruncatedFileIsAnIoErrorAlsoWhereBytesAreLeft) {
  for (const std::uint64_t size : {std::uint64_t{5000}, 2_MiB}) {
    const std::string path = folder_.write("a.bin", patterned_bytes(3_MiB));
    const auto reader = open_file_reader(path, GetParam());
    std::vector<std::byte> out(size);
    EXPECT_NO_THROW(reader->read(0, out));
    std::filesystem::resize_file(path, 2_MiB + 100);
    for (const std::uint64_t offset : {std::uint64_t{0}, 3_MiB - size}) {
      try {
        reader->read(offset, out);
        ADD_FAILURE() << "no error at " << offset;
      } catch (const IoError& error) {
        EXPECT_EQ(error.path(), path);
        EXPECT_EQ(error.error_number(), 0);
      }
    }
  }
}

TEST_P(FileReader, ARewrittenFileIsAnIoError) {
  const std::string path = folder_.write("a.bin", patterned_bytes(2_MiB));
  const auto reader = open_file_reader(path, GetParam());
  const timespec times[2] = {{.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 1}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  std::vector<std::byte> out(1_MiB);
  for (const std::size_t size : {std::size_t{10}, out.size()}) {
    try {
      reader->read(0, std::span(out).first(size));
      ADD_FAILURE() << "no error";
    } catch (const IoError& error) {
      EXPECT_THAT(error.what(), HasSubstr("changed since it was opened"));
    }
  }
}

TEST_P(FileReader, AFileRemovedByNameIsReadOn) {
  const auto bytes = patterned_bytes(2_MiB);
  const std::string path = folder_.write("a.bin", bytes);
  const auto reader = open_file_reader(path, GetParam());
  std::filesystem::remove(path);
  std::vector<std::byte> out(bytes.size());
  reader->read(0, out);
  EXPECT_EQ(out, bytes);
}

/// Memory that calls back before a part of it is first written to, on the thread that writes. One
/// at a time.
class WatchedMemory {
 public:
  static constexpr std::uint64_t kPartBytes = 1_MiB;

  WatchedMemory(std::uint64_t size_bytes, std::function<void()> before_write)
      : memory_(Mapping::anonymous(size_bytes, HugePages::kNever)),
        before_write_(std::move(before_write)) {
    watched_ = this;
    struct sigaction action{};
    action.sa_sigaction = [](int, siginfo_t* info, void*) { watched_->written(info->si_addr); };
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGSEGV, &action, &before_);
    memory_.set_access(0, memory_.size_bytes(), Access::kNone);
  }
  ~WatchedMemory() { ::sigaction(SIGSEGV, &before_, nullptr); }
  WatchedMemory(const WatchedMemory&) = delete;
  WatchedMemory& operator=(const WatchedMemory&) = delete;

  std::span<std::byte> bytes() const { return {memory_.data(), memory_.size_bytes()}; }

 private:
  void written(const void* address) {
    const auto offset =
        static_cast<std::uint64_t>(static_cast<const std::byte*>(address) - memory_.data());
    if (offset >= memory_.size_bytes()) std::abort();  // a fault of somebody else
    before_write_();
    memory_.set_access(offset / kPartBytes * kPartBytes, kPartBytes, Access::kReadWrite);
  }

  static inline WatchedMemory* watched_ = nullptr;
  const Mapping memory_;
  const std::function<void()> before_write_;
  struct sigaction before_{};
};

/// The mmap reader's pages; other tests say that it reads them. The parameter is the size of the
/// writes that made the file: large ones may give the page cache huge pages, which the kernel maps
/// and lets go whole, and small ones single pages.
class MmapReaderPages : public ::testing::TestWithParam<std::uint64_t> {
 protected:
  MmapReaderPages() {
    const auto bytes = patterned_bytes(kSize);
    std::ofstream file(path_, std::ios::binary);
    for (std::uint64_t done = 0; done < kSize; done += GetParam()) {
      file.write(reinterpret_cast<const char*>(bytes.data() + done),
                 static_cast<std::streamsize>(GetParam()));
      file.flush();
    }
    EXPECT_TRUE(file.good());
    file.close();
    reader_ = open_file_reader(path_, FileBackend::kMmap);
  }

  static constexpr std::uint64_t kSize = 40_MiB;
  const TemporaryFolder folder_;
  const std::string path_ = folder_.path("a.bin");
  std::unique_ptr<Reader> reader_;
  std::vector<std::byte> out_ = std::vector<std::byte>(kSize);
};

INSTANTIATE_TEST_SUITE_P(WriteSizes, MmapReaderPages, ::testing::Values(4_KiB, 40_MiB),
                         [](const auto& instance) { return std::to_string(instance.param); });

TEST_P(MmapReaderPages, ALargeReadLeavesNoneAndMapsFewAtATime) {
  std::vector<std::uint64_t> resident;
  const WatchedMemory out(kSize, [&] { resident.push_back(mapped_resident_bytes(path_)); });
  reader_->read(0, out.bytes());
  EXPECT_EQ(resident.size(), kSize / WatchedMemory::kPartBytes);
  EXPECT_GE(*std::ranges::min_element(resident), 1_MiB);   // it is the mapping that is copied
  EXPECT_LE(*std::ranges::max_element(resident), 12_MiB);  // a window, and a huge page around it
  EXPECT_EQ(mapped_resident_bytes(path_), 0U);
}

TEST_P(MmapReaderPages, LargeReadsAtOddPlacesLeaveNone) {
  for (std::uint64_t offset = 100; offset + 1_MiB + 333 < kSize; offset += 1_MiB + 5000) {
    reader_->read(offset, std::span(out_).first(1_MiB + 333));
    EXPECT_EQ(mapped_resident_bytes(path_), 0U);
  }
}

TEST_P(MmapReaderPages, SmallReadsMapNone) {
  for (const std::uint64_t size : {std::uint64_t{1}, 512_KiB, 1_MiB - 1}) {
    reader_->read(3, std::span(out_).first(size));
    EXPECT_EQ(mapped_resident_bytes(path_), 0U);
  }
}

}  // namespace
}  // namespace tensorstream
