// The index of a packed folder: which stored tensor is in which file, and what the folder held
// besides. PACKED.md has the format.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "store/carried_files.h"
#include "store/shard_index.h"

namespace tensorstream {

/// What a folder's index is called when it is packed. Loaders look for other names.
inline constexpr const char* kPackedIndexName = "packed.safetensors.index.json";

/// What a packed pipeline's folder has beside its index.
inline constexpr const char* kPackedPipelineName = "packed.pipeline.json";

/// The name, below the target, of a shard when it is packed, and the reverse; nothing for a name
/// that no packed shard has.
std::string packed_name(const std::string& shard);
std::optional<std::string> unpacked_name(const std::string& packed_shard);

/// The index of the checkpoint that was packed, where it had one.
struct OriginalIndex {
  std::string name;
  std::string text;
};

struct PackedIndex {
  /// By stored name, the packed shard.
  ShardIndex stored;
  /// By packed shard, the checksum that stands for it.
  std::map<std::string, std::string> seals;
  std::uint64_t total_bytes = 0;
  std::optional<OriginalIndex> original;
  std::vector<CarriedFile> carried;
  /// The checksum that stands for the index, where it was read or written.
  std::string seal;
};

std::string packed_index_text(const PackedIndex& index);

/// Reads and checks a packed index. Raises IoError, FormatError, and UnsupportedError for a newer
/// version.
PackedIndex read_packed_index(const std::string& path);

/// Of a packed pipeline: its models, packed checkpoints in folders of their own, and its other
/// files.
struct PackedPipelineIndex {
  /// By folder, the checksum that stands for its index.
  std::map<std::string, std::string> models;
  std::vector<CarriedFile> carried;
};

std::string packed_pipeline_text(const PackedPipelineIndex& index);

/// As read_packed_index().
PackedPipelineIndex read_packed_pipeline(const std::string& path);

}  // namespace tensorstream
