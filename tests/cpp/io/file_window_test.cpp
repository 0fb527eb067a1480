#include "io/file_window.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
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

/// A window over the middle of a file, at an odd place.
class FileWindowTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!window_->open()) GTEST_SKIP() << "this file system gives no leases";
    window_->close();
  }

  bool shows_the_file() const {
    return std::memcmp(window_->data(), bytes_.data() + kOffset, kSize) == 0;
  }

  static constexpr std::uint64_t kOffset = 1_MiB + 4321;
  static constexpr std::uint64_t kSize = 5_MiB + 17;
  const TemporaryFolder folder_;
  const std::vector<std::byte> bytes_ = patterned_bytes(9_MiB);
  const std::string path_ = folder_.write("a.bin", bytes_);
  const std::shared_ptr<Reader> reader_ = open_file_reader(path_, FileBackend::kMmap);
  const std::unique_ptr<FileWindow> window_ = reader_->window(kOffset, kSize);
};

TEST_F(FileWindowTest, ShowsItsPartAndBringsAllOfIt) {
  ASSERT_TRUE(window_->open());
  window_->bring(0, kSize);
  EXPECT_GE(mapped_resident_bytes(path_), kSize);
  EXPECT_TRUE(shows_the_file());
  window_->close();
  EXPECT_EQ(mapped_resident_bytes(path_), 0U);
}

TEST_F(FileWindowTest, LiesWithinAHugePageAsInTheFile) {
  EXPECT_EQ((reinterpret_cast<std::uintptr_t>(window_->data()) - kOffset) % 2_MiB, 0U);
}

TEST_F(FileWindowTest, StaysWhereItIs) {
  const std::byte* const data = window_->data();
  ASSERT_TRUE(window_->open());
  window_->close();
  window_->open_memory();
  ASSERT_TRUE(window_->open());
  EXPECT_EQ(window_->data(), data);
  EXPECT_TRUE(shows_the_file());
}

TEST_F(FileWindowTest, WritesAreItsOwnAndGoWhenItCloses) {
  ASSERT_TRUE(window_->open());
  window_->bring(0, kSize);
  std::memset(window_->data(), 0xEE, kSize);
  std::vector<std::byte> in_file(kSize);
  reader_->read(kOffset, in_file);
  EXPECT_EQ(std::memcmp(in_file.data(), bytes_.data() + kOffset, kSize), 0);
  window_->close();
  ASSERT_TRUE(window_->open());
  EXPECT_TRUE(shows_the_file());
}

/// By who kept a view of a weight that was lent.
TEST_F(FileWindowTest, WritesWhileItIsClosedDoNotShow) {
  ASSERT_TRUE(window_->open());
  window_->close();
  std::memset(window_->data(), 0xEE, kSize);
  ASSERT_TRUE(window_->open());
  window_->bring(0, kSize);
  EXPECT_TRUE(shows_the_file());
}

TEST_F(FileWindowTest, IsNotMadeWhereItCouldNotOpen) {
  const int writer = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  EXPECT_EQ(reader_->window(kOffset, kSize), nullptr);
  ::close(writer);
  EXPECT_NE(reader_->window(kOffset, kSize), nullptr);
}

TEST_F(FileWindowTest, ShowsMemoryForBytesFromElsewhere) {
  ASSERT_TRUE(window_->open());
  window_->open_memory();
  EXPECT_EQ(window_->data()[0], std::byte{0});
  std::memset(window_->data(), 0x11, kSize);
  EXPECT_EQ(window_->data()[kSize - 1], std::byte{0x11});
  std::filesystem::resize_file(path_, 0);  // nobody's lease, and nothing of the file is touched
  EXPECT_EQ(window_->data()[kSize / 2], std::byte{0x11});
}

TEST_F(FileWindowTest, DoesNotOpenWhileSomebodyMayWrite) {
  const int writer = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  EXPECT_FALSE(window_->open());
  ::close(writer);
  EXPECT_TRUE(window_->open());
}

TEST_F(FileWindowTest, KeepsWritersAwayWhileItIsOpen) {
  ASSERT_TRUE(window_->open());
  EXPECT_LT(::open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC), 0);
  window_->close();
  const int writer = ::open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  EXPECT_GE(writer, 0);
  ::close(writer);
}

TEST_F(FileWindowTest, AFileThatChangedIsAnIoError) {
  std::filesystem::resize_file(path_, 3_MiB);
  EXPECT_THROW(static_cast<void>(window_->open()), IoError);
}

/// As somebody does who waited for longer than the kernel lets him: times can be set without a
/// wait.
TEST_F(FileWindowTest, AFileThatChangedWhileItWasOpenIsAnIoError) {
  ASSERT_TRUE(window_->open());
  EXPECT_NO_THROW(window_->check_unchanged());
  const timespec times[2] = {{.tv_sec = 1, .tv_nsec = 0}, {.tv_sec = 1, .tv_nsec = 1}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  EXPECT_THROW(window_->check_unchanged(), IoError);
  window_->close();
  EXPECT_NO_THROW(window_->check_unchanged());  // nobody used it
}

TEST_F(FileWindowTest, KnowsItsPart) {
  const auto other = open_file_reader(path_, FileBackend::kMmap);
  EXPECT_TRUE(window_->is_of(*reader_, kOffset));
  EXPECT_FALSE(window_->is_of(*reader_, kOffset + 1));
  EXPECT_FALSE(window_->is_of(*other, kOffset));
}

TEST_F(FileWindowTest, KeepsItsReaderAlive) {
  std::shared_ptr<Reader> reader = open_file_reader(path_, FileBackend::kMmap);
  const auto window = reader->window(kOffset, kSize);
  reader.reset();
  ASSERT_TRUE(window->open());
  EXPECT_EQ(std::memcmp(window->data(), bytes_.data() + kOffset, kSize), 0);
}

/// The answer depends on the page cache; small parts have no huge page in them.
TEST_F(FileWindowTest, IsNotQuickWhereItHasNoHugePage) {
  const std::shared_ptr<Reader> pread = open_file_reader(path_, FileBackend::kPread);
  EXPECT_EQ(pread->window(kOffset, 512_KiB), nullptr);
}

TEST_F(FileWindowTest, IsLeftClosedByTheQuestionWhetherItIsQuick) {
  static_cast<void>(window_->is_quick());
  EXPECT_EQ(mapped_resident_bytes(path_), 0U);
  const int writer = ::open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  EXPECT_GE(writer, 0);
  ::close(writer);
}

}  // namespace
}  // namespace tensorstream
