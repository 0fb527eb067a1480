#include "platform/folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <optional>

#include "made_bytes/weights.h"
#include "temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(Folder, FreeBytesAreThoseOfItsFileSystem) {
  const TemporaryFolder folder;
  const std::uint64_t free_bytes = free_disk_bytes(folder.path(""));
  const fs::space_info space = fs::space(folder.path(""));
  EXPECT_GT(free_bytes, 0U);
  EXPECT_LE(free_bytes, space.capacity);
  EXPECT_THROW(free_disk_bytes(folder.path("absent")), IoError);
}

TEST(Folder, RenameReplacesAnEmptyFolderAlone) {
  const TemporaryFolder folder;
  folder.write("from/a", patterned_bytes(1));
  fs::create_directory(folder.path("empty"));
  rename_folder(folder.path("from"), folder.path("empty"));
  EXPECT_TRUE(fs::exists(folder.path("empty/a")));
  folder.write("full/b", patterned_bytes(1));
  try {
    rename_folder(folder.path("empty"), folder.path("full"));
    FAIL() << "renamed";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), ENOTEMPTY);
  }
  EXPECT_TRUE(fs::exists(folder.path("full/b")));
  EXPECT_NO_THROW(sync_folder(folder.path("")));
  EXPECT_THROW(sync_folder(folder.path("absent")), IoError);
}

TEST(Folder, MountPointsAreToldFromFolders) {
  const TemporaryFolder folder;
  EXPECT_FALSE(is_mount_point(folder.path("")));
  EXPECT_TRUE(is_mount_point("/proc"));
  EXPECT_THROW(is_mount_point(folder.path("absent")), IoError);
}

TEST(LockedFolder, IsHeldOnceAtATime) {
  const TemporaryFolder folder;
  const std::string path = folder.path("held");
  {
    const LockedFolder first = LockedFolder::hold(path);
    EXPECT_TRUE(fs::is_directory(path));
    try {
      LockedFolder::hold(path);
      FAIL() << "held twice";
    } catch (const IoError& error) {
      EXPECT_THAT(error.what(), HasSubstr("another process"));
      EXPECT_EQ(error.path(), path);
    }
  }
  EXPECT_NO_THROW(LockedFolder::hold(path));
}

TEST(LockedFolder, IsLetGoByAProcessThatIsKilled) {
  const TemporaryFolder folder;
  const std::string path = folder.path("held");
  const pid_t child = ::fork();
  if (child == 0) {
    const LockedFolder held = LockedFolder::hold(path);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(fs::is_directory(path));
  EXPECT_NO_THROW(LockedFolder::hold(path));
}

TEST(LockedFolder, KnowsWhetherItIsStillAtItsPath) {
  const TemporaryFolder folder;
  const LockedFolder held = LockedFolder::hold(folder.path("held"));
  EXPECT_TRUE(held.is_at_its_path());
  fs::rename(folder.path("held"), folder.path("moved"));
  EXPECT_FALSE(held.is_at_its_path());
  fs::create_directory(folder.path("held"));
  EXPECT_FALSE(held.is_at_its_path());
}

TEST(LockedFolder, TakesTheRightsOfAnother) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path("other"));
  const LockedFolder held = LockedFolder::hold(folder.path("held"));
  const auto rights = [&] { return fs::status(folder.path("held")).permissions(); };
  const fs::perms before = rights();
  held.take_rights_of(folder.path("absent"), true);
  EXPECT_EQ(rights(), before);
  fs::permissions(folder.path("other"), fs::perms::group_read);
  held.take_rights_of(folder.path("other"), false);
  EXPECT_EQ(rights(), fs::perms::group_read | fs::perms::owner_all);
  held.take_rights_of(folder.path("other"), true);
  EXPECT_EQ(rights(), fs::perms::group_read);
}

TEST(LockedFolder, FollowsNoLink) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path("other"));
  fs::create_directory_symlink(folder.path("other"), folder.path("link"));
  EXPECT_THROW(LockedFolder::hold(folder.path("link")), IoError);
}

}  // namespace
}  // namespace tensorstream
