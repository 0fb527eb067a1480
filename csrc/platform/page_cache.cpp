#include "platform/page_cache.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <optional>
#include <random>

#include "base/clock.h"
#include "base/units.h"

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

/// What the kernel counts; nothing where it does not tell.
std::optional<std::uint64_t> pages_in_page_cache(const File& file, std::uint64_t offset_bytes,
                                                 std::uint64_t size_bytes) noexcept {
  // As linux/mman.h has them from Linux 6.5 on; the number is the same on all architectures.
  constexpr long kCallNumber = 451;
  struct {
    std::uint64_t offset, size;
  } range{offset_bytes, size_bytes};
  struct {
    std::uint64_t cached, dirty, written_back, evicted, recently_evicted;
  } counted{};
  if (::syscall(kCallNumber, file.descriptor(), &range, &counted, 0U) != 0) return std::nullopt;
  return counted.cached;
}

constexpr std::uint64_t kSampledBytes = 2_MiB;
constexpr std::uint64_t kMostSamples = 64;
constexpr std::uint64_t kMissingShare = 16;

}  // namespace

bool lies_in_ram(const File& file) noexcept {
  struct statfs system{};
  if (::fstatfs(file.descriptor(), &system) != 0) return false;
  return system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC;
}

bool ends_in_page_cache(const File& file, std::uint64_t offset_bytes,
                        std::uint64_t size_bytes) noexcept {
  return size_bytes == 0 ||
         (in_page_cache(file, offset_bytes) && in_page_cache(file, offset_bytes + size_bytes - 1));
}

std::uint64_t bytes_in_page_cache(const File& file, std::uint64_t offset_bytes,
                                  std::uint64_t size_bytes) noexcept {
  if (offset_bytes >= file.size_bytes()) return 0;
  const std::uint64_t size = std::min(size_bytes, file.size_bytes() - offset_bytes);
  if (size == 0) return 0;
  const auto pages = pages_in_page_cache(file, offset_bytes, size);
  if (!pages) return sampled_in_page_cache(file, offset_bytes, size);
  const std::uint64_t page = page_size_bytes();
  const std::uint64_t whole = (offset_bytes + size - 1) / page - offset_bytes / page + 1;
  if (*pages >= whole) return size;  // large pages may reach beyond the range
  return std::min(size, *pages * page);
}

// At random, and not always the same: a page that was not there is there the next time.
std::uint64_t sampled_in_page_cache(const File& file, std::uint64_t offset_bytes,
                                    std::uint64_t size_bytes) noexcept {
  if (size_bytes == 0) return 0;
  const auto now = static_cast<std::uint64_t>(Clock::now().time_since_epoch().count());
  std::minstd_rand random(static_cast<std::minstd_rand::result_type>(now));
  const std::uint64_t samples =
      std::clamp<std::uint64_t>(size_bytes / kSampledBytes, 1, kMostSamples);
  std::uint64_t found = 0;
  for (std::uint64_t i = 0; i < samples; ++i) {
    const std::uint64_t begin = size_bytes / samples * i;
    const std::uint64_t end = i + 1 == samples ? size_bytes : begin + size_bytes / samples;
    const std::uint64_t at = std::uniform_int_distribution<std::uint64_t>(begin, end - 1)(random);
    if (in_page_cache(file, offset_bytes + at)) ++found;
  }
  return found == samples ? size_bytes : size_bytes / samples * found;
}

bool mostly_in_page_cache(const File& file, std::uint64_t offset_bytes,
                          std::uint64_t size_bytes) noexcept {
  const std::uint64_t there = bytes_in_page_cache(file, offset_bytes, size_bytes);
  return size_bytes - std::min(size_bytes, there) <= size_bytes / kMissingShare;
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
