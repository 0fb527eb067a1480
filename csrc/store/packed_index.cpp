#include "store/packed_index.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "platform/file.h"
#include "store/relative_path.h"
#include "store/sealed_text.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::string_view kPackedStart = "packed-";
constexpr std::string_view kVersion = "1";

[[noreturn]] void fail(const std::string& path, const std::string& rule) {
  throw FormatError(path, "", "packed index: " + rule);
}

std::string read_text(const std::string& path) {
  const File file = File::open_for_reading(path);
  if (file.size_bytes() > kLargestIndexBytes) {
    fail(path, std::to_string(file.size_bytes()) + " bytes are more than an index may have");
  }
  std::string text(file.size_bytes(), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(text)));
  return text;
}

std::string string_of(const std::string& path, const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    fail(path, "its metadata has no text '" + std::string(key) + "'");
  }
  return found->get<std::string>();
}

void check_path(const std::string& path, const std::string& name) {
  if (const auto fault = relative_path_fault(name)) {
    fail(path, "the path '" + shown(name) + "' " + *fault);
  }
}

const Json& object_of(const std::string& path, const Json& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end() || !found->is_object()) {
    fail(path, "its metadata has no object '" + std::string(key) + "'");
  }
  return *found;
}

/// The texts of an object in `metadata`, by their keys.
std::map<std::string, std::string> texts_of(const std::string& path, const Json& metadata,
                                            const char* key) {
  const Json& object = object_of(path, metadata, key);
  std::map<std::string, std::string> texts;
  for (const auto& [name, text] : object.items()) {
    texts.emplace(name, string_of(path, object, name.c_str()));
  }
  return texts;
}

std::vector<CarriedFile> carried_of(const std::string& path, const Json& metadata) {
  std::vector<CarriedFile> carried;
  for (const auto& [name, entry] : object_of(path, metadata, "tensorstream.carried").items()) {
    check_path(path, name);
    const auto checksums = checksums_from(string_of(path, entry, "checksums"));
    const auto size = entry.find("size_bytes");
    if (!checksums || size == entry.end() || !size->is_number_unsigned()) {
      fail(path, "the file '" + shown(name) + "' has no sound size and checksums");
    }
    carried.push_back({name, size->get<std::uint64_t>(), *checksums});
  }
  return carried;
}

/// What is unpacked has one file of a name.
void check_paths_differ(const std::string& path, const PackedIndex& index) {
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index.stored) shards.insert(unpacked_name(shard).value());
  const auto is_twice = [&](const std::string& name) { return !shards.insert(name).second; };
  const auto refuse = [&](const std::string& name) {
    fail(path, "two files have the path '" + shown(name) + "'");
  };
  // guard: packed-paths-differ
  if (index.original && is_twice(index.original->name)) refuse(index.original->name);
  for (const CarriedFile& file : index.carried) {
    if (is_twice(file.name)) refuse(file.name);
  }
  // end guard
}

/// What follows the checksum, quote included, of an index of this version.
std::string version_text() { return R"(,"tensorstream.version":")" + std::string(kVersion) + "\""; }

std::string carried_text(const std::vector<CarriedFile>& files) {
  std::string text;
  for (const CarriedFile& file : files) {
    if (!text.empty()) text += ",";
    text += json_string(file.name) + R"(:{"size_bytes":)" + std::to_string(file.size_bytes) +
            R"(,"checksums":")" + checksums_text(file.checksums) + "\"}";
  }
  return R"(,"tensorstream.carried":{)" + text + "}";
}

std::string seals_text(const std::map<std::string, std::string>& seals) {
  std::string text;
  for (const auto& [name, seal] : seals) {
    if (!text.empty()) text += ",";
    text += json_string(name) + ":\"" + seal + "\"";
  }
  return text;
}

std::string read_sealed(const std::string& path) {
  std::string text = read_text(path);
  if (!is_sealed(text, kSealedIndexStart)) {  // guard: packed-index-sealed
    fail(path,
         "its checksum is not that of its bytes; the file is damaged, or not one that "
         "tensorstream.pack wrote");
  }
  return text;
}

