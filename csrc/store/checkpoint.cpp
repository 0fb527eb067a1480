#include "store/checkpoint.h"

#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "store/checkpoint_file.h"
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
    if (fs::status(folder / shard, error).type() != fs::file_type::not_found) continue;
    throw FormatError(index_path, shown(tensor),
                      "missing shard: its file '" + shown((folder / shard).string()) +
                          "' does not exist; fetch the checkpoint again, all of its files");
  }
  return first_tensors;
}

[[noreturn]] void refuse_packed(const std::string& path, const SafetensorsHeader& header) {
  if (header.metadata.contains("tensorstream.checksum")) {
    throw UnsupportedError("'" + path +
                           "' is packed; tensorstream.unpack(source, target) gives back the files "
                           "it was packed from, which can be used here");
  }
  const auto key = header.metadata.lower_bound(std::string(kReservedPrefix));
  throw UnsupportedError("'" + path + "' was packed by a newer TensorStream (its metadata has '" +
                         shown(key->first) +
                         "'); upgrade TensorStream, or give the checkpoint it was packed from");
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& path) {
  const CheckpointFile file = find_checkpoint_file(path);
  Checkpoint checkpoint;
  if (file.kind == CheckpointKind::kSingle) {
    checkpoint.add_file(file.path);
  } else {
    checkpoint.add_shards(file.path);
  }
  return checkpoint;
}

void Checkpoint::add_file(const std::string& path) {
  SafetensorsHeader header = read_safetensors_header(path);
  if (is_packed(header)) refuse_packed(path, header);
  const auto file = static_cast<std::uint32_t>(files_.size());
  files_.push_back(path);
  for (StoredTensor& tensor : header.tensors) {
    const std::string name = tensor.name;
    // Each size lies within a file that exists, so that their sum cannot overflow.
    size_bytes_ += tensor.size_bytes;
    const auto [place, added] =
        tensors_.try_emplace(name, CheckpointTensor{std::move(tensor), file});
    if (added) continue;
    throw FormatError(path, shown(name),
                      "duplicate tensor: '" + files_.at(place->second.file) + "' holds it too");
  }
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
