#include "platform/file_lease.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <thread>

#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// A file, its lease, and what others meet who want to write to it.
class FileLeaseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!lease_.take()) GTEST_SKIP() << "this file system gives no leases";
    lease_.give_back();
  }

  /// 0, or the error of opening the file for writing without a wait.
  int error_of_writer() const {
    const int writer = ::open(file_.path().c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (writer < 0) return errno;
    ::close(writer);
    return 0;
  }

  const TemporaryFolder folder_;
  const File file_ = File::open_for_reading(folder_.write_text("a.bin", "bytes"));
  FileLease lease_{file_};
};

TEST_F(FileLeaseTest, KeepsWritersAwayUntilItIsGivenBack) {
  ASSERT_TRUE(lease_.take());
  EXPECT_EQ(error_of_writer(), EWOULDBLOCK);
  lease_.give_back();
  EXPECT_EQ(error_of_writer(), 0);
}

TEST_F(FileLeaseTest, Nests) {
  ASSERT_TRUE(lease_.take());
  ASSERT_TRUE(lease_.take());
  lease_.give_back();
  EXPECT_EQ(error_of_writer(), EWOULDBLOCK);
  lease_.give_back();
  EXPECT_EQ(error_of_writer(), 0);
}

TEST_F(FileLeaseTest, AWriterIsToldOf) {
  EXPECT_NO_THROW(check_no_writer(file_));
  const int writer = ::open(file_.path().c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  EXPECT_THROW(check_no_writer(file_), IoError);
  void* const mapped = ::mmap(nullptr, 5, PROT_READ | PROT_WRITE, MAP_SHARED, writer, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  ::close(writer);
  EXPECT_THROW(check_no_writer(file_), IoError);  // it may write still
  ::munmap(mapped, 5);
  EXPECT_NO_THROW(check_no_writer(file_));
  EXPECT_EQ(error_of_writer(), 0);
}

TEST_F(FileLeaseTest, ALeaseIsNoWriter) {
  ASSERT_TRUE(lease_.take());
  const File other = File::open_for_reading(file_.path());
  EXPECT_NO_THROW(check_no_writer(other));
  EXPECT_EQ(error_of_writer(), EWOULDBLOCK);
  lease_.give_back();
}

TEST_F(FileLeaseTest, IsRefusedWhileSomebodyMayWrite) {
  const int writer = ::open(file_.path().c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  EXPECT_FALSE(lease_.take());
  ::close(writer);
  EXPECT_TRUE(lease_.take());
  lease_.give_back();
}

TEST_F(FileLeaseTest, TwoHoldersOfOneFileShareIt) {
  const File again = File::open_for_reading(file_.path());
  FileLease other(again);
  ASSERT_TRUE(lease_.take());
  ASSERT_TRUE(other.take());
  lease_.give_back();
  EXPECT_EQ(error_of_writer(), EWOULDBLOCK);
  other.give_back();
  EXPECT_EQ(error_of_writer(), 0);
}

TEST_F(FileLeaseTest, EndsWithItsHolder) {
  {
    FileLease short_lived(file_);
    ASSERT_TRUE(short_lived.take());
  }
  EXPECT_EQ(error_of_writer(), 0);
}

/// The kernel tells the holder by a signal, which would end a process that did not choose another.
TEST_F(FileLeaseTest, AWriterThatWaitsGoesOnAndTheHolderLives) {
  ASSERT_TRUE(lease_.take());
  std::atomic<bool> opened = false;
  std::jthread writer([&] {
    const int descriptor = ::open(file_.path().c_str(), O_WRONLY | O_CLOEXEC);
    opened = descriptor >= 0;
    ::close(descriptor);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(opened);
  lease_.give_back();
  writer.join();
  EXPECT_TRUE(opened);
}

/// Holders that overlap, each taken before the one before it is given back, as loads are.
TEST_F(FileLeaseTest, IsNotTakenAgainWhileAWriterWaits) {
  ASSERT_TRUE(lease_.take());
  EXPECT_EQ(error_of_writer(), EWOULDBLOCK);  // which asks for it, as one that waits does
  EXPECT_FALSE(lease_.take());
  lease_.give_back();
  EXPECT_EQ(error_of_writer(), 0);
  EXPECT_TRUE(lease_.take());
  lease_.give_back();
}

TEST_F(FileLeaseTest, AForkedChildLeavesItToItsParent) {
  auto held = std::make_unique<FileLease>(file_);
  ASSERT_TRUE(held->take());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    held = nullptr;
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(error_of_writer(), EWOULDBLOCK);
}

}  // namespace
}  // namespace tensorstream
