#include "io/file_opener.h"

#include <utility>

#include "base/units.h"
#include "io/disk_queue.h"
#include "io/read_memory.h"
#include "platform/disk_file.h"
#include "platform/io_ring.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::string at_a_time(const DiskQueue& queue) {
  return std::to_string(queue.depth()) + " requests of " + format_size(queue.request_bytes()) +
         " at a time";
}

}  // namespace

std::optional<std::string> refusal_of(FileBackend backend) {
  return backend == FileBackend::kIoUring ? IoRing::refusal() : std::nullopt;
}

FileOpener::FileOpener(FileBackend backend) : backend_(backend) {
  if (backend == FileBackend::kMmap) {
    about_ = "mappings of the page cache";
    return;
  }
  if (backend == FileBackend::kPread) {
    about_ = "pread through the page cache";
    return;
  }
  memory_ = ReadMemory::create();
  const std::string where = backend == FileBackend::kCached ? "the page cache, and " : "";
  const std::optional<std::string> refusal = IoRing::refusal();
  if (!refusal) {
    queue_ = DiskQueue::create(create_ring_transfers(DiskQueue::kDepth));
    about_ = where + "O_DIRECT by io_uring, " + at_a_time(*queue_);
  } else if (backend == FileBackend::kIoUring) {
    throw UnsupportedError("files cannot be read by io_uring: " + *refusal +
                           "; backend=\"direct\" reads by threads where that is so");
  } else {
    queue_ = DiskQueue::create(create_thread_transfers(DiskQueue::kDepth));
    about_ = where + "O_DIRECT by threads, " + at_a_time(*queue_) + ": " + *refusal;
  }
}

std::unique_ptr<Reader> FileOpener::open(const std::string& path) const {
  if (queue_ != nullptr) {
    DiskFile file = DiskFile::open_direct(path);
    return backend_ == FileBackend::kCached ? create_cached_reader(std::move(file), queue_)
                                            : create_disk_reader(std::move(file), queue_);
  }
  return backend_ == FileBackend::kMmap ? create_mmap_reader(path) : create_pread_reader(path);
}

std::unique_ptr<Reader> open_file_reader(const std::string& path, FileBackend backend) {
  return FileOpener(backend).open(path);
}

}  // namespace tensorstream
