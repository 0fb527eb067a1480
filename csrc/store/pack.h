// Checkpoints, packed and back. PACKED.md has the format.
#pragma once

#include <cstdint>
#include <string>

#include "store/packed_file_writer.h"
#include "store/progress.h"

namespace tensorstream {

/// What a checkpoint is made of.
struct CheckpointSummary {
  std::uint64_t files = 0;
  std::uint64_t tensors = 0;
  /// Those that are stored as frames.
  std::uint64_t encoded_tensors = 0;
  /// The safetensors files as they were, and as they are packed; the same where they are not.
  std::uint64_t original_bytes = 0;
  std::uint64_t stored_bytes = 0;

  CheckpointSummary& operator+=(const CheckpointSummary& other) noexcept;
};

/// Packs the checkpoint at `source` (as Checkpoint::open takes it), or all checkpoints of a
/// pipeline's folder (one with a model_index.json), into the new folder `target`. The other files
/// of a source that is a folder are carried along. The folder appears when it is whole. A run that
/// was killed leaves no target; the next of the same source, target and level goes on with the
/// shards that it finished. Raises ConfigError where the target is there and not empty,
/// UnsupportedError where the source is packed already, FormatError, and IoError, also where the
/// disk may be too small (before anything is written) or the source changes meanwhile.
CheckpointSummary pack_checkpoint(const std::string& source, const std::string& target,
                                  const PackOptions& options, const ProgressSink& sink);

/// Makes the folder `target` of the files that were packed into the folder, or the one file,
/// `source`: all of them byte for byte. Raises as pack_checkpoint(), and ConfigError for a source
/// that is not packed.
CheckpointSummary unpack_checkpoint(const std::string& source, const std::string& target,
                                    unsigned threads, const ProgressSink& sink);

/// Checks all that can be checked without the original: of packed files every byte, of others their
/// headers and index. Raises FormatError and IoError.
CheckpointSummary verify_checkpoint(const std::string& path, unsigned threads,
                                    const ProgressSink& sink);

}  // namespace tensorstream
