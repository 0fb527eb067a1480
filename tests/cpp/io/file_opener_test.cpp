#include "io/file_opener.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <functional>
#include <string>
#include <vector>

#include "base/units.h"
#include "io/device_reads.h"
#include "made_bytes/weights.h"
#include "platform/dropped_pages.h"
#include "platform/io_ring.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

/// From now on io_uring_setup fails in this process as in a container that forbids it.
bool forbid_io_uring() {
  std::array<sock_filter, 4> filter = {
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{filter.size(), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/// The exit code of a child that runs `check`, 0 where that is true.
int in_child(const std::function<bool()>& check) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      ::_exit(check() ? 0 : 1);
    } catch (const std::exception& error) {
      static_cast<void>(::write(STDERR_FILENO, error.what(), std::string(error.what()).size()));
      ::_exit(2);
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(FileOpener, WhereIoUringIsForbiddenThreadsReadAndTheReasonIsTold) {
  const TemporaryFolder folder;
  const auto bytes = patterned_bytes(100'000);
  const std::string path = folder.write("a.bin", bytes);
  EXPECT_EQ(in_child([&] {
              if (!forbid_io_uring()) return false;
              const FileOpener opener(FileBackend::kDirect);
              std::vector<std::byte> out(bytes.size());
              opener.open(path)->read(0, out);
              return out == bytes && opener.about().starts_with("O_DIRECT by threads") &&
                     opener.about().find("io_uring") != std::string::npos;
            }),
            0);
}

TEST(FileOpener, WhereIoUringIsForbiddenAndAskedForByNameThatIsAnErrorWithTheReason) {
  EXPECT_EQ(in_child([&] {
              if (!forbid_io_uring()) return false;
              if (probe(FileBackend::kIoUring, nullptr).is_usable) return false;
              try {
                const FileOpener opener(FileBackend::kIoUring);
              } catch (const UnsupportedError& error) {
                return std::string(error.what()).find(*IoRing::refusal()) != std::string::npos;
              }
              return false;
            }),
            0);
}

TEST(FileOpener, SaysHowItReads) {
  if (const auto refusal = IoRing::refusal()) GTEST_SKIP() << *refusal;
  EXPECT_TRUE(probe(FileBackend::kIoUring, nullptr).is_usable);
  EXPECT_THAT(FileOpener(FileBackend::kIoUring).about(), HasSubstr("O_DIRECT by io_uring"));
  EXPECT_THAT(FileOpener(FileBackend::kDirect).about(), HasSubstr("O_DIRECT by io_uring"));
  EXPECT_THAT(FileOpener(FileBackend::kPread).about(), HasSubstr("pread"));
  EXPECT_THAT(FileOpener(FileBackend::kMmap).about(), HasSubstr("mapping"));
}

TEST(FileOpener, PagesAreReadByThreadsForAGpuAlone) {
  EXPECT_THAT(FileOpener(FileBackend::kPread, reading_gpu()).about(),
              MatchesRegex(".* by threads, ([89]|1[0-2]) requests of 2.00 MiB at a time"));
  EXPECT_THAT(FileOpener(FileBackend::kPread).about(), Not(HasSubstr("threads")));
}

// sysfs has files of one page, and no O_DIRECT.
TEST(FileOpener, AFileSystemThatRefusesIsAnErrorWithTheReason) {
  const std::string path = "/sys/kernel/mm/transparent_hugepage/enabled";
  if (::access(path.c_str(), R_OK) != 0) GTEST_SKIP() << "no " << path;
  try {
    FileOpener(FileBackend::kDirect).open(path);
    FAIL() << "no error";
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), HasSubstr(path));
    EXPECT_THAT(error.what(), HasSubstr("refuses O_DIRECT"));
  }
}

TEST(FileOpener, AForkedChildGetsAnErrorAndEnds) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(100'000));
  auto reader = open_file_reader(path, FileBackend::kDirect);
  std::vector<std::byte> out(100);
  reader->read(0, out);
  EXPECT_EQ(in_child([&] {
              ::alarm(20);
              try {
                reader->read(0, out);
                return false;
              } catch (const UnsupportedError& error) {
                reader.reset();  // and its queue
                return std::string(error.what()).find("fork") != std::string::npos;
              }
            }),
            0);
  EXPECT_NO_THROW(reader->read(0, out));
}

// The page cache is left alone: a model larger than RAM does not drive out what others use.
TEST(FileOpener, DirectReadsLeaveThePageCacheAsItIs) {
  const TemporaryFolder folder;
  const auto bytes = patterned_bytes(8_MiB);
  const std::string path = folder.write("a.bin", bytes);
  if (!drop_from_page_cache(path)) GTEST_SKIP() << "this file system keeps its pages";
  std::vector<std::byte> out(bytes.size());
  open_file_reader(path, FileBackend::kDirect)->read(5, std::span(out).subspan(5));
  EXPECT_TRUE(std::equal(out.begin() + 5, out.end(), bytes.begin() + 5));
  EXPECT_FALSE(create_pread_reader(path)->cached(1_MiB, 4_MiB));
}

}  // namespace
}  // namespace tensorstream
