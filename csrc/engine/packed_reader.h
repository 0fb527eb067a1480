// A packed file as a source: its tensors as they were.
#pragma once

#include <memory>
#include <string>

#include "io/file_opener.h"
#include "io/reader.h"

namespace tensorstream {

/// A reader of the packed file at `path`, whose offsets are those of the file that was packed, as
/// Checkpoint gives them. Its reads decode, and raise FormatError where the file is damaged. Raises
/// IoError, FormatError and UnsupportedError.
std::unique_ptr<Reader> open_packed_reader(const std::string& path);
/// One that reads the file as the opener's readers read theirs: where those go past the page cache,
/// what is decoded whole does, while small reads and read_frame() go through it. Raises
/// UnsupportedError, too, where the file system refuses.
std::unique_ptr<Reader> open_packed_reader(const std::string& path, const FileOpener& opener);

}  // namespace tensorstream
