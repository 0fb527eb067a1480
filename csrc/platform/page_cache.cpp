#include "platform/page_cache.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstddef>

#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

bool in_page_cache(const File& file, std::uint64_t offset_bytes) noexcept {
  std::byte byte{};
  iovec target{&byte, 1};
  if (::preadv2(file.descriptor(), &target, 1, static_cast<off_t>(offset_bytes), RWF_NOWAIT) == 1) {
    return true;
  }
  return errno == EOPNOTSUPP;
}

}  // namespace

bool ends_in_page_cache(const File& file, std::uint64_t offset_bytes,
                        std::uint64_t size_bytes) noexcept {
  return size_bytes == 0 ||
         (in_page_cache(file, offset_bytes) && in_page_cache(file, offset_bytes + size_bytes - 1));
}

void read_into_page_cache(const File& file, std::uint64_t offset_bytes,
                          std::uint64_t size_bytes) noexcept {
  try {
    // An error here is one of the read that follows, and unlike a touch it is no signal.
    static_cast<void>(Mapping::of_file(file).populate(offset_bytes, size_bytes));
  } catch (const IoError&) {  // no addresses left
  }
}

}  // namespace tensorstream
