// A folder that is filled beside its target: what becomes of it where somebody meddles with it, and
// which targets it cannot take the place of.
#include "store/staged_folder.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <system_error>

#include "packed_files.h"
#include "platform/file.h"
#include "platform/file_lease.h"
#include "platform/folder.h"
#include "store/pack.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr const char* kStaged = ".p.tensorstream-partial";

/// A staged folder with one file, which is whole.
class StagedFolderTest : public ::testing::Test {
 protected:
  StagedFolderTest() {
    write("a.bin", "bytes");
    staged_->add("a.bin", 5);
  }

  void write(const std::string& name, const std::string& text) const {
    staged_->path_of(name);
    folder_.write(std::string(kStaged) + "/" + name, text);
  }
  std::string path(const std::string& name) const { return folder_.path(name); }
  std::string staged_path() const { return path(kStaged); }
  /// Another folder of the name, with the same files in it.
  void exchange() const {
    fs::rename(staged_path(), path("moved"));
    fs::create_directory(staged_path());
    fs::create_hard_link(path("moved/a.bin"), staged_path() + "/a.bin");
  }
  void expect_refused(const std::string& what) {
    EXPECT_THAT([&] { staged_->publish(); },
                ThrowsMessage<IoError>(
                    AllOf(HasSubstr(staged_path()), HasSubstr(what), HasSubstr("start again"))));
    EXPECT_FALSE(fs::exists(path("p")));
  }

  const TemporaryFolder folder_;
  std::unique_ptr<StagedFolder> staged_ = std::make_unique<StagedFolder>(folder_.path("p"), 0);
};

TEST_F(StagedFolderTest, IsPublishedWithAllThatWasAdded) {
  write("b/c/d.bin", "more");
  staged_->add("b/c/d.bin", 4);
  staged_->publish();
  EXPECT_EQ(read_file(path("p/a.bin")) + read_file(path("p/b/c/d.bin")), "bytesmore");
}

TEST_F(StagedFolderTest, IsNotMadeAnewWhereItIsGone) {
  fs::remove_all(staged_path());
  for (const char* name : {"b.bin", "b/c.bin"}) {
    EXPECT_THAT([&] { staged_->path_of(name); },
                ThrowsMessage<IoError>(HasSubstr("was removed or renamed")));
  }
  EXPECT_FALSE(fs::exists(staged_path()));
  expect_refused("was removed or renamed");
}

TEST_F(StagedFolderTest, AnotherOfItsNameIsNeitherFilledNorPublishedNorRemoved) {
  exchange();
  EXPECT_THROW(staged_->path_of("b.bin"), IoError);
  expect_refused("was removed or renamed");
  staged_.reset();
  EXPECT_TRUE(fs::exists(staged_path() + "/a.bin"));
  EXPECT_TRUE(fs::exists(path("moved/a.bin")));
}

TEST_F(StagedFolderTest, IsNotPublishedWithoutAFileThatWasAdded) {
  fs::remove(staged_path() + "/a.bin");
  expect_refused("a.bin' was removed or renamed");
}

TEST_F(StagedFolderTest, IsNotPublishedWithAFileOfAnotherSize) {
  fs::resize_file(staged_path() + "/a.bin", 4);
  expect_refused("a.bin' was replaced");
  fs::remove(staged_path() + "/a.bin");
  fs::create_symlink(folder_.write("other.bin", "bytes"), staged_path() + "/a.bin");
  expect_refused("a.bin' was removed");
}

TEST(StagedFolder, TakesOverTheRightsOfAnEmptyFolder) {
  const TemporaryFolder folder;
  for (const mode_t rights : {0700U, 02750U, 0555U}) {
    const std::string target = folder.path(std::to_string(rights));
    fs::create_directory(target);
    ASSERT_EQ(::chmod(target.c_str(), rights), 0);
    StagedFolder staged(target, 0);
    folder.write(fs::path(staged.path_of("a.bin")).lexically_relative(folder.path("")).string(),
                 "bytes");
    staged.add("a.bin", 5);
    staged.publish();
    struct stat status{};
    ASSERT_EQ(::stat(target.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777U, rights);
    ASSERT_EQ(::chmod(target.c_str(), 0700), 0);
  }
}

/// Mounts an empty file system at `path`, in a name space of this process's own.
bool mount_at(const std::string& path) {
  const int spaces = ::geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER;
  return ::unshare(spaces) == 0 &&
         ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("none", path.c_str(), "tmpfs", 0, nullptr) == 0;
}

/// What a child found that mounted a file system at `path`.
enum class Found { kRefused, kNotRefused, kNoMount };

Found found_at_mount(const TemporaryFolder& folder, const std::function<void()>& mounted) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (!mount_at(folder.path("volume"))) std::_Exit(static_cast<int>(Found::kNoMount));
    try {
      mounted();
    } catch (const ConfigError& error) {
      const bool told = std::string(error.what()).find("mount point") != std::string::npos;
      std::_Exit(static_cast<int>(told ? Found::kRefused : Found::kNotRefused));
    } catch (...) {
    }
    std::_Exit(static_cast<int>(Found::kNotRefused));
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  return static_cast<Found>(WEXITSTATUS(status));
}

/// An empty mount point that most systems have; "" where there is none.
std::string usual_mount_point() {
  for (const char* path : {"/dev/mqueue", "/dev/shm"}) {
    std::error_code error;
    if (fs::is_directory(path, error) && fs::is_empty(path, error) && !error &&
        is_mount_point(path)) {
      return path;
    }
  }
  return "";
}

