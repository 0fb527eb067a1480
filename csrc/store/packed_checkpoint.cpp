#include "store/packed_checkpoint.h"

#include <algorithm>
#include <array>
#include <map>
#include <ranges>
#include <system_error>
#include <utility>

#include "store/checkpoint_file.h"
#include "store/folder_bounds.h"
#include "store/pipeline.h"
#include "store/safetensors.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

PackedShard open_shard(const std::string& path, std::string name) {
  File file = File::open_for_reading(path);
  PackedHeader header = read_packed_header(file);
  return {std::move(name), std::move(file), std::move(header)};
}

/// By packed shard, the first of its tensors.
std::map<std::string, std::string> shards_of(const ShardIndex& stored) {
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : stored) shards.try_emplace(shard, tensor);
  return shards;
}

/// The index says what the files hold, no more and no less.
void check_index(const std::string& path, const PackedIndex& index, const ShardIndex& held) {
  const auto [said, found] = std::ranges::mismatch(index.stored, held);
  if (said == index.stored.end() && found == held.end()) return;
  const std::string& tensor = said == index.stored.end() ? found->first : said->first;
  throw FormatError(path, shown(tensor),
                    "packed index: it and the files differ in where this is; fetch the checkpoint "
                    "again, all of its files");
}

/// A file of another packing may have the same names and sizes.
void check_seal(const PackedIndex& index, const std::string& shard, const std::string& path,
                const std::string& seal) {
  const auto recorded = index.seals.find(shard);
  if (recorded == index.seals.end() || recorded->second != seal) {  // guard: packed-shard
    throw FormatError(path, "",
                      "packed shard: it is not the file of this name that was packed with its "
                      "index; fetch the checkpoint again, all of its files");
  }
}

constexpr const char* kPipelineAdvice = "; fetch the pipeline again, all of its files";

[[noreturn]] void raise_other_model(const std::string& pipeline_index, const fs::path& model) {
  throw FormatError(pipeline_index, "",
                    "packed model: '" + shown(model.string()) +
                        "' is not the one that was packed with this pipeline" + kPipelineAdvice);
}

/// A model in the folder of a packed pipeline may be of another packing.
void check_pipeline_of(const fs::path& model, const std::string& seal) {
  std::error_code ignored;
  const fs::path folder = fs::absolute(model, ignored).lexically_normal();
  const std::string index_path = (folder.parent_path() / kPackedPipelineName).string();
  if (!fs::exists(index_path, ignored)) return;
  const PackedPipelineIndex pipeline = read_packed_pipeline(index_path);
  const auto packed = pipeline.models.find(folder.filename().string());
  if (packed != pipeline.models.end() && packed->second != seal) {  // guard: packed-model
    raise_other_model(index_path, model);
  }
}

PackedCheckpoint open_folder(const std::string& index_path) {
  PackedCheckpoint packed{.folder = fs::path(index_path).parent_path(), .shards = {}, .index = {}};
  packed.index = read_packed_index(index_path);
  check_pipeline_of(packed.folder, packed.index->seal);
  ShardIndex held;
  for (const auto& [shard, tensor] : shards_of(packed.index->stored)) {
    const std::string path = (packed.folder / shard).string();
    std::error_code ignored;
    if (fs::status(path, ignored).type() == fs::file_type::not_found) {
      throw FormatError(index_path, shown(tensor),
                        "missing shard: its file '" + shown(path) +
                            "' does not exist; fetch the checkpoint again, all of its files");
    }
    check_stays_in_folder(packed.folder.string(), shard);
    packed.shards.push_back(open_shard(path, unpacked_name(shard).value()));
    const PackedHeader& header = packed.shards.back().header;
    check_seal(*packed.index, shard, path, header.seal);
    for (const PackedTensor& one : header.tensors) held.emplace(one.stored.name, shard);
    for (const PackedExtent& one : header.padding) held.emplace(one.name, shard);
  }
  check_index(index_path, *packed.index, held);
  return packed;
}