void check_version(const std::string& path, const Json& metadata) {
  const std::string version = string_of(path, metadata, "tensorstream.version");
  if (version == kVersion) return;
  throw UnsupportedError("'" + path + "' has version '" + shown(version) +
                         "' of the packed format, and this TensorStream reads version " +
                         std::string(kVersion) + "; upgrade TensorStream");
}

}  // namespace

std::string packed_name(const std::string& shard) {
  const fs::path path(shard);
  return (path.parent_path() / (std::string(kPackedStart) + path.filename().string())).string();
}

std::optional<std::string> unpacked_name(const std::string& packed_shard) {
  const fs::path path(packed_shard);
  const std::string name = path.filename().string();
  if (!name.starts_with(kPackedStart)) return std::nullopt;
  return (path.parent_path() / name.substr(kPackedStart.size())).string();
}

std::string packed_index_text(const PackedIndex& index) {
  std::string text = open_seal(kSealedIndexStart) + version_text() + R"(,"total_size":)" +
                     std::to_string(index.total_bytes);
  if (index.original) {
    text += R"(,"tensorstream.index_name":)" + json_string(index.original->name) +
            R"(,"tensorstream.index":)" + json_string(index.original->text);
  }
  std::string stored;
  for (const auto& [name, shard] : index.stored) {
    if (!stored.empty()) stored += ",";
    stored += "\n" + json_string(name) + ":" + json_string(shard);
  }
  text += R"(,"tensorstream.shards":{)" + seals_text(index.seals) + "}";
  text += carried_text(index.carried) + "},\n\"weight_map\":{" + stored + "\n}}\n";
  close_seal(text, kSealedIndexStart);
  return text;
}

PackedIndex read_packed_index(const std::string& path) {
  const std::string text = read_sealed(path);
  // Checks what any index must be: no key twice, no deep nesting, sound paths.
  PackedIndex index;
  index.stored = read_shard_index(path);
  index.seal = seal_of(text, kSealedIndexStart);
  const Json parsed = Json::parse(text);
  const Json& metadata = parsed.at("metadata");
  check_version(path, metadata);
  if (metadata.contains("tensorstream.index")) {
    index.original = {string_of(path, metadata, "tensorstream.index_name"),
                      string_of(path, metadata, "tensorstream.index")};
    check_path(path, index.original->name);
  }
  for (const auto& [tensor, shard] : index.stored) {
    if (!unpacked_name(shard)) {
      throw FormatError(path, shown(tensor),
                        "packed index: no packed file is called '" + shown(shard) + "'");
    }
  }
  index.seals = texts_of(path, metadata, "tensorstream.shards");
  index.carried = carried_of(path, metadata);
  check_paths_differ(path, index);
  return index;
}

std::string packed_pipeline_text(const PackedPipelineIndex& index) {
  std::string text = open_seal(kSealedIndexStart) + version_text() + R"(,"tensorstream.models":{)" +
                     seals_text(index.models) + "}" + carried_text(index.carried) + "}}\n";
  close_seal(text, kSealedIndexStart);
  return text;
}

PackedPipelineIndex read_packed_pipeline(const std::string& path) {
  const std::string text = read_sealed(path);
  const Json parsed = Json::parse(text, nullptr, false);
  if (parsed.is_discarded()) fail(path, "it is not JSON in UTF-8");
  const Json& metadata = object_of(path, parsed, "metadata");
  check_version(path, metadata);
  PackedPipelineIndex index;
  index.models = texts_of(path, metadata, "tensorstream.models");
  for (const auto& [model, seal] : index.models) {
    check_path(path, model);
    if (model.find('/') != std::string::npos) fail(path, "'" + shown(model) + "' is no model");
  }
  index.carried = carried_of(path, metadata);
  return index;
}

}  // namespace tensorstream
