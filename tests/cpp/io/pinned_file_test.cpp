#include "io/pinned_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "io/device_reads.h"
#include "io/file_opener.h"
#include "io/reader.h"
#include "made_bytes/weights.h"
#include "platform/page_cache.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

/// Files in RAM, and readers of them for a GPU of the fake driver.
class PinnedFiles : public ::testing::Test {
 protected:
  PinnedFiles() { fake_.reset(); }

  std::unique_ptr<Reader> open(const std::string& path,
                               FileBackend backend = FileBackend::kPread) const {
    return FileOpener(backend, reading_gpu()).open(path);
  }

  const FakeCuda fake_;
  const TemporaryFolder folder_{"/dev/shm/"};
  const std::vector<std::byte> bytes_ = patterned_bytes(3'000'123);
  const std::string path_ = folder_.write("weights.bin", bytes_);
};

/// The errno of an attempt to open a file for writing without waiting; 0 where it can be.
int write_refusal(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) return errno;
  ::close(descriptor);
  return 0;
}

/// Of this process's memory: pages of files in RAM.
std::uint64_t resident_bytes() {
  std::ifstream status("/proc/self/status");
  std::string name;
  while (status >> name && name != "RssShmem:") {
  }
  std::uint64_t kibibytes = 0;
  status >> kibibytes;
  EXPECT_TRUE(status);
  return kibibytes * 1024;
}

TEST_F(PinnedFiles, AGpuCopiesFromWhereTheFileLies) {
  for (const FileBackend backend : {FileBackend::kPread, FileBackend::kMmap}) {
    const auto reader = open(path_, backend);
    PinnedFile* const file = reader->pinned_file();
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(fake_.get("registrations"), 1);
    const auto hold = file->try_hold();
    ASSERT_TRUE(hold);
    EXPECT_TRUE(std::equal(bytes_.begin(), bytes_.end(), file->address(0)));
    EXPECT_EQ(file->address(1234), file->address(0) + 1234);
    EXPECT_EQ(file->piece_end(0), bytes_.size());
    EXPECT_EQ(file->piece_end(bytes_.size() - 1), bytes_.size());
  }
  EXPECT_EQ(fake_.get("registrations"), 0);
}

TEST_F(PinnedFiles, OneCopyGoesNoFurtherThanOneRegistration) {
  const std::string path = folder_.path("sparse");
  std::ofstream(path).close();
  std::filesystem::resize_file(path, 2_GiB + 5);
  const auto reader = open(path);
  PinnedFile* const file = reader->pinned_file();
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(fake_.get("registrations"), 3);
  EXPECT_EQ(file->piece_end(0), 1_GiB);
  EXPECT_EQ(file->piece_end(1_GiB - 1), 1_GiB);
  EXPECT_EQ(file->piece_end(1_GiB), 2_GiB);
  EXPECT_EQ(file->piece_end(2_GiB), 2_GiB + 5);
}

TEST_F(PinnedFiles, FilesOfDisksAreRead) {
  const TemporaryFolder folder;
  const std::string path = folder.write("weights.bin", bytes_);
  const bool in_ram = lies_in_ram(File::open_for_reading(path));
  EXPECT_EQ(open(path)->pinned_file() != nullptr, in_ram);
  EXPECT_TRUE(lies_in_ram(File::open_for_reading(path_)));
}

TEST_F(PinnedFiles, WhatReadsPastThePageCacheOrForTheHostReads) {
  EXPECT_EQ(open(path_, FileBackend::kDirect)->pinned_file(), nullptr);
  EXPECT_EQ(open_file_reader(path_, FileBackend::kPread)->pinned_file(), nullptr);
  EXPECT_EQ(open(folder_.write("empty", {}))->pinned_file(), nullptr);
}

TEST_F(PinnedFiles, WhereTheDeviceOrTheSystemRegistersNoneTheFileIsRead) {
  fake_.set("source_register_supported", 0);
  EXPECT_EQ(open(path_)->pinned_file(), nullptr);
  EXPECT_EQ(fake_.calls("cuMemHostRegister_v2"), 0);
  fake_.set("source_register_supported", 1);
  fake_.set("most_registered_bytes", 1'000'000);
  EXPECT_EQ(open(path_)->pinned_file(), nullptr);
  EXPECT_EQ(fake_.get("registrations"), 0);
}

TEST_F(PinnedFiles, NobodyWritesToTheFileWhileItIsHeld) {
  const auto reader = open(path_);
  EXPECT_EQ(write_refusal(path_), 0);
  {
    const auto hold = reader->pinned_file()->try_hold();
    ASSERT_TRUE(hold);
    EXPECT_EQ(write_refusal(path_), EWOULDBLOCK);
  }
  EXPECT_EQ(write_refusal(path_), 0);
}

TEST_F(PinnedFiles, AFileThatIsOpenForWritingIsNotHeld) {
  const auto reader = open(path_);
  const int writer = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  EXPECT_FALSE(reader->pinned_file()->try_hold());
  EXPECT_THROW(open(path_), IoError);
  ::close(writer);
  EXPECT_TRUE(reader->pinned_file()->try_hold());
}

TEST_F(PinnedFiles, AFileThatHasChangedIsNotHeld) {
  const auto reader = open(path_);
  const auto hold = reader->pinned_file()->try_hold();
  ASSERT_TRUE(hold);
  hold->check_unchanged();
  ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
  const timespec now[2] = {{0, UTIME_NOW}, {1, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), now, 0), 0);
  EXPECT_THROW(hold->check_unchanged(), IoError);
  try {
    static_cast<void>(reader->pinned_file()->try_hold());
    FAIL() << "a file that has changed was held";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr(path_));
  }
}

TEST_F(PinnedFiles, ItsPagesAreNotThisProcesssMemory) {
  const std::uint64_t size = 64_MiB;
  const std::string path = folder_.write("large", std::vector<std::byte>(size, std::byte{1}));
  const std::uint64_t before = resident_bytes();
  const auto reader = open(path);  // which has the driver touch them
  ASSERT_NE(reader->pinned_file(), nullptr);
  EXPECT_LT(resident_bytes(), before + size / 2);
}

}  // namespace
}  // namespace tensorstream
