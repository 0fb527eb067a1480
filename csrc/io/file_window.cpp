#include "io/file_window.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/units.h"
#include "io/reader.h"
#include "platform/page_cache.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// What one core copies a second at most; a window whose pages come no quicker is not worth it.
constexpr double kQuickBytesPerSecond = 25e9;
constexpr int kTries = 3;

}  // namespace

FileWindow::FileWindow(std::shared_ptr<const Reader> owner, const File& file, FileLease& lease,
                       std::uint64_t offset_bytes, std::uint64_t size_bytes, Opens opens)
    : owner_(std::move(owner)),
      file_(file),
      lease_(lease),
      offset_bytes_(offset_bytes),
      size_bytes_(size_bytes),
      opens_(opens),
      first_page_bytes_(offset_bytes / page_size_bytes() * page_size_bytes()),
      mapped_bytes_(align_up(offset_bytes - first_page_bytes_ + size_bytes, page_size_bytes())),
      mapping_(Mapping::reserved(mapped_bytes_ + kHugePageBytes)) {
  const auto address = reinterpret_cast<std::uintptr_t>(mapping_.data());
  start_bytes_ = (first_page_bytes_ - address) % kHugePageBytes;
  data_ = mapping_.data() + start_bytes_ + (offset_bytes - first_page_bytes_);
}

bool FileWindow::is_of(const Reader& reader, std::uint64_t offset_bytes) const noexcept {
  return owner_.get() == &reader && offset_bytes_ == offset_bytes;
}

bool FileWindow::is_lost() const noexcept {
  return opens_ == Opens::kWhereCached && !mostly_in_page_cache(file_, offset_bytes_, size_bytes_);
}

bool FileWindow::open() {
  if (leased_) return true;
  if (!lease_.take()) return false;
  leased_ = true;
  file_.check_unchanged();  // guard: window-unchanged
  if (shown_ == Shown::kFile) {
    // Who kept a view of what was lent may have written to it since.
    mapping_.release_pages(start_bytes_, mapped_bytes_);  // guard: window-written-while-closed
  } else {
    mapping_.show_file(start_bytes_, mapped_bytes_, file_, first_page_bytes_);
    shown_ = Shown::kFile;
  }
  return true;
}

void FileWindow::open_memory() {
  close();  // what was written since the last use goes with it
  if (shown_ != Shown::kMemory) mapping_.show_memory(start_bytes_, mapped_bytes_);
  shown_ = Shown::kMemory;
}

void FileWindow::bring(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
  const std::uint64_t start = static_cast<std::uint64_t>(data_ - mapping_.data());
  const std::error_code error = mapping_.populate(start + offset_bytes, size_bytes);
  if (!error) return;
  throw IoError("read of " + format_size(size_bytes) + " at offset " +
                    std::to_string(offset_bytes_ + offset_bytes) + " of '" + file_.path() +
                    "' through a mapping failed: " + error.message(),
                file_.path(), offset_bytes_ + offset_bytes, error.value());
}

void FileWindow::check_unchanged() const {
  if (leased_) file_.check_unchanged();  // guard: window-unchanged-in-use
}

void FileWindow::close() noexcept {
  if (shown_ != Shown::kNothing) mapping_.release_pages(start_bytes_, mapped_bytes_);
  if (std::exchange(leased_, false)) lease_.give_back();
}

bool FileWindow::works() {
  const bool opened = Mapping::can_populate() && open();
  close();
  return opened;
}

bool FileWindow::is_quick() {
  if (!works()) return false;
  const std::uint64_t first = align_up(offset_bytes_, kHugePageBytes) - offset_bytes_;
  if (first + kHugePageBytes > size_bytes_) return false;
  if (!ends_in_page_cache(file_, offset_bytes_ + first, kHugePageBytes)) {
    read_into_page_cache(file_, offset_bytes_ + first, kHugePageBytes);
  }
  double quickest = 0;
  for (int i = 0; i < kTries && open(); ++i) {
    const Clock::time_point start = Clock::now();
    bring(first, kHugePageBytes);
    quickest = std::max(quickest, static_cast<double>(kHugePageBytes) / seconds_since(start));
    close();
  }
  return quickest >= kQuickBytesPerSecond;
}

}  // namespace tensorstream
