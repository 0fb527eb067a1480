#include "store/relative_path.h"

#include <cstddef>

namespace tensorstream {
namespace {

/// Whether one of its parts is `..`; in a name, two dots are two dots.
bool has_part_above(std::string_view path) {
  while (true) {
    const std::size_t end = path.find('/');
    if (path.substr(0, end) == "..") return true;
    if (end == std::string_view::npos) return false;
    path.remove_prefix(end + 1);
  }
}

}  // namespace

std::optional<std::string> relative_path_fault(std::string_view path) {
  if (path.empty()) return "is empty";
  if (path.find('\0') != std::string_view::npos) return "holds a NUL character";
  if (path.find('\\') != std::string_view::npos) return "holds a backslash";
  if (path.front() == '/') return "is absolute, not below the index's folder";
  // guard: path-below-folder
  if (has_part_above(path)) return "holds '..': files are below the index's folder";
  // end guard
  return std::nullopt;
}

}  // namespace tensorstream
