#include "platform/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <utility>

#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

/// What `call` raises; a failure where it raises nothing.
template <typename Call>
IoError io_error_of(const Call& call) {
  try {
    call();
  } catch (const IoError& error) {
    return error;
  }
  ADD_FAILURE() << "no IoError";
  return {"", "", 0, 0};
}

bool is_open(int descriptor) { return ::fcntl(descriptor, F_GETFD) != -1; }

TEST(File, KnowsItsPathAndSize) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(1000));
  const File file = File::open_for_reading(path);
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.size_bytes(), 1000U);
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(file.identity().inode, status.st_ino);
  EXPECT_EQ(file.identity().device, status.st_dev);
}

TEST(File, WhatIsNotThereIsAnIoErrorWithTheReason) {
  const TemporaryFolder folder;
  const std::string path = folder.path("absent.bin");
  const IoError error = io_error_of([&] { File::open_for_reading(path); });
  EXPECT_EQ(error.error_number(), ENOENT);
  EXPECT_EQ(error.path(), path);
  EXPECT_THAT(error.what(), HasSubstr(path));
}

TEST(File, AFolderIsAnIoError) {
  const TemporaryFolder folder;
  EXPECT_EQ(io_error_of([&] { File::open_for_reading(folder.path("")); }).error_number(), EISDIR);
}

TEST(File, AFifoIsAnIoErrorAndDoesNotBlock) {
  const TemporaryFolder folder;
  const std::string path = folder.path("fifo");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(io_error_of([&] { File::open_for_reading(path); }).what(),
              HasSubstr("not a regular file"));
}

TEST(File, ReadsAnyRange) {
  const TemporaryFolder folder;
  const auto bytes = patterned_bytes(10'000);
  const File file = File::open_for_reading(folder.write("a.bin", bytes));
  for (const auto& [offset, size] : std::vector<std::pair<std::size_t, std::size_t>>{
           {0, 10'000}, {0, 1}, {9'999, 1}, {4'095, 3}, {10'000, 0}}) {
    std::vector<std::byte> out(size);
    file.read_exact(offset, out);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), bytes.begin() + std::ptrdiff_t(offset)))
        << offset << " " << size;
  }
}

TEST(File, ReadsBehindTheEndAreIoErrorsWithOffsetAndNoErrno) {
  const TemporaryFolder folder;
  const File file = File::open_for_reading(folder.write("a.bin", patterned_bytes(100)));
  std::vector<std::byte> out(10);
  for (const std::uint64_t offset :
       {std::uint64_t{91}, std::uint64_t{200}, std::numeric_limits<std::uint64_t>::max() - 3}) {
    const IoError error = io_error_of([&] { file.read_exact(offset, out); });
    EXPECT_EQ(error.offset_bytes(), offset);
    EXPECT_EQ(error.error_number(), 0);
    EXPECT_EQ(error.path(), file.path());
    EXPECT_THAT(error.what(), HasSubstr("100 bytes"));
  }
}

