#include <algorithm>
#include <cstring>
#include <utility>

#include "base/units.h"
#include "io/disk_queue.h"
#include "io/file_opener.h"
#include "io/file_window.h"
#include "io/pinned_file.h"
#include "io/reader.h"
#include "platform/disk_file.h"
#include "platform/file.h"
#include "platform/file_lease.h"
#include "platform/mapping.h"
#include "platform/page_cache.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// What both ways to read a file have in common.
class FileReader : public Reader {
 public:
  /// `device` is what copies from the file by itself, where it can; null for none.
  explicit FileReader(const std::string& path, std::shared_ptr<Device> device = nullptr)
      : file_(File::open_for_reading(path)) {
    if (device != nullptr) pinned_ = PinnedFile::try_create(std::move(device), file_, lease_);
  }

  const std::string& name() const noexcept override { return file_.path(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return file_.size_bytes(); }
  const FileIdentity* identity() const noexcept override { return &file_.identity(); }

  PinnedFile* pinned_file() const noexcept override { return pinned_.get(); }

  bool cached(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    return ends_in_page_cache(file_, offset_bytes, size_bytes);
  }

  void prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    read_into_page_cache(file_, offset_bytes, size_bytes);
  }

 protected:
  const File& file() const noexcept { return file_; }
  std::unique_ptr<FileWindow> make_window(
      std::uint64_t offset_bytes, std::uint64_t size_bytes,
      FileWindow::Opens opens = FileWindow::Opens::kAlways) const {
    return std::make_unique<FileWindow>(shared_from_this(), file_, lease_, offset_bytes, size_bytes,
                                        opens);
  }

 private:
  const File file_;

  mutable FileLease lease_{file_};
  std::unique_ptr<PinnedFile> pinned_;  // of both
};

/// With a queue, reads that are begun go on by themselves, each by several threads: one copies a
/// few GB/s out of the page cache.
class PreadReader final : public FileReader {
 public:
  PreadReader(const std::string& path, std::shared_ptr<DiskQueue> queue,
              std::shared_ptr<Device> device)
      : FileReader(path, std::move(device)), queue_(std::move(queue)) {
    if (queue_ == nullptr) return;
    in_pieces_ = std::make_shared<const DiskFile>(DiskFile::open_buffered(path));
    in_pieces_->check_same(file());
  }

  std::unique_ptr<FileWindow> window(std::uint64_t offset_bytes,
                                     std::uint64_t size_bytes) const override {
    auto window = make_window(offset_bytes, size_bytes);
    return window->is_quick() ? std::move(window) : nullptr;
  }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    file().read_exact(offset_bytes, out);
    // Afterwards: bytes of a file that was rewritten meanwhile are not handed out either.
    file().check_unchanged();  // guard: read-unchanged
  }

  PendingRead begin_read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    if (queue_ == nullptr) return FileReader::begin_read(offset_bytes, out);
    return queue_->begin(in_pieces_, offset_bytes, out);
  }

 private:
  const std::shared_ptr<DiskQueue> queue_;     // shared with readers of other files
  std::shared_ptr<const DiskFile> in_pieces_;  // shared with reads under way; null without a queue
};

/// Pages of the mapping count as this process's memory while they are mapped, so they are let go as
/// soon as they are copied. Small reads go by pread: mapping pages for them costs more than the
/// copy, and the kernel may map 2 MiB for one byte.
class MmapReader final : public FileReader {
 public:
  MmapReader(const std::string& path, std::shared_ptr<Device> device)
      : FileReader(path, std::move(device)), mapping_(Mapping::of_file(file())) {}

