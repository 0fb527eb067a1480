#include "io/file_opener.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/units.h"
#include "device/cuda_files.h"
#include "device/device.h"
#include "io/disk_queue.h"
#include "io/read_memory.h"
#include "platform/disk_file.h"
#include "platform/file_lease.h"
#include "platform/io_ring.h"
#include "platform/processors.h"
#include "platform/thread_team.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::string at_a_time(const DiskQueue& queue) {
  return std::to_string(queue.depth()) + " requests of " + format_size(queue.request_bytes()) +
         " at a time";
}

/// Reads from the page cache are copies: as many at a time as a GPU's link wants;
/// docs/adr/0006-weights-at-home.md.
constexpr std::size_t kLeastPageReads = 8;
constexpr std::size_t kMostPageReads = 12;
constexpr std::uint64_t kPageReadBytes = 2_MiB;

/// Threads beside the one that loads. Each verifies about 5 GB/s of frames.
constexpr std::size_t kMostHelpers = 5;

std::size_t page_reads() {
  return std::clamp<std::size_t>(usable_processors(), kLeastPageReads, kMostPageReads);
}

bool is_gpu(const Device* device) { return device != nullptr && !device->host_accessible(); }

/// Raises UnsupportedError where `device` is the host.
void check_is_gpu(const Device* device, FileBackend backend) {
  if (is_gpu(device)) return;
  const std::string name = backend == FileBackend::kCuda ? "cuda" : "gpudirect";
  throw UnsupportedError("backend=\"" + name + "\" reads files for a GPU, and the device is " +
                         (device == nullptr ? "cpu" : device->name()) + "; use backend=\"direct\"");
}

}  // namespace

ProbeResult probe(FileBackend backend, const std::shared_ptr<Device>& device) {
  try {
    const FileOpener opener(backend, device);
    return {true, opener.is_peer_to_peer(), opener.about()};
  } catch (const UnsupportedError& error) {
    return {false, false, error.what()};
  }
}

ProbeResult probe_peer_to_peer(const std::shared_ptr<Device>& device) {
  const std::string why_not = why_no_peer_to_peer(*device);
  return why_not.empty() ? probe(FileBackend::kGpudirect, device)
                         : ProbeResult{false, false, why_not};
}

FileOpener::FileOpener(FileBackend backend, const std::shared_ptr<Device>& device)
    : backend_(backend) {
  if (is_gpu(device.get())) {
    gpu_ = device;
    team_ = ThreadTeam::create(std::min<std::size_t>(usable_processors() - 1, kMostHelpers));
  }
  switch (backend) {
    case FileBackend::kMmap:
      about_ = "mappings of the page cache";
      return;
    case FileBackend::kPread:
      about_ = "pread through the page cache";
      // On a host the threads that compute read for themselves.
      if (!is_gpu(device.get())) return;
      page_queue_ = DiskQueue::create(create_thread_transfers(page_reads()), kPageReadBytes);
      about_ += " by threads, " + at_a_time(*page_queue_);
      return;
    case FileBackend::kCuda:
    case FileBackend::kGpudirect:
      check_is_gpu(device.get(), backend);
      break;
    case FileBackend::kDirect:
    case FileBackend::kIoUring:
    case FileBackend::kCached:
      break;
  }
  make_queue();
  if (backend == FileBackend::kCached) about_ = "the page cache, and " + about_;
  if (backend == FileBackend::kCuda) about_ += ", into pinned memory";
  if (backend == FileBackend::kGpudirect) make_device_queue(device);
}

void FileOpener::make_queue() {
  memory_ = ReadMemory::create();
  const std::optional<std::string> refusal = IoRing::refusal();
  if (!refusal) {
    queue_ = DiskQueue::create(create_ring_transfers(DiskQueue::kDepth));
    about_ = "O_DIRECT by io_uring, " + at_a_time(*queue_);
  } else if (backend_ == FileBackend::kIoUring) {
    throw UnsupportedError("files cannot be read by io_uring: " + *refusal +
                           "; backend=\"direct\" reads by threads where that is so");
  } else {
    queue_ = DiskQueue::create(create_thread_transfers(DiskQueue::kDepth));
    about_ = "O_DIRECT by threads, " + at_a_time(*queue_) + ": " + *refusal;
  }
}

void FileOpener::make_device_queue(const std::shared_ptr<Device>& device) {
  device_files_ = open_cuda_files(device);
  device_queue_ = create_device_queue(device_files_);
  const CufileMode mode = device_files_->mode();
  is_peer_to_peer_ = mode.is_peer_to_peer;
  device_memory_bytes_ = device_files_->largest_cache_bytes();
  about_ = "cuFile into device memory, " + at_a_time(*device_queue_) + ", " + mode.about +
           "; into host memory " + about_;
  if (device_memory_bytes_ != 0) {
    about_ += "; of the budget " + format_size(device_memory_bytes_) + " are cuFile's";
  }
}

std::unique_ptr<Reader> FileOpener::open(const std::string& path) const {
  std::unique_ptr<Reader> opened = open_reader(path);
  check_no_writer(*opened, path);
  return opened;
}

std::unique_ptr<Reader> FileOpener::open_reader(const std::string& path) const {
  if (device_queue_ != nullptr) {
    return create_gpudirect_reader(path, {device_files_, device_queue_, queue_});
  }
  if (queue_ != nullptr) {
    DiskFile file = DiskFile::open_direct(path);
    return backend_ == FileBackend::kCached ? create_cached_reader(std::move(file), queue_)
                                            : create_disk_reader(std::move(file), queue_);
  }
  return backend_ == FileBackend::kMmap ? create_mmap_reader(path, gpu_)
                                        : create_pread_reader(path, page_queue_, gpu_);
}

// Once the reader knows the file's state: what is written from then on shows.
void check_no_writer(const Reader& reader, const std::string& path) {
  const File file = File::open_for_reading(path);
  if (reader.identity() == nullptr || !file.identity().is_as(*reader.identity())) return;
  check_no_writer(file);
}

std::unique_ptr<Reader> open_file_reader(const std::string& path, FileBackend backend) {
  return FileOpener(backend).open(path);
}

}  // namespace tensorstream