TEST(StagedFolder, AMountPointIsRefusedBeforeAnythingIsDone) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path("volume"));
  const Found found =
      found_at_mount(folder, [&] { const StagedFolder staged(folder.path("volume"), 0); });
  if (found == Found::kNoMount) {
    const std::string usual = usual_mount_point();
    if (usual.empty()) GTEST_SKIP() << "no file system may be mounted here";
    EXPECT_THROW(StagedFolder(usual, 0), ConfigError);
    return;
  }
  EXPECT_EQ(found, Found::kRefused);
}

TEST(StagedFolder, TheWorkingDirectoryIsRefused) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path("here"));
  const fs::path before = fs::current_path();
  fs::current_path(folder.path("here"));
  for (const std::string& target : {std::string("."), folder.path("here")}) {
    EXPECT_THAT([&] { StagedFolder(target, 0); },
                ThrowsMessage<ConfigError>(HasSubstr("is the working directory")));
  }
  EXPECT_NO_THROW(StagedFolder("in it", 0));
  fs::current_path(before);
}

TEST(StagedFolder, ANameMayBeAsLongAsFileSystemsHaveIt) {
  const TemporaryFolder folder;
  std::string letters = "\u00e9";
  while (letters.size() < 254) letters += "\u00e9";
  for (const std::string& name :
       {std::string(232, 'n'), std::string(233, 'n'), std::string(234, 'n'), std::string(254, 'n'),
        std::string(255, 'n'), letters, "a" + letters}) {
    StagedFolder staged(folder.path(name), 0);
    folder.write(fs::path(staged.path_of("a.bin")).lexically_relative(folder.path("")).string(),
                 "bytes");
    staged.add("a.bin", 5);
    staged.publish();
    EXPECT_TRUE(fs::exists(folder.path(name + "/a.bin"))) << name;
  }
}

TEST(StagedFolder, LongNamesThatBeginAlikeAreFilledSideBySide) {
  const TemporaryFolder folder;
  const std::string name(254, 'n');
  const StagedFolder one(folder.path(name + "1"), 0);
  const StagedFolder other(folder.path(name + "2"), 0);
  EXPECT_NE(one.path_of("a.bin"), other.path_of("a.bin"));
  EXPECT_THROW(StagedFolder(folder.path(name + "1"), 0), IoError);  // it is being filled
}

TEST(StagedFolder, ANameThatIsTooLongIsRefusedBeforeAnythingIsMade) {
  const TemporaryFolder folder;
  EXPECT_THAT([&] { StagedFolder(folder.path(std::string(256, 'n')), 0); },
              ThrowsMessage<IoError>(HasSubstr("File name too long")));
  EXPECT_TRUE(fs::is_empty(folder.path("")));
}

/// Whether the file system of tests tells of writers.
bool has_leases(const std::string& path) {
  const File file = File::open_for_reading(path);
  FileLease lease(file);
  if (!lease.take()) return false;
  lease.give_back();
  return true;
}

/// A source that somebody opens for writing.
class PackedWhileWritten : public ::testing::Test {
 protected:
  PackedWhileWritten() {
    folder_.write("src/model.safetensors", mixed_file());
    folder_.write("src/config.json", "{}");
  }
  void SetUp() override {
    if (!has_leases(folder_.path("src/config.json"))) {
      GTEST_SKIP() << "this file system gives no leases";
    }
  }
  void TearDown() override { close_writer(); }

  void open_writer(const std::string& name) {
    if (writer_ < 0) writer_ = ::open(folder_.path(name).c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_GE(writer_, 0);
  }
  void close_writer() {
    if (writer_ >= 0) ::close(writer_);
    writer_ = -1;
  }
  void pack(const ProgressSink& sink = {}) const {
    pack_checkpoint(folder_.path("src"), folder_.path("p"), kTwoThreads, sink);
  }
  /// The bytes that were done when the pack was refused.
  std::uint64_t done_when_refused(const std::string& name, const ProgressSink& sink = {}) const {
    std::uint64_t done_bytes = 0;
    EXPECT_THAT(
        [&] {
          pack([&](std::uint64_t done, std::uint64_t all) {
            done_bytes = done;
            if (sink) sink(done, all);
          });
        },
        ThrowsMessage<IoError>(
            AllOf(HasSubstr(folder_.path(name)), HasSubstr("is open for writing"))));
    EXPECT_FALSE(fs::exists(folder_.path("p")));
    EXPECT_FALSE(fs::exists(folder_.path(kStaged)));
    return done_bytes;
  }

  const TemporaryFolder folder_;
  int writer_ = -1;
};

TEST_F(PackedWhileWritten, AShardThatIsOpenForWritingIsRefusedBeforeAnythingIsRead) {
  open_writer("src/model.safetensors");
  EXPECT_EQ(done_when_refused("src/model.safetensors"), 0U);
  close_writer();
  EXPECT_NO_THROW(pack());
}

TEST_F(PackedWhileWritten, AShardThatIsOpenedForWritingMeanwhileIsRefused) {
  const ProgressSink sink = [&](std::uint64_t, std::uint64_t) {
    open_writer("src/model.safetensors");
  };
  EXPECT_GT(done_when_refused("src/model.safetensors", sink), 0U);
}

TEST_F(PackedWhileWritten, ACarriedFileThatIsOpenForWritingIsRefused) {
  open_writer("src/config.json");
  done_when_refused("src/config.json");
}

}  // namespace
}  // namespace tensorstream::testing
