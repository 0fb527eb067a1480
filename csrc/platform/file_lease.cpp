#include "platform/file_lease.h"

#include <fcntl.h>

#include <csignal>

#include "platform/process_memory.h"

namespace tensorstream {

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
    const int descriptor = file_.descriptor();
    // Whoever wants to write is told to the holder by SIGIO, which would end the process: a signal
    // that does nothing instead, and then nobody to send it to.
    if (::fcntl(descriptor, F_SETSIG, SIGURG) != 0) return false;
    if (::fcntl(descriptor, F_SETLEASE, F_RDLCK) != 0) return false;  // guard: lease-on-file
    static_cast<void>(::fcntl(descriptor, F_SETOWN, 0));
  }
  ++holders_;
  return true;
}

void FileLease::give_back() noexcept {
  const MutexLock lock(mutex_);
  if (--holders_ == 0) static_cast<void>(::fcntl(file_.descriptor(), F_SETLEASE, F_UNLCK));
}

}  // namespace tensorstream
