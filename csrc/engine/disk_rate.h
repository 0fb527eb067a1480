// How fast a file is read.
#pragma once

#include <optional>
#include <string>

namespace tensorstream {

/// Bytes a second that `path` is read at past the page cache, from its middle on: half a second
/// of reading, or 1 GiB where that is less. Nothing where the file is too small to tell,
/// or cannot be read so. Raises IoError.
std::optional<double> measure_disk(const std::string& path);

}  // namespace tensorstream