  std::unique_ptr<FileWindow> window(std::uint64_t offset_bytes,
                                     std::uint64_t size_bytes) const override {
    auto window = make_window(offset_bytes, size_bytes);
    return window->works() ? std::move(window) : nullptr;
  }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    if (out.size() < kSmallBytes) {
      file().read_exact(offset_bytes, out);
    } else {
      // A page behind the end of a truncated file is a fatal signal, not an error: look first.
      file().check_unchanged();  // guard: mapping-unchanged
      copy_in_windows(offset_bytes, out);
    }
    file().check_unchanged();  // guard: copy-unchanged
  }

 private:
  static constexpr std::uint64_t kSmallBytes = 1_MiB;
  static constexpr std::uint64_t kWindowBytes = 8_MiB;
  /// The kernel maps up to this around a page that is touched, where the page cache has it.
  static constexpr std::uint64_t kMappedAroundBytes = kHugePageBytes;

  void copy_in_windows(std::uint64_t offset_bytes, std::span<std::byte> out) const {
    check_inside(offset_bytes, out.size());
    for (std::uint64_t done = 0; done < out.size();) {
      const std::uint64_t size = std::min<std::uint64_t>(kWindowBytes, out.size() - done);
      copy(offset_bytes + done, out.subspan(done, size));
      release_around(offset_bytes + done, size);
      done += size;
    }
  }

  void check_inside(std::uint64_t offset_bytes, std::uint64_t wanted_bytes) const {
    const auto end = checked_add(offset_bytes, wanted_bytes);
    if (end && *end <= size_bytes()) return;
    throw IoError("read of " + format_size(wanted_bytes) + " at offset " +
                      std::to_string(offset_bytes) + " of '" + name() + "' failed: the file has " +
                      std::to_string(size_bytes()) + " bytes",
                  name(), offset_bytes, 0);
  }

  void copy(std::uint64_t offset_bytes, std::span<std::byte> out) const {
    if (const std::error_code error = mapping_.populate(offset_bytes, out.size())) {
      throw IoError("read of " + format_size(out.size()) + " at offset " +
                        std::to_string(offset_bytes) + " of '" + name() +
                        "' through a mapping failed: " + error.message(),
                    name(), offset_bytes, error.value());
    }
    std::memcpy(out.data(), mapping_.data() + offset_bytes, out.size());
  }

  void release_around(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const std::uint64_t before = std::min(offset_bytes, kMappedAroundBytes);
    mapping_.release_pages(offset_bytes - before, before + size_bytes + kMappedAroundBytes);
  }

  const Mapping mapping_;
};

/// Asks the page cache at each read, and brings nothing there.
class CachedReader final : public FileReader {
 public:
  CachedReader(DiskFile disk_file, std::shared_ptr<DiskQueue> queue)
      : FileReader(disk_file.file().path()),
        disk_file_(std::make_shared<const DiskFile>(std::move(disk_file))),
        queue_(std::move(queue)) {
    disk_file_->check_same(file());
  }

  std::unique_ptr<FileWindow> window(std::uint64_t offset_bytes,
                                     std::uint64_t size_bytes) const override {
    auto window = make_window(offset_bytes, size_bytes, FileWindow::Opens::kWhereCached);
    return !window->is_lost() && window->is_quick() ? std::move(window) : nullptr;
  }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    begin_read(offset_bytes, out).wait();
  }

  PendingRead begin_read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    if (!mostly_in_page_cache(file(), offset_bytes, out.size())) {
      return queue_->begin(disk_file_, offset_bytes, out);
    }
    file().read_exact(offset_bytes, out);
    file().check_unchanged();  // guard: cached-read-unchanged
    return {};
  }

  std::uint64_t best_shift(std::uint64_t offset_bytes) const noexcept override {
    return offset_bytes % disk_file_->memory_alignment_bytes();
  }

  // What is not there is to stay where it is.
  bool cached(std::uint64_t /*offset_bytes*/,
              std::uint64_t /*size_bytes*/) const noexcept override {
    return true;
  }
  void prefetch(std::uint64_t /*offset_bytes*/,
                std::uint64_t /*size_bytes*/) const noexcept override {}

 private:
  const std::shared_ptr<const DiskFile> disk_file_;  // shared with reads under way
  const std::shared_ptr<DiskQueue> queue_;           // shared with readers of other files
};

}  // namespace

std::unique_ptr<Reader> create_cached_reader(DiskFile file, std::shared_ptr<DiskQueue> queue) {
  return std::make_unique<CachedReader>(std::move(file), std::move(queue));
}

std::unique_ptr<Reader> create_mmap_reader(const std::string& path,
                                           std::shared_ptr<Device> device) {
  return std::make_unique<MmapReader>(path, std::move(device));
}

std::unique_ptr<Reader> create_pread_reader(const std::string& path,
                                            std::shared_ptr<DiskQueue> queue,
                                            std::shared_ptr<Device> device) {
  return std::make_unique<PreadReader>(path, std::move(queue), std::move(device));
}

}  // namespace tensorstream
