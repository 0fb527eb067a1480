// Memory mappings: anonymous memory and file contents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>

#include "platform/file.h"

namespace tensorstream {

/// What the kernel maps at once where memory, or the page cache, has it in one piece.
inline constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20U;

/// What code may do with a range of memory.
enum class Access { kNone, kReadWrite };

/// Whether anonymous memory may come in huge pages. Memory whose access rights change by the page
/// is better without.
enum class HugePages { kNever, kWhereGiven };

/// Gives the system back the pages wholly inside `bytes`, anonymous memory whose content is not
/// needed any more: they are zeros when they are touched again.
void discard_pages(std::span<std::byte> bytes) noexcept;

/// An owned mapping of whole pages. Move-only; unmaps itself.
class Mapping {
 public:
  /// `size_bytes` of zeroed memory, rounded up to pages, huge pages where the system gives them: a
  /// large mapping begins with one. Raises BudgetError when the system has none.
  static Mapping anonymous(std::uint64_t size_bytes, HugePages huge_pages = HugePages::kWhereGiven);
  /// The whole of `file`, readable, shared with the page cache; size_bytes() is the file's. Raises
  /// IoError. An empty file maps to an empty span.
  static Mapping of_file(const File& file);

  /// `size_bytes` of addresses that nothing is at yet and that cannot be touched. Raises
  /// BudgetError.
  static Mapping reserved(std::uint64_t size_bytes);

  /// Gives back what lies behind the page in which `size_bytes` end.
  void shrink(std::uint64_t size_bytes) noexcept;

  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  std::byte* data() const noexcept { return data_; }
  std::uint64_t size_bytes() const noexcept { return size_bytes_; }

  /// Gives or takes the right to touch the pages that [offset_bytes, offset_bytes + size_bytes)
  /// covers. Raises Error.
  void set_access(std::uint64_t offset_bytes, std::uint64_t size_bytes, Access access) const;
  /// Makes [file_offset_bytes, file_offset_bytes + size_bytes) of `file` show at `offset_bytes` of
  /// the mapping, all of them multiples of a page, in large pages where the file system has them.
  /// Writes are private to this process. Raises Error.
  void show_file(std::uint64_t offset_bytes, std::uint64_t size_bytes, const File& file,
                 std::uint64_t file_offset_bytes) const;
  /// Makes zeroed memory show at `offset_bytes` of the mapping, as show_file(). Raises Error.
  void show_memory(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
  /// Processes that are forked from now on do not get the mapping: for memory that a device reads
  /// and writes by itself, whose pages a fork would take from one side or copy in whole.
  void keep_from_children() noexcept;
  /// Whether populate() reads pages, and says which cannot be read (Linux 5.14).
  static bool can_populate() noexcept;
  /// Makes the pages of the range present, so that touching them does not fault: the error where
  /// they cannot be read (a truncated file, a bad disk), and none on systems that only take this as
  /// a hint (Linux before 5.14).
  std::error_code populate(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;
  /// Lets go of the pages wholly inside the range: a file's stay in the page cache, anonymous ones
  /// are lost.
  void release_pages(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;

 private:
  Mapping(std::byte* data, std::uint64_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  void unmap() noexcept;

  std::byte* data_ = nullptr;
  std::uint64_t size_bytes_ = 0;
  std::int64_t kept_by_ = 0;  // the one process that has it; 0 where its children have it too
};

/// Bytes of a page of this system.
std::uint64_t page_size_bytes() noexcept;

}  // namespace tensorstream
