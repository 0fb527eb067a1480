#include "platform/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <string>
#include <utility>

#include "base/log.h"
#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

void log_failed(const char* call, std::uint64_t size_bytes, int error_number) noexcept {
  std::array<char, 128> message{};
  std::snprintf(message.data(), message.size(), "%s of %llu bytes failed: errno %d", call,
                static_cast<unsigned long long>(size_bytes), error_number);
  log(LogLevel::kWarning, message.data());
}

void show(std::byte* target, std::uint64_t size_bytes, int flags, int descriptor,
          std::uint64_t file_offset_bytes) {
  if (::mmap(target, size_bytes, PROT_READ | PROT_WRITE, flags, descriptor,
             static_cast<off_t>(file_offset_bytes)) != MAP_FAILED) {
    return;
  }
  const int error = errno;
  throw Error("mmap of " + format_size(size_bytes) +
              " failed: " + std::generic_category().message(error) +
              (error == ENOMEM ? "; raise vm.max_map_count" : ""));
}

constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t alignment) {
  return value & ~(alignment - 1);
}

struct PageRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// The pages that a range touches, clipped to a mapping of `mapped_bytes`.
PageRange covering_pages(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                         std::uint64_t mapped_bytes) {
  const std::uint64_t begin = std::min(offset_bytes, mapped_bytes);
  const std::uint64_t end = begin + std::min(size_bytes, mapped_bytes - begin);
  if (begin == end) return {};
  return {align_down(begin, page_size_bytes()), align_up(end, page_size_bytes())};
}

void* map_memory(std::uint64_t size_bytes, int protection, int flags) {
  return ::mmap(nullptr, size_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

/// The system begins mappings anywhere that are no multiple of a huge page: their first and last
/// bytes would have small ones, from which a GPU copies more slowly.
void* map_from_a_huge_page_on(std::uint64_t size_bytes, std::uint64_t mapped_bytes) {
  void* const mapped = map_memory(mapped_bytes, PROT_READ | PROT_WRITE, 0);
  if (mapped == MAP_FAILED) return mapped;
  const auto begin = reinterpret_cast<std::uintptr_t>(mapped);
  auto* const data = static_cast<std::byte*>(mapped) + (align_up(begin, kHugePageBytes) - begin);
  const std::uint64_t before = static_cast<std::uint64_t>(data - static_cast<std::byte*>(mapped));
  const std::uint64_t after = mapped_bytes - before - size_bytes;
  if (before != 0 && ::munmap(mapped, before) != 0) log_failed("munmap", before, errno);
  if (after != 0 && ::munmap(data + size_bytes, after) != 0) log_failed("munmap", after, errno);
  return data;
}

}  // namespace

void discard_pages(std::span<std::byte> bytes) noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uint64_t begin = align_up(address, page_size_bytes());
  const std::uint64_t end = align_down(address + bytes.size(), page_size_bytes());
  if (begin >= end) return;
  if (::madvise(bytes.data() + (begin - address), end - begin, MADV_DONTNEED) != 0) {
    log_failed("madvise to discard pages", end - begin, errno);
  }
}

