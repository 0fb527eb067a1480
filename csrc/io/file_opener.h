// FileOpener: readers of files, in the way that was asked for.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "io/reader.h"

namespace tensorstream {

class DiskFile;
class DiskQueue;
class ReadMemory;

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
};

/// Why files cannot be read so in this process, for people; nothing where they can. A file system
/// may still refuse a file.
std::optional<std::string> refusal_of(FileBackend backend);

/// Opens readers of one model's files, which share what reads them. Thread-safe.
class FileOpener {
 public:
  /// Raises UnsupportedError with the reason where files cannot be read so in this process.
  explicit FileOpener(FileBackend backend);

  /// A reader of the file at `path`. Raises IoError, and UnsupportedError where its file system
  /// refuses to be read so.
  std::unique_ptr<Reader> open(const std::string& path) const;
  /// How files are read, for people: "O_DIRECT by io_uring, 8 requests of 4.00 MiB at a time".
  const std::string& about() const noexcept { return about_; }

  /// For readers of other formats: what reads past the page cache, and memory for what is decoded;
  /// both null where files are read through it.
  FileBackend backend() const noexcept { return backend_; }
  const std::shared_ptr<DiskQueue>& queue() const noexcept { return queue_; }
  const std::shared_ptr<ReadMemory>& memory() const noexcept { return memory_; }

 private:
  const FileBackend backend_;
  std::shared_ptr<DiskQueue> queue_;    // shared with the readers
  std::shared_ptr<ReadMemory> memory_;  // likewise
  std::string about_;
};

/// One reader with all that it needs, as FileOpener::open(). Raises as that and its constructor do.
std::unique_ptr<Reader> open_file_reader(const std::string& path, FileBackend backend);

/// One way each to read a file. Raise IoError.
std::unique_ptr<Reader> create_mmap_reader(const std::string& path);
std::unique_ptr<Reader> create_pread_reader(const std::string& path);
/// Opens the file a second time, to be read through the page cache. Raises IoError, too, where
/// another is there by then.
std::unique_ptr<Reader> create_cached_reader(DiskFile file, std::shared_ptr<DiskQueue> queue);
/// Of a file that `queue` reads.
std::unique_ptr<Reader> create_disk_reader(DiskFile file, std::shared_ptr<DiskQueue> queue);

}  // namespace tensorstream
