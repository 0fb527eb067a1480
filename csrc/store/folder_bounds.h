// The bounds of a checkpoint's folder: what its files may be links to.
#pragma once

#include <string>

namespace tensorstream {

/// Refuses `name`, of a file below `folder`, where links lead it to a place outside: somebody
/// else's file would be taken for a part of the checkpoint. Links to the blobs of the same model in
/// Hugging Face's cache (`snapshots/<revision>/...` to `blobs/<name>`) are its layout. Raises
/// FormatError. A link to nothing is left to whoever opens the file.
void check_stays_in_folder(const std::string& folder, const std::string& name);

}  // namespace tensorstream
