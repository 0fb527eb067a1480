// FileOpener: readers of files, in the way that was asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "io/reader.h"

namespace tensorstream {

class CudaFiles;
class Device;
class DiskFile;
class DiskQueue;
class ReadMemory;
class ThreadTeam;

/// How files are read.
enum class FileBackend {
  /// Through a mapping of the page cache; pages are let go once they are copied. A file that is
  /// truncated during the copy is a fatal signal: for files that nobody writes to. Its windows are
  /// used however the page cache has them.
  kMmap,
  /// By pread into the target.
  kPread,
  /// Past the page cache, by io_uring, or by threads of pread where this process has none.
  kDirect,
  /// Past the page cache by io_uring alone.
  kIoUring,
  /// What the page cache has, from there, and as kPread uses it; the rest past it, as kDirect, so
  /// that nothing comes there. Asked at each read.
  kCached,
  /// As kDirect, into pinned memory that a GPU copies from.
  kCuda,
  /// By cuFile straight into the memory of a GPU, from peer to peer or, where that is not to be
  /// had, through host memory of cuFile's (compatibility mode). What goes to host memory, as
  /// kDirect.
  kGpudirect,
};

/// What can be had of a backend.
struct ProbeResult {
  bool is_usable = false;
  /// Of kGpudirect: whether it is proven that the disk writes to device memory itself.
  bool is_peer_to_peer = false;
  /// How files are read, or why they cannot be, for people.
  std::string reason;
};

/// Whether files can be read so for a model on `device` (null: the host). A file system may still
/// refuse a file.
ProbeResult probe(FileBackend backend, const std::shared_ptr<Device>& device);
/// As probe() of kGpudirect, for a choice that takes it from peer to peer alone: cuFile is not
/// opened where there is no nvidia-fs.
ProbeResult probe_peer_to_peer(const std::shared_ptr<Device>& device);

/// Opens readers of one model's files, which share what reads them. Thread-safe.
class FileOpener {
 public:
  /// For a model on `device` (null: the host), which the readers keep. Raises UnsupportedError with
  /// the reason where files cannot be read so in this process, or for that device.
  explicit FileOpener(FileBackend backend, const std::shared_ptr<Device>& device = nullptr);

  /// A reader of the file at `path`. Raises IoError, also where somebody has the file open for
  /// writing, and UnsupportedError where its file system refuses to be read so.
  std::unique_ptr<Reader> open(const std::string& path) const;
  /// How files are read, for people: "O_DIRECT by io_uring, 8 requests of 4.00 MiB at a time".
  const std::string& about() const noexcept { return about_; }

  /// For readers of other formats: what reads past the page cache, and memory for what is decoded;
  /// both null where files are read through it.
  FileBackend backend() const noexcept { return backend_; }
  /// Whether it is proven that files are read from peer to peer.
  bool is_peer_to_peer() const noexcept { return is_peer_to_peer_; }
  /// The most that is taken of the GPU's memory to read, beside the places that are read to.
  std::uint64_t device_memory_bytes() const noexcept { return device_memory_bytes_; }
  const std::shared_ptr<DiskQueue>& queue() const noexcept { return queue_; }
  const std::shared_ptr<ReadMemory>& memory() const noexcept { return memory_; }
  /// What reads through the page cache for a GPU, and who shares the work on what is read for one;
  /// null elsewhere.
  const std::shared_ptr<DiskQueue>& page_queue() const noexcept { return page_queue_; }
  const std::shared_ptr<ThreadTeam>& team() const noexcept { return team_; }

 private:
  std::unique_ptr<Reader> open_reader(const std::string& path) const;
  void make_queue();
  void make_device_queue(const std::shared_ptr<Device>& device);

  const FileBackend backend_;
  std::shared_ptr<Device> gpu_;              // shared with the readers; null for the host
  std::shared_ptr<DiskQueue> queue_;         // likewise
  std::shared_ptr<DiskQueue> page_queue_;    // likewise, through the page cache
  std::shared_ptr<ReadMemory> memory_;       // likewise
  std::shared_ptr<ThreadTeam> team_;         // likewise
  std::shared_ptr<CudaFiles> device_files_;  // likewise
  std::shared_ptr<DiskQueue> device_queue_;  // likewise, into device memory
  bool is_peer_to_peer_ = false;
  std::uint64_t device_memory_bytes_ = 0;
  std::string about_;
};

/// Raises IoError where somebody has the file that `reader` reads, at `path`, open for writing.
void check_no_writer(const Reader& reader, const std::string& path);

/// One reader with all that it needs, as FileOpener::open(). Raises as that and its constructor do.
std::unique_ptr<Reader> open_file_reader(const std::string& path, FileBackend backend);

/// One way each to read a file. Raise IoError. A file in RAM is registered with `device`, where
/// there is one, which then copies from it (PinnedFile).
std::unique_ptr<Reader> create_mmap_reader(const std::string& path,
                                           std::shared_ptr<Device> device = nullptr);
/// What is begun is read by `queue`, where there is one; raises IoError, too, where another file is
/// there when it is opened a second time for that.
std::unique_ptr<Reader> create_pread_reader(const std::string& path,
                                            std::shared_ptr<DiskQueue> queue = nullptr,
                                            std::shared_ptr<Device> device = nullptr);
/// Opens the file a second time, to be read through the page cache. Raises IoError, too, where
/// another is there by then.
std::unique_ptr<Reader> create_cached_reader(DiskFile file, std::shared_ptr<DiskQueue> queue);
/// Of a file that `queue` reads.
std::unique_ptr<Reader> create_disk_reader(DiskFile file, std::shared_ptr<DiskQueue> queue);

/// What a gpudirect reader shares with those of other files.
struct DeviceQueues {
  std::shared_ptr<CudaFiles> files;
  std::shared_ptr<DiskQueue> to_device;
  std::shared_ptr<DiskQueue> to_host;
};
/// The queue that reads files of `files` into device memory.
std::shared_ptr<DiskQueue> create_device_queue(const std::shared_ptr<CudaFiles>& files);
/// Raises UnsupportedError, too, where cuFile refuses the file.
std::unique_ptr<Reader> create_gpudirect_reader(const std::string& path, DeviceQueues queues);

}  // namespace tensorstream
