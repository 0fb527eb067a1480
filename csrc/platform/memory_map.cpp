#include "platform/memory_map.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <span>
#include <system_error>
#include <vector>

#include "base/units.h"
#include "platform/file.h"
#include "platform/mapping.h"
#include "platform/retry.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kPagePresent = 1ULL << 63U;
constexpr std::uint64_t kPageSwapped = 1ULL << 62U;
constexpr std::uint64_t kPageOfFile = 1ULL << 61U;

/// Takes a number and the character behind it off the front of `text`.
bool take_number(std::string_view& text, int base, char behind, std::uint64_t& number) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), number, base);
  if (result.ec != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(result.ptr - text.data()));
  if (behind == '\0') return true;
  if (text.empty() || text.front() != behind) return false;
  text.remove_prefix(1);
  return true;
}

bool is_octal(char c) { return c >= '0' && c <= '7'; }

bool continues(const MemoryArea& first, const MemoryArea& second) {
  return first.end == second.begin && first.inode == second.inode &&
         first.device_major == second.device_major && first.device_minor == second.device_minor &&
         first.path == second.path &&
         first.offset_bytes + (first.end - first.begin) == second.offset_bytes;
}

/// Whether a file could not be opened only because too many are: what it would tell is not known.
bool is_without_descriptors(int error_number) {
  return error_number == EMFILE || error_number == ENFILE;
}

/// Whether what is written there is the file's too, so that nobody else's copy may stand for it.
bool is_shared(const MemoryArea& area) {
  return area.permissions.find('w') == 1 && area.permissions.ends_with('s');
}

/// The readable area of one file that holds [begin, end), joined from neighbours where the kernel
/// split it.
std::optional<MemoryArea> area_of(std::uint64_t begin, std::uint64_t end, const std::string& maps) {
  std::ifstream lines(maps);
  if (!lines && is_without_descriptors(errno)) {
    throw IoError("cannot open '" + maps + "' to see which files weights are mapped from: " +
                      std::generic_category().message(errno) + "; raise `ulimit -n`",
                  maps, 0, errno);
  }
  std::optional<MemoryArea> found;
  for (std::string line; std::getline(lines, line);) {
    auto area = parse_memory_area(line);
    if (!area || area->end <= begin) continue;
    if (area->inode == 0 || !area->permissions.starts_with('r')) return std::nullopt;
    if (is_shared(*area)) return std::nullopt;  // guard: shared-mapping
    if (!found) {
      if (area->begin > begin) return std::nullopt;
      found = std::move(area);
    } else {
      if (!continues(*found, *area)) return std::nullopt;
      found->end = area->end;
    }
    if (found->end >= end) return found;
  }
  return std::nullopt;
}

/// True where a new mapping of `file` shows the device and inode of `area`. On btrfs, and on
/// overlayfs before Linux 6.8, stat() and the maps name a file's device differently.
bool maps_alike(const File& file, const MemoryArea& area, const std::string& maps) {
  const Mapping mapping = Mapping::of_file(file);
  const auto begin = std::bit_cast<std::uint64_t>(mapping.data());
  const auto again = area_of(begin, begin + mapping.size_bytes(), maps);
  return again && again->inode == area.inode && again->device_major == area.device_major &&
         again->device_minor == area.device_minor;
}

/// The file at `path` where it is the very one that `area` maps, and reaches to `file_end`.
std::optional<FileIdentity> mapped_file(const std::string& path, const MemoryArea& area,
                                        std::uint64_t file_end, const std::string& maps) {
  if (!path.starts_with('/')) return std::nullopt;
  try {
    const File file = File::open_for_reading(path);
    const FileIdentity& found = file.identity();
    if (found.size_bytes < file_end) return std::nullopt;
    const bool same = found.inode == area.inode && major(found.device) == area.device_major &&
                      minor(found.device) == area.device_minor;
    if (same || maps_alike(file, area, maps)) return found;
  } catch (const IoError& error) {  // a file that cannot be read backs nothing
    if (is_without_descriptors(error.error_number())) throw;
  }
  return std::nullopt;
}

enum class Pages { kUnmodified, kModified, kUnknown };

