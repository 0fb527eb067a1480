// The packing of one checkpoint: what is read of it, opened before a byte is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "platform/file.h"
#include "store/carried_files.h"
#include "store/pack.h"
#include "store/packed_index.h"
#include "store/progress.h"
#include "store/staged_folder.h"

namespace tensorstream {

/// What the index takes for each tensor or file, at most: its name, escaped, and its shard's.
inline constexpr std::uint64_t kIndexRowBytes = 1024;

class PackJob {
 public:
  /// The checkpoint at `source` (as Checkpoint::open takes it) is packed to `below`, a path below
  /// the target that is empty or ends in '/'. Raises ConfigError, FormatError, IoError and
  /// UnsupportedError where it cannot be.
  PackJob(const std::string& source, std::string below);

  /// What is read of it.
  std::uint64_t read_bytes() const;
  /// The most that is written.
  std::uint64_t bound_bytes() const;
  /// Adds what a run that goes on knows the same work by: of each shard the state of its file.
  void describe(StagedWork& work) const;

  /// Carries the other files along: before any weights are packed, so that what changes meanwhile
  /// is seen by check_source().
  void carry_files(StagedFolder& folder, Progress& progress);
  /// Packs the shards, and writes the index.
  CheckpointSummary pack(StagedFolder& folder, const PackOptions& options, Progress& progress);
  /// The checksum of the index that pack() wrote.
  const std::string& seal() const noexcept { return packed_.seal; }
  /// Raises IoError where the source's paths do not lead to what pack() read.
  void check_source() const;

 private:
  struct Shard {
    std::string name;  // below the source's folder
    PackSource source;
  };

  void open_shard(const std::string& path, const FileIdentity& identity);
  void check_names() const;
  void check_opened() const;
  PackedFileSummary pack_shard(const Shard& shard, const StagedFolder& folder,
                               const PackOptions& options, Progress& progress) const;
  void write_index(StagedFolder& folder);

  const std::string source_;
  const std::string below_;
  std::filesystem::path folder_;
  std::vector<Shard> shards_;
  std::optional<File> index_file_;
  std::vector<CarriedFile> carried_;
  PackedIndex packed_;
};

/// Raises UnsupportedError for `name`, of a file below `folder`.
[[noreturn]] void refuse_name(const std::filesystem::path& folder, const std::string& name,
                              const std::string& fault);
/// Raises UnsupportedError for a name that no index can hold.
void check_name(const std::filesystem::path& folder, const std::string& name);

/// Carries `files` of the folder `source` along, to `below` in the staged folder: what they are,
/// with checksums.
std::vector<CarriedFile> carry(const std::filesystem::path& source,
                               const std::vector<CarriedFile>& files, const std::string& below,
                               StagedFolder& folder, Progress& progress);

/// Writes the text of an index to `name` in the staged folder. Raises UnsupportedError where it has
/// more bytes than an index may.
void write_index_text(StagedFolder& folder, const std::string& name, std::string_view text,
                      const std::string& source);

}  // namespace tensorstream