TEST(File, ATruncatedFileFailsWhereItEnds) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(10'000));
  const File file = File::open_for_reading(path);
  std::filesystem::resize_file(path, 6'000);
  std::vector<std::byte> out(5'000);
  const IoError error = io_error_of([&] { file.read_exact(2'000, out); });
  EXPECT_EQ(error.offset_bytes(), 6'000U);
  EXPECT_EQ(error.error_number(), 0);
  EXPECT_THAT(error.what(), HasSubstr("truncated"));
}

TEST(File, CheckUnchangedSeesTruncationGrowthAndRewriting) {
  const TemporaryFolder folder;
  for (const std::uint64_t size : {50U, 150U}) {
    const std::string path = folder.write("a.bin", patterned_bytes(100));
    const File file = File::open_for_reading(path);
    EXPECT_NO_THROW(file.check_unchanged());
    std::filesystem::resize_file(path, size);
    const IoError error = io_error_of([&] { file.check_unchanged(); });
    EXPECT_EQ(error.path(), path);
    EXPECT_THAT(error.what(), HasSubstr("has " + std::to_string(size)));
  }
  const std::string path = folder.write("b.bin", patterned_bytes(100));
  const File file = File::open_for_reading(path);
  const timespec times[2] = {{.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 1}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  EXPECT_THAT(io_error_of([&] { file.check_unchanged(); }).what(),
              HasSubstr(" s before the state that was opened"));
}

/// Long enough for the file system's clock, by which it says when a file changed.
void let_its_clock_go_on() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

/// Writes other bytes of the same size, and sets the time back to what it was.
void rewrite_unnoticed(const std::string& path) {
  let_its_clock_go_on();
  struct stat before{};
  ASSERT_EQ(::stat(path.c_str(), &before), 0);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.put('x');
  }
  const timespec times[2] = {before.st_atim, before.st_mtim};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
}

TEST(File, CheckUnchangedSeesWhatWasWrittenAndItsTimeSetBack) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(100));
  const File file = File::open_for_reading(path);
  rewrite_unnoticed(path);
  EXPECT_THAT(io_error_of([&] { file.check_unchanged(); }).what(), HasSubstr("its time set back"));
}

TEST(File, AnotherNameOfAFolderAboveDoesNotExplainWhatWasWritten) {
  const TemporaryFolder folder;
  const std::string above = folder.path("above");
  std::filesystem::create_directories(above);
  const std::string path = folder.write("above/a.bin", patterned_bytes(100));
  const File file = File::open_for_reading(path);
  std::filesystem::rename(above, folder.path("elsewhere"));
  EXPECT_NO_THROW(file.check_unchanged());
  rewrite_unnoticed(folder.path("elsewhere/a.bin"));
  EXPECT_THROW(file.check_unchanged(), IoError);
}

TEST(File, AnotherWorkingDirectoryDoesNotExplainWhatWasWritten) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(100));
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path(""));
  const File file = File::open_for_reading("a.bin");
  std::filesystem::current_path(before);
  rewrite_unnoticed(path);
  EXPECT_THROW(file.check_unchanged(), IoError);
}

TEST(File, LinksAndNamesComeAndGo) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(100));
  const std::string other = folder.path("b.bin");
  const File file = File::open_for_reading(path);
  const auto then = [&](const auto& change) {
    let_its_clock_go_on();
    change();
    EXPECT_NO_THROW(file.check_unchanged());
    EXPECT_NO_THROW(file.check_unchanged());
  };
  then([&] { std::filesystem::create_hard_link(path, other); });
  then([&] { std::filesystem::remove(other); });
  then([&] { std::filesystem::rename(path, other); });
  then([&] { std::filesystem::rename(other, path); });
  then([&] { std::filesystem::create_hard_link(path, other); });
  rewrite_unnoticed(path);
  EXPECT_THROW(file.check_unchanged(), IoError);
}

TEST(File, RightsThatChangeAreNotToldFromBytesThatDo) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(100));
  const File file = File::open_for_reading(path);
  let_its_clock_go_on();
  std::filesystem::permissions(path, std::filesystem::perms::owner_read);
  EXPECT_THAT(io_error_of([&] { file.check_unchanged(); }).what(),
              HasSubstr("open the model again"));
}

TEST(File, AFileReplacedByNameStaysTheOneThatWasOpened) {
  const TemporaryFolder folder;
  const auto bytes = patterned_bytes(100);
  const std::string path = folder.write("a.bin", bytes);
  const File file = File::open_for_reading(path);
  std::filesystem::rename(folder.write("b.bin", std::vector<std::byte>(100)), path);
  EXPECT_NO_THROW(file.check_unchanged());
  std::vector<std::byte> out(100);
  file.read_exact(0, out);
  EXPECT_EQ(out, bytes);
}

TEST(File, MovesItsDescriptorAndClosesIt) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(10));
  int first = -1;
  int second = -1;
  {
    File a = File::open_for_reading(path);
    File b = File::open_for_reading(path);
    first = a.descriptor();
    second = b.descriptor();
    b = std::move(a);
    EXPECT_EQ(b.descriptor(), first);
    EXPECT_FALSE(is_open(second));
    const File c = std::move(b);
    EXPECT_EQ(c.descriptor(), first);
    EXPECT_TRUE(is_open(first));
    EXPECT_EQ(c.size_bytes(), 10U);
  }
  EXPECT_FALSE(is_open(first));
}

TEST(File, AnOpenThatFailsLeavesNoDescriptor) {
  const TemporaryFolder folder;
  const auto lowest_free = [] {
    const int descriptor = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT_EQ(::close(descriptor), 0);
    return descriptor;
  };
  const int before = lowest_free();
  EXPECT_THROW(File::open_for_reading(folder.path("")), IoError);
  EXPECT_EQ(lowest_free(), before);
}

}  // namespace
}  // namespace tensorstream
