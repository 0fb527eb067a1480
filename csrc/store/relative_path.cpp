#include "store/relative_path.h"

namespace tensorstream {

std::optional<std::string> relative_path_fault(std::string_view path) {
  if (path.empty()) return "is empty";
  if (path.find('\0') != std::string_view::npos) return "holds a NUL character";
  if (path.find('\\') != std::string_view::npos) return "holds a backslash";
  if (path.front() == '/') return "is absolute, not below the index's folder";
  // guard: path-below-folder
  if (path.find("..") != std::string_view::npos) {
    return "holds '..': files are below the index's folder";
  }
  // end guard
  return std::nullopt;
}

}  // namespace tensorstream