std::uint64_t page_size_bytes() noexcept {
  static const auto size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

Mapping Mapping::anonymous(std::uint64_t size_bytes, HugePages huge_pages) {
  if (size_bytes == 0) return {};
  const auto padded = checked_add(size_bytes, page_size_bytes() - 1);
  const std::uint64_t rounded = padded ? align_down(*padded, page_size_bytes()) : 0;
  const bool is_large = huge_pages != HugePages::kNever && rounded >= kHugePageBytes;
  const auto mapped = is_large ? checked_add(rounded, kHugePageBytes) : std::nullopt;
  void* data = mapped ? map_from_a_huge_page_on(rounded, *mapped) : MAP_FAILED;
  if (data == MAP_FAILED && rounded != 0) data = map_memory(rounded, PROT_READ | PROT_WRITE, 0);
  if (data == MAP_FAILED) {
    throw BudgetError("host memory: the system has no " + format_size(size_bytes) +
                          " for a mapping; free memory or lower the budget",
                      size_bytes, 0);
  }
  Mapping mapping(static_cast<std::byte*>(data), rounded);
  const int advice = huge_pages == HugePages::kNever ? MADV_NOHUGEPAGE : MADV_HUGEPAGE;
  // EINVAL: a kernel built without huge pages, where there is nothing to choose.
  if (rounded >= kHugePageBytes && ::madvise(data, rounded, advice) != 0 && errno != EINVAL) {
    log_failed("madvise for huge pages", rounded, errno);
  }
  return mapping;
}

void Mapping::shrink(std::uint64_t size_bytes) noexcept {
  if (size_bytes >= size_bytes_) return;
  const std::uint64_t kept = align_up(size_bytes, page_size_bytes());
  if (kept == 0) return unmap();
  const std::uint64_t left = size_bytes_ - kept;
  if (left == 0) return;
  // A huge page of which a part is unmapped stays whole, uncounted, until memory runs short, and
  // one that is pinned by then for good. One of which a part is free to go is split at once.
  static_cast<void>(::madvise(data_ + kept, left, MADV_FREE));
  if (::munmap(data_ + kept, left) != 0) return log_failed("munmap", left, errno);
  size_bytes_ = kept;
}

Mapping Mapping::of_file(const File& file) {
  if (file.size_bytes() == 0) return {};
  void* const data =
      ::mmap(nullptr, file.size_bytes(), PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    throw IoError("mapping of " + format_size(file.size_bytes()) + " of '" + file.path() +
                      "' failed: " + std::generic_category().message(error),
                  file.path(), 0, error);
  }
  // What is not cached then comes in huge pages, where the file system has them.
  static_cast<void>(::madvise(data, file.size_bytes(), MADV_HUGEPAGE));
  return {static_cast<std::byte*>(data), file.size_bytes()};
}

Mapping Mapping::reserved(std::uint64_t size_bytes) {
  const std::uint64_t rounded = align_up(size_bytes, page_size_bytes());
  void* const data = map_memory(rounded, PROT_NONE, MAP_NORESERVE);
  if (data == MAP_FAILED) {
    throw BudgetError("the process has no " + format_size(size_bytes) + " of addresses left",
                      size_bytes, 0);
  }
  return {static_cast<std::byte*>(data), rounded};
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      kept_by_(std::exchange(other.kept_by_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this == &other) return *this;
  unmap();
  data_ = std::exchange(other.data_, nullptr);
  size_bytes_ = std::exchange(other.size_bytes_, 0);
  kept_by_ = std::exchange(other.kept_by_, 0);
  return *this;
}

Mapping::~Mapping() { unmap(); }

void Mapping::unmap() noexcept {
  if (data_ == nullptr) return;
  // In a child that did not get it, other memory may be there by now.
  const bool is_here = kept_by_ == 0 || kept_by_ == ::getpid();
  if (is_here && ::munmap(data_, size_bytes_) != 0) log_failed("munmap", size_bytes_, errno);
  data_ = nullptr;
  size_bytes_ = 0;
  kept_by_ = 0;
}

void Mapping::set_access(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                         Access access) const {
  const auto end = checked_add(offset_bytes, size_bytes);
  if (!end || *end > size_bytes_) {
    throw Error("access rights of " + std::to_string(size_bytes) + " bytes at offset " +
                std::to_string(offset_bytes) + ": the mapping has " + std::to_string(size_bytes_));
  }
  const PageRange pages = covering_pages(offset_bytes, size_bytes, size_bytes_);
  if (pages.begin == pages.end) return;
  const int protection = access == Access::kNone ? PROT_NONE : PROT_READ | PROT_WRITE;
  if (::mprotect(data_ + pages.begin, pages.end - pages.begin, protection) == 0) return;
  const int error = errno;
  throw Error("mprotect of " + format_size(size_bytes) + " at offset " +
              std::to_string(offset_bytes) + " failed: " + std::generic_category().message(error) +
              (error == ENOMEM ? "; raise vm.max_map_count" : ""));
}

void Mapping::show_file(std::uint64_t offset_bytes, std::uint64_t size_bytes, const File& file,
                        std::uint64_t file_offset_bytes) const {
  std::byte* const target = data_ + offset_bytes;
  show(target, size_bytes, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, file.descriptor(),
       file_offset_bytes);
  static_cast<void>(::madvise(target, size_bytes, MADV_HUGEPAGE));
}

void Mapping::show_memory(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
  show(data_ + offset_bytes, size_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

void Mapping::keep_from_children() noexcept {
  if (data_ == nullptr) return;
  if (::madvise(data_, size_bytes_, MADV_DONTFORK) == 0) {
    kept_by_ = ::getpid();
  } else {
    log_failed("madvise to keep from children", size_bytes_, errno);
  }
}

bool Mapping::can_populate() noexcept {
  static const bool can = [] {
    const std::uint64_t page = page_size_bytes();
    void* const data = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return false;
    const bool populated = ::madvise(data, page, MADV_POPULATE_READ) == 0;
    ::munmap(data, page);
    return populated;
  }();
  return can;
}

std::error_code Mapping::populate(std::uint64_t offset_bytes,
                                  std::uint64_t size_bytes) const noexcept {
  const PageRange pages = covering_pages(offset_bytes, size_bytes, size_bytes_);
  if (pages.begin == pages.end) return {};
  while (::madvise(data_ + pages.begin, pages.end - pages.begin, MADV_POPULATE_READ) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno == EINVAL) break;  // Linux before 5.14
    return {errno, std::generic_category()};
  }
  return {};
}

void Mapping::release_pages(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept {
  if (offset_bytes >= size_bytes_) return;
  const std::uint64_t last = offset_bytes + std::min(size_bytes, size_bytes_ - offset_bytes);
  const std::uint64_t begin = align_up(offset_bytes, page_size_bytes());
  // The page in which a file's mapping ends belongs to nobody else.
  const std::uint64_t end =
      last == size_bytes_ ? align_up(last, page_size_bytes()) : align_down(last, page_size_bytes());
  if (begin >= end) return;
  if (::madvise(data_ + begin, end - begin, MADV_DONTNEED) != 0) {
    log_failed("madvise to release pages", end - begin, errno);
  }
}

}  // namespace tensorstream
