// Paths that a file names below its own folder.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace tensorstream {

/// Why `path`, of untrusted origin, is not one below a folder ("is absolute, ..."); nothing where
/// it is.
std::optional<std::string> relative_path_fault(std::string_view path);

}  // namespace tensorstream
