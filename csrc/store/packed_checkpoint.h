// A packed checkpoint, opened: its shards and its index, which agree.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "platform/file.h"
#include "store/packed_header.h"
#include "store/packed_index.h"

namespace tensorstream {

struct PackedShard {
  /// As it was, below the folder.
  std::string name;
  File file;
  PackedHeader header;
};

struct PackedCheckpoint {
  std::filesystem::path folder;
  std::vector<PackedShard> shards;
  /// Nothing where one file was given.
  std::optional<PackedIndex> index;
};

/// Opens what is packed at `path`, a file, an index or a folder, and checks headers and index; what
/// lies behind the headers is not looked at. Nothing where what is there is not packed. Raises as
/// find_checkpoint_file(), IoError, FormatError, and UnsupportedError for a newer version.
std::optional<PackedCheckpoint> open_packed_checkpoint(const std::string& path);

/// What is packed at a path: one checkpoint, or those of a pipeline.
struct PackedWhole {
  struct Part {
    /// Below the folder; empty, or a folder's name and '/'.
    std::string below;
    PackedCheckpoint checkpoint;
  };

  std::filesystem::path folder;
  std::vector<Part> parts;
  /// Of a pipeline, the files beside its models.
  std::vector<CarriedFile> rest;
};

/// As open_packed_checkpoint(), of pipelines too. Raises FormatError also for a model that is not
/// the one that was packed with its pipeline.
std::optional<PackedWhole> open_packed(const std::string& path);

}  // namespace tensorstream