Pages look_at_pages(std::uint64_t begin, std::uint64_t end, const std::string& pagemap) {
  const int descriptor =
      retry_interrupted([&] { return ::open(pagemap.c_str(), O_RDONLY | O_CLOEXEC); });
  if (descriptor < 0) return Pages::kUnknown;
  constexpr std::uint64_t kEntryBytes = sizeof(std::uint64_t);
  std::vector<std::uint64_t> entries(8192);
  const std::uint64_t page_end = (end - 1) / page_size_bytes() + 1;
  Pages outcome = Pages::kUnmodified;
  for (std::uint64_t page = begin / page_size_bytes();
       page < page_end && outcome == Pages::kUnmodified;) {
    const std::uint64_t count = std::min<std::uint64_t>(entries.size(), page_end - page);
    const auto out = std::as_writable_bytes(std::span(entries).first(count));
    const ReadOutcome read = read_fully(
        [&](std::uint64_t done, std::span<std::byte> rest) {
          return ::pread(descriptor, rest.data(), rest.size(),
                         static_cast<off_t>(page * kEntryBytes + done));
        },
        out);
    if (read.read_bytes != out.size()) outcome = Pages::kUnknown;
    // A written page of a private mapping is anonymous, in memory or in swap: no longer the file's.
    const auto modified = [](std::uint64_t entry) {
      return (entry & (kPagePresent | kPageSwapped)) != 0 && (entry & kPageOfFile) == 0;
    };
    const auto seen = std::span(entries).first(read.read_bytes / kEntryBytes);
    if (std::ranges::any_of(seen, modified)) outcome = Pages::kModified;
    page += count;
  }
  if (::close(descriptor) != 0) return Pages::kUnknown;
  return outcome;
}

/// Compares memory with the file byte by byte.
bool same_bytes(const std::byte* memory, std::uint64_t size_bytes, const FileBacking& backing) {
  try {
    const File file = File::open_for_reading(backing.path);
    std::vector<std::byte> piece(std::min<std::uint64_t>(size_bytes, 1_MiB));
    for (std::uint64_t done = 0; done < size_bytes;) {
      const auto out =
          std::span(piece).first(std::min<std::uint64_t>(piece.size(), size_bytes - done));
      file.read_exact(backing.offset_bytes + done, out);
      if (std::memcmp(out.data(), memory + done, out.size()) != 0) return false;
      done += out.size();
    }
    return true;
  } catch (const IoError& error) {  // a file that cannot be read backs nothing
    if (is_without_descriptors(error.error_number())) throw;
    return false;
  }
}

}  // namespace

std::optional<MemoryArea> parse_memory_area(std::string_view line) {
  MemoryArea area;
  if (!take_number(line, 16, '-', area.begin) || !take_number(line, 16, ' ', area.end)) {
    return std::nullopt;
  }
  constexpr std::size_t kPermissions = 4;
  if (line.size() <= kPermissions || line[kPermissions] != ' ') return std::nullopt;
  area.permissions = line.substr(0, kPermissions);
  line.remove_prefix(kPermissions + 1);
  if (!take_number(line, 16, ' ', area.offset_bytes) ||
      !take_number(line, 16, ':', area.device_major) ||
      !take_number(line, 16, ' ', area.device_minor) || !take_number(line, 10, '\0', area.inode)) {
    return std::nullopt;
  }
  // The kernel pads with spaces up to the path; a path of a file begins with '/', so none are lost.
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  area.path = line;
  return area;
}

std::string unescaped_path(std::string_view path) {
  std::string result;
  for (std::size_t i = 0; i < path.size(); ++i) {
    const bool escape = path[i] == '\\' && i + 3 < path.size() && is_octal(path[i + 1]) &&
                        is_octal(path[i + 2]) && is_octal(path[i + 3]);
    if (!escape) {
      result += path[i];
      continue;
    }
    result +=
        static_cast<char>((path[i + 1] - '0') * 64 + (path[i + 2] - '0') * 8 + path[i + 3] - '0');
    i += 3;
  }
  return result;
}

std::optional<FileBacking> find_file_backing(const void* address, std::uint64_t size_bytes,
                                             const ProcessFiles& files) {
  const auto begin = std::bit_cast<std::uint64_t>(address);
  const auto end = checked_add(begin, size_bytes);
  if (size_bytes == 0 || !end) return std::nullopt;
  const auto area = area_of(begin, *end, files.maps);
  if (!area) return std::nullopt;

  FileBacking backing{.path = area->path,
                      .offset_bytes = area->offset_bytes + (begin - area->begin)};
  const auto file_end = checked_add(backing.offset_bytes, size_bytes);
  if (!file_end) return std::nullopt;
  // The kernel escapes newlines and not backslashes, so a name may be meant either way.
  auto file = mapped_file(backing.path, *area, *file_end, files.maps);
  if (!file) {
    backing.path = unescaped_path(area->path);
    file = mapped_file(backing.path, *area, *file_end, files.maps);
    if (!file) return std::nullopt;
  }
  backing.file = *file;

  const Pages pages = look_at_pages(begin, *end, files.pagemap);
  if (pages == Pages::kModified) return std::nullopt;
  if (pages == Pages::kUnknown &&
      !same_bytes(static_cast<const std::byte*>(address), size_bytes, backing)) {
    return std::nullopt;
  }
  return backing;
}

}  // namespace tensorstream
