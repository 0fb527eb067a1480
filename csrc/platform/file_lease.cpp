#include "platform/file_lease.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>

#include "platform/process_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Not in the kernel's header.
constexpr unsigned long kXfsMagic = 0x58465342;
constexpr unsigned long kZfsMagic = 0x2FC12FC1;

/// Where a lease that is refused means a writer. On a network's file system it says nothing.
bool is_local(const File& file) noexcept {
  constexpr std::array<unsigned long, 8> kLocal = {
      EXT4_SUPER_MAGIC, kXfsMagic, BTRFS_SUPER_MAGIC,     TMPFS_MAGIC,
      RAMFS_MAGIC,      kZfsMagic, OVERLAYFS_SUPER_MAGIC, F2FS_SUPER_MAGIC};
  struct statfs system{};
  if (::fstatfs(file.descriptor(), &system) != 0) return false;
  return std::ranges::find(kLocal, static_cast<unsigned long>(system.f_type)) != kLocal.end();
}

/// A kernel's read lease; 0, or why it is refused. Whoever wants to write is told to the holder by
/// SIGIO, which would end the process: a signal that does nothing instead, and then nobody to send
/// it to.
int take_lease(int descriptor) noexcept {
  if (::fcntl(descriptor, F_SETSIG, SIGURG) != 0) return errno;
  if (::fcntl(descriptor, F_SETLEASE, F_RDLCK) != 0) return errno;
  static_cast<void>(::fcntl(descriptor, F_SETOWN, 0));
  return 0;
}

}  // namespace

void check_no_writer(const File& file) {
  const int refusal = take_lease(file.descriptor());
  if (refusal == 0) static_cast<void>(::fcntl(file.descriptor(), F_SETLEASE, F_UNLCK));
  if (refusal != EAGAIN || !is_local(file)) return;
  // guard: no-writer
  throw IoError(
      "'" + file.path() +
          "' is open for writing, in this process or another (`fuser` shows which): by a "
          "file object that was not closed, np.memmap (whose usual mode is r+), a program "
          "that is writing it, or a child that was forked meanwhile. A model that streams "
          "from it could get bytes of two states: close it there, or wait until it is "
          "written, and open the model again",
      file.path(), 0, 0);
  // end guard
}

FileLease::FileLease(const File& file) : file_(file), process_(process_id()) {}

FileLease::~FileLease() {
  // A forked child has its parent's descriptor, and with it the lease that the parent goes by.
  if (process_ != process_id()) return;  // guard: lease-of-the-parent
  const MutexLock lock(mutex_);
  if (holders_ > 0) static_cast<void>(::fcntl(file_.descriptor(), F_SETLEASE, F_UNLCK));
}

bool FileLease::take() noexcept {
  const MutexLock lock(mutex_);
  const bool asked_for = holders_ > 0 && ::fcntl(file_.descriptor(), F_GETLEASE) != F_RDLCK;
  if (asked_for) return false;  // guard: lease-asked-for
  if (holders_ == 0) {
    if (take_lease(file_.descriptor()) != 0) return false;  // guard: lease-on-file
  }
  ++holders_;
  return true;
}

void FileLease::give_back() noexcept {
  const MutexLock lock(mutex_);
  if (--holders_ == 0) static_cast<void>(::fcntl(file_.descriptor(), F_SETLEASE, F_UNLCK));
}

}  // namespace tensorstream
