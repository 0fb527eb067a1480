#include "platform/page_cache.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

#include "base/units.h"

namespace tensorstream {
namespace {

/// What a fault in a mapping that asked for huge pages reads, whatever the disk's read-ahead is.
constexpr std::uint64_t kWindowBytes = 2_MiB;

bool in_page_cache(const File& file, std::uint64_t offset_bytes) noexcept {
  std::byte byte{};
  iovec target{&byte, 1};
  if (::preadv2(file.descriptor(), &target, 1, static_cast<off_t>(offset_bytes), RWF_NOWAIT) == 1) {
    return true;
  }
  return errno == EOPNOTSUPP;
}

/// `offset_bytes` is a multiple of the window.
void read_window(const File& file, std::uint64_t offset_bytes, std::uint64_t size_bytes) noexcept {
  void* const pages = ::mmap(nullptr, size_bytes, PROT_READ, MAP_SHARED, file.descriptor(),
                             static_cast<off_t>(offset_bytes));
  if (pages == MAP_FAILED) return;
  static_cast<void>(::madvise(pages, size_bytes, MADV_HUGEPAGE));
  // An error here is one of the read that follows, and unlike a touch it is no signal.
  static_cast<void>(::madvise(pages, size_bytes, MADV_POPULATE_READ));
  ::munmap(pages, size_bytes);
}

}  // namespace

bool ends_in_page_cache(const File& file, std::uint64_t offset_bytes,
                        std::uint64_t size_bytes) noexcept {
  return size_bytes == 0 ||
         (in_page_cache(file, offset_bytes) && in_page_cache(file, offset_bytes + size_bytes - 1));
}

void read_into_page_cache(const File& file, std::uint64_t offset_bytes,
                          std::uint64_t size_bytes) noexcept {
  const std::uint64_t begin = std::min(offset_bytes, file.size_bytes());
  const std::uint64_t end = begin + std::min(size_bytes, file.size_bytes() - begin);
  for (std::uint64_t window = begin / kWindowBytes * kWindowBytes; window < end;
       window += kWindowBytes) {
    read_window(file, window, std::min(kWindowBytes, end - window));
  }
}

}  // namespace tensorstream
