#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "base/units.h"
#include "io/reader.h"
#include "platform/file.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

class PreadReader final : public Reader {
 public:
  explicit PreadReader(const std::string& path) : file_(File::open_for_reading(path)) {}

  const std::string& name() const noexcept override { return file_.path(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return file_.size_bytes(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    file_.read_exact(offset_bytes, out);
    // Afterwards: bytes of a file that was rewritten meanwhile are not handed out either.
    file_.check_unchanged();
  }

 private:
  const File file_;
};

/// Pages of the mapping count as this process's memory while they are mapped, so they are let go as
/// soon as they are copied.
class MmapReader final : public Reader {
 public:
  explicit MmapReader(const std::string& path)
      : file_(File::open_for_reading(path)), mapping_(Mapping::of_file(file_)) {}

  const std::string& name() const noexcept override { return file_.path(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return file_.size_bytes(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    const auto end = checked_add(offset_bytes, out.size());
    if (!end || *end > size_bytes()) {
      throw IoError("read of " + format_size(out.size()) + " at offset " +
                        std::to_string(offset_bytes) + " of '" + name() +
                        "' failed: the file has " + std::to_string(size_bytes()) + " bytes",
                    name(), offset_bytes, 0);
    }
    // A page behind the end of a truncated file is a fatal signal, not an error: look first.
    file_.check_unchanged();
    if (out.size() < kSmallBytes) {
      copy(offset_bytes, out);
      release_small(out.size());
    } else {
      copy_in_windows(offset_bytes, out);
    }
    file_.check_unchanged();
  }

 private:
  static constexpr std::uint64_t kSmallBytes = 1_MiB;
  static constexpr std::uint64_t kWindowBytes = 8_MiB;
  /// Linux maps up to this much around a page that it maps from the page cache
  /// (fault_around_bytes).
  static constexpr std::uint64_t kFaultAroundBytes = 64_KiB;

  void copy(std::uint64_t offset_bytes, std::span<std::byte> out) const {
    if (out.empty()) return;
    if (const std::error_code error = mapping_.populate(offset_bytes, out.size())) {
      throw IoError("read of " + format_size(out.size()) + " at offset " +
                        std::to_string(offset_bytes) + " of '" + name() +
                        "' through a mapping failed: " + error.message(),
                    name(), offset_bytes, error.value());
    }
    std::memcpy(out.data(), mapping_.data() + offset_bytes, out.size());
  }

  void copy_in_windows(std::uint64_t offset_bytes, std::span<std::byte> out) const {
    for (std::uint64_t done = 0; done < out.size();) {
      const std::uint64_t size = std::min<std::uint64_t>(kWindowBytes, out.size() - done);
      const std::uint64_t next = done + size;
      mapping_.prefetch(offset_bytes + next,
                        std::min<std::uint64_t>(kWindowBytes, out.size() - next));
      copy(offset_bytes + done, out.subspan(done, size));
      release_around(offset_bytes + done, size);
      done = next;
    }
  }

  /// Also the pages around, which the kernel mapped unasked and no later window may reach.
  void release_around(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const std::uint64_t before = std::min(offset_bytes, kFaultAroundBytes);
    mapping_.release_pages(offset_bytes - before, before + size_bytes + kFaultAroundBytes);
  }

  /// Letting go of pages costs a system call and a refault: small reads do it together.
  void release_small(std::uint64_t read_bytes) {
    const std::uint64_t mapped = read_bytes + kFaultAroundBytes;
    if (small_bytes_.fetch_add(mapped) + mapped < kWindowBytes) return;
    small_bytes_ = 0;
    mapping_.release_pages(0, mapping_.size_bytes());
  }

  // Constant after construction.
  const File file_;
  const Mapping mapping_;

  // Own synchronisation: bytes that small reads mapped since pages were last let go.
  std::atomic<std::uint64_t> small_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Reader> open_file_reader(const std::string& path, FileBackend backend) {
  if (backend == FileBackend::kMmap) return std::make_unique<MmapReader>(path);
  return std::make_unique<PreadReader>(path);
}

}  // namespace tensorstream
