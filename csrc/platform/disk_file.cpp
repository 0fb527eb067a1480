#include "platform/disk_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "platform/mapping.h"
#include "platform/retry.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

struct Alignment {
  std::uint64_t block_bytes = kLargestBlockBytes;
  std::uint64_t memory_bytes = kLargestBlockBytes;
};

/// What the file system says that it wants (Linux 6.1); what every one takes where it does not say.
Alignment alignment_of(const File& file) {
  Alignment alignment;
#ifdef STATX_DIOALIGN
  struct statx status{};
  const bool told = ::statx(file.descriptor(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
                    (status.stx_mask & STATX_DIOALIGN) != 0 && status.stx_dio_offset_align != 0 &&
                    status.stx_dio_mem_align != 0;
  if (told) {
    // A file of blocks of one byte would pass for a buffered one.
    alignment.block_bytes =
        std::max<std::uint64_t>(needed_alignment(status.stx_dio_offset_align), 512);
    alignment.memory_bytes = needed_alignment(status.stx_dio_mem_align);
  }
#else
  static_cast<void>(file);
#endif
  return alignment;
}

/// The errno with which the file refuses to be read past the page cache; 0 where it does not.
int refusal_of(const File& file) {
  const int flags = ::fcntl(file.descriptor(), F_GETFL);
  // O_NONBLOCK was for opening: cuFile refuses descriptors that have it.
  const int wanted = (flags & ~O_NONBLOCK) | O_DIRECT;
  if (flags < 0 || ::fcntl(file.descriptor(), F_SETFL, wanted) != 0) return errno;
  if (file.size_bytes() == 0) return 0;
  // Some file systems take the flag and refuse the reads.
  const Mapping block = Mapping::anonymous(kLargestBlockBytes, HugePages::kNever);
  const auto count = retry_interrupted(
      [&] { return ::pread(file.descriptor(), block.data(), block.size_bytes(), 0); });
  return count < 0 ? errno : 0;
}

}  // namespace

DiskFile DiskFile::open_direct(const std::string& path) {
  File file = File::open_for_reading(path);
  const int refusal = refusal_of(file);
  if (refusal == EIO) {
    throw IoError("read of '" + path + "' failed: " + std::generic_category().message(refusal),
                  path, 0, refusal);
  }
  if (refusal != 0) {
    throw UnsupportedError("'" + path + "' cannot be read past the page cache: its file system " +
                           "refuses O_DIRECT (" + std::generic_category().message(refusal) +
                           "); use backend=\"auto\", or copy the file to a disk");
  }
  const Alignment alignment = alignment_of(file);
  return {std::move(file), alignment.block_bytes, alignment.memory_bytes};
}

void DiskFile::check_same(const File& other) const {
  if (file_.identity() != other.identity()) {  // guard: one-file-opened-twice
    throw IoError("'" + file_.path() + "' changed while it was opened; open the model again",
                  file_.path(), 0, 0);
  }
}

DiskFile DiskFile::open_for_device(const std::string& path) {
  return {std::move(open_direct(path).file_), 1, 1};
}

DiskFile DiskFile::open_buffered(const std::string& path) {
  return {File::open_for_reading(path), 1, 1};
}

}  // namespace tensorstream