/// Where names of the packed format's are there, but none of those that this version writes.
void check_version(const std::string& path, const SafetensorsHeader& header) {
  const bool ours = std::ranges::any_of(header.metadata, [](const auto& entry) {
    constexpr std::array kOurs = {"checksum", "version", "header", "data_bytes"};
    return std::ranges::any_of(kOurs, [&](const char* const name) {
      return entry.first.starts_with(std::string(kReservedPrefix) + name);
    });
  });
  if (ours) return;
  const auto key = header.metadata.lower_bound(std::string(kReservedPrefix));
  throw UnsupportedError(
      "'" + path + "' was packed by a newer TensorStream (its metadata has '" + shown(key->first) +
      "'); upgrade TensorStream, or give the checkpoint it was packed from; if it is a plain "
      "file, remove that key");
}

PackedWhole open_pipeline(const fs::path& folder) {
  const std::string index_path = (folder / kPackedPipelineName).string();
  PackedPipelineIndex index = read_packed_pipeline(index_path);
  PackedWhole whole{folder, {}, std::move(index.carried)};
  for (const auto& model : std::views::keys(index.models)) {
    check_stays_in_folder(folder.string(), model);
    const fs::path packed_index = folder / model / kPackedIndexName;
    std::error_code ignored;
    std::optional<PackedCheckpoint> one;
    if (fs::exists(packed_index, ignored)) one = open_packed_checkpoint((folder / model).string());
    if (!one || !one->index) raise_other_model(index_path, folder / model);
    whole.parts.push_back({model + "/", *std::move(one)});
  }
  return whole;
}

/// Whether the folder is that of a pipeline of plain models. Refuses one of packed models, of which
/// nothing says what belongs to it.
bool is_plain_pipeline(const fs::path& folder) {
  const auto models = models_of_pipeline(folder.string());
  if (!models) return false;
  for (const std::string& model : *models) {
    std::error_code ignored;
    if (fs::exists(folder / model / kPackedIndexName, ignored)) {  // guard: packed-pipeline-index
      throw FormatError((folder / kPackedPipelineName).string(), "",
                        "packed model: '" + shown(model) +
                            "' is packed, and the file that says what belongs to the pipeline is "
                            "not there" +
                            kPipelineAdvice + ", or give the path of the model alone");
    }
  }
  return !models->empty();
}

}  // namespace

std::optional<PackedCheckpoint> open_packed_checkpoint(const std::string& path) {
  const CheckpointFile found = find_checkpoint_file(path);
  const std::string name = fs::path(found.path).filename().string();
  if (found.kind == CheckpointKind::kIndex) {
    if (name != kPackedIndexName) return std::nullopt;
    return open_folder(found.path);
  }
  const SafetensorsHeader header = read_safetensors_header(found.path);
  if (!is_packed(header)) return std::nullopt;
  check_version(found.path, header);
  if (fs::is_directory(path)) {  // guard: packed-folder-without-index
    raise_packed_index_lost(found.path);
  }
  PackedCheckpoint packed{
      .folder = fs::path(found.path).parent_path(), .shards = {}, .index = std::nullopt};
  packed.shards.push_back(open_shard(found.path, unpacked_name(name).value_or(name)));
  return packed;
}

std::optional<PackedWhole> open_packed(const std::string& path) {
  const fs::path folder(path);
  std::error_code ignored;
  if (fs::exists(folder / kPackedPipelineName, ignored)) return open_pipeline(folder);
  if (is_plain_pipeline(folder)) return std::nullopt;
  std::optional<PackedCheckpoint> one = open_packed_checkpoint(path);
  if (!one) return std::nullopt;
  PackedWhole whole{one->folder, {}, {}};
  whole.parts.push_back({"", *std::move(one)});
  return whole;
}

}  // namespace tensorstream
