#include "store/checkpoint.h"

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "store/checkpoint_file.h"
#include "store/folder_bounds.h"
#include "store/packed_checkpoint.h"
#include "store/packed_header.h"
#include "store/shard_index.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

/// The shards that `index` names, each by its first tensor; missing ones are refused.
std::map<std::string, std::string> shards_of(const std::string& index_path,
                                             const ShardIndex& index) {
  const fs::path folder = fs::path(index_path).parent_path();
  std::map<std::string, std::string> first_tensors;
  for (const auto& [tensor, shard] : index) first_tensors.try_emplace(shard, tensor);
  for (const auto& [shard, tensor] : first_tensors) {
    std::error_code error;
    if (fs::status(folder / shard, error).type() != fs::file_type::not_found) {
      check_stays_in_folder(folder.string(), shard);
      continue;
    }
    throw FormatError(index_path, shown(tensor),
                      "missing shard: its file '" + shown((folder / shard).string()) +
                          "' does not exist; fetch the checkpoint again, all of its files");
  }
  return first_tensors;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& path) {
  Checkpoint checkpoint;
  if (const auto packed = open_packed_checkpoint(path)) {
    checkpoint.packed_ = true;
    for (const PackedShard& shard : packed->shards) checkpoint.add_packed(shard);
    return checkpoint;
  }
  const CheckpointFile file = find_checkpoint_file(path);
  if (file.kind == CheckpointKind::kSingle) {
    checkpoint.add_file(file.path);
  } else {
    checkpoint.add_shards(file.path);
  }
  return checkpoint;
}

void Checkpoint::add_file(const std::string& path) {
  SafetensorsHeader header = read_safetensors_header(path);
  if (is_packed(header)) {
    throw UnsupportedError("'" + path +
                           "' is packed, and the index that names it is not; give the file itself");
  }
  files_.push_back(path);
  identities_.push_back(header.file);
  for (StoredTensor& tensor : header.tensors) add_tensor(std::move(tensor));
}

void Checkpoint::add_packed(const PackedShard& shard) {
  files_.push_back(shard.file.path());
  identities_.push_back(shard.file.identity());
  for (const PackedTensor& tensor : shard.header.tensors) add_tensor(tensor.original);
}

/// Of the last file.
void Checkpoint::add_tensor(StoredTensor tensor) {
  const std::string name = tensor.name;
  // Each size lies within a file that exists, so that their sum cannot overflow.
  size_bytes_ += tensor.size_bytes;
  const auto file = static_cast<std::uint32_t>(files_.size() - 1);
  const auto [place, added] = tensors_.try_emplace(name, CheckpointTensor{std::move(tensor), file});
  if (added) return;
  throw FormatError(files_.back(), shown(name),
                    "duplicate tensor: '" + files_.at(place->second.file) + "' holds it too");
}

void Checkpoint::add_shards(const std::string& index_path) {
  const ShardIndex index = read_shard_index(index_path);
  const fs::path folder = fs::path(index_path).parent_path();
  for (const auto& [shard, tensor] : shards_of(index_path, index)) {
    add_file((folder / shard).string());
  }
  for (const auto& [name, shard] : index) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      throw FormatError(index_path, shown(name),
                        "missing tensor: the index puts it in '" + shown(shard) +
                            "', which does not hold it; fetch the checkpoint again");
    }
    const std::string& holder = files_.at(found->second.file);
    if (holder == (folder / shard).string()) continue;
    throw FormatError(index_path, shown(name),
                      "wrong shard: the index puts it in '" + shown(shard) + "', but '" +
                          shown(holder) + "' holds it; fetch the checkpoint again");
  }
  for (const auto& [name, tensor] : tensors_) {
    if (index.contains(name)) continue;
    throw FormatError(files_.at(tensor.file), shown(name),
                      "unlisted tensor: the index '" + index_path +
                          "' does not name it; fetch the checkpoint again");
  }
}

}  // namespace tensorstream
