// Which file of a path or folder is the checkpoint.
#pragma once

#include <string>

namespace tensorstream {

enum class CheckpointKind {
  /// One safetensors file.
  kSingle,
  /// A JSON index of several.
  kIndex,
};

struct CheckpointFile {
  std::string path;
  CheckpointKind kind = CheckpointKind::kSingle;
};

/// The checkpoint at `path`, a file or a folder, by names alone, but for an index beside another
/// candidate; Checkpoint::open says which names count. Raises IoError where `path` cannot be
/// examined or does not exist, ConfigError for a folder that holds none or several, FormatError for
/// one of several packed files without their index, UnsupportedError where there is only another
/// format.
CheckpointFile find_checkpoint_file(const std::string& path);

/// Raises FormatError for a packed file in a folder without the index that says what belongs to it.
[[noreturn]] void raise_packed_index_lost(const std::string& file);

}  // namespace tensorstream
