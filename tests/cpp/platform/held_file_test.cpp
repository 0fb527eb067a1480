#include "platform/held_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>

#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

class HeldFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const File file = File::open_for_reading(path_);
    if (!FileLease(file).take()) GTEST_SKIP() << "this file system gives no leases";
  }

  /// 0, or the error of opening the file for writing without a wait.
  int error_of_writer() const {
    const int writer = ::open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (writer < 0) return errno;
    ::close(writer);
    return 0;
  }

  const TemporaryFolder folder_;
  const std::string path_ = folder_.write_text("a.bin", "bytes");
};

TEST_F(HeldFileTest, KeepsWritersAwayUntilItIsLetGo) {
  HeldFile held(path_);
  EXPECT_EQ(error_of_writer(), EWOULDBLOCK);
  held.let_go();
  EXPECT_FALSE(held.is_leased());
  EXPECT_EQ(error_of_writer(), 0);
  held.let_go();
}

TEST_F(HeldFileTest, EndsWithItsHolder) {
  {
    const HeldFile held(path_);
  }
  EXPECT_EQ(error_of_writer(), 0);
}

TEST_F(HeldFileTest, OneThatSomebodyWritesIsRefused) {
  const int writer = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  EXPECT_THROW(HeldFile{path_}, IoError);
  ::close(writer);
  EXPECT_TRUE(HeldFile(path_).is_leased());
}

}  // namespace
}  // namespace tensorstream
