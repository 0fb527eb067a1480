#include "platform/file_lease.h"

#include <fcntl.h>

#include <csignal>

namespace tensorstream {

FileLease::~FileLease() {
  const MutexLock lock(mutex_);
  if (holders_ > 0) static_cast<void>(::fcntl(file_.descriptor(), F_SETLEASE, F_UNLCK));
}

bool FileLease::take() noexcept {
  const MutexLock lock(mutex_);
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
